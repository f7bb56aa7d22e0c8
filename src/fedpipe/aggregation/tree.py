"""Sums that grow while further updates are awaited.

Sums are made in a binary tree over the places of all learners, so that they have the same bits in any order of
arrival. Two neighbouring subtrees are added as soon as both are complete; a sum that must wait is kept in a file. When
the last update arrives, only a few sums are left to read with it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import uuid
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np

from fedpipe.aggregation.arithmetic import level
from fedpipe.aggregation.encoding import Encoding, opened
from fedpipe.aggregation.feeds import Feed, Kept, RefusedError, Source, bytes_of, chunks_of
from fedpipe.aggregation.norms import Norms
from fedpipe.aggregation.passes import NO_CHECKS, Checks, added, ceiling_of, quiet, together, unbounded
from fedpipe.aggregation.rule import Rule, Sums, check_sums
from fedpipe.store import Store
from fedpipe.weights import Layout

WORTH_ADDING = 2**20
"""Size of a model, in bytes, from which updates are fetched and added while others are awaited."""
_TREE = "tree-"


class Forest:
    """The updates of a round that were fetched so far, added up as far as possible.

    Args:
        store: the federation's store.
        layout: the layout of the global weights.
        rule: combines them in the end.
        asked: the places of all learners that the round asks.
        folder: where files are kept.
        checks: what is checked of the updates.
        encoding: how they are encoded; None: as the weights themselves.

    Raises:
        TypeError: the rule needs single updates.
    """

    def __init__(
        self, store: Store, layout: Layout, rule: Sums, asked: Collection[int], folder: Path,
        checks: Checks = NO_CHECKS, encoding: Encoding | None = None,
    ) -> None:  # fmt: skip
        check_sums(rule)
        self._checks, self._encoding = checks, encoding
        self._store, self._layout, self._asked, self._folder = store, layout, frozenset(asked), folder
        self._trees: list[tuple[Kept, frozenset[int]]] = []
        self.members: dict[str, Source] = {}
        self.refused: dict[str, str] = {}
        self._all: dict[str, Source] = {}
        self._needed = 3 * layout.size + sum(chunk.sum_bytes for chunk in chunks_of(layout))

    @classmethod
    def plant(
        cls, store: Store, layout: Layout, rule: Rule, asked: Collection[int], folder: Path, base: str = "",
        norms: Norms | None = None, encoding: Encoding | None = None,
    ) -> Forest | None:  # fmt: skip
        """Make a forest; None when the rule needs single updates, and for a model that is small."""
        if not isinstance(rule, Sums) or layout.size < WORTH_ADDING:
            return None
        ceiling = ceiling_of(store, base) if base else unbounded
        return cls(store, layout, rule, asked, folder, Checks(ceiling, norms), encoding)

    @property
    def norms(self) -> Norms | None:
        """Return the norms of the updates, if they are measured."""
        return self._checks.norms

    @property
    def kept(self) -> list[Kept]:
        """Return the operands that the last pass must read."""
        return [tree for tree, _ in self._trees]

    def fits(self, sources: Sequence[Source]) -> bool:
        """Return whether all updates that were fetched count, unchanged."""
        return self._all.items() <= {source.learner: source for source in sources}.items()

    def add(self, source: Source) -> None:
        """Fetch and verify an update, and make the sums that are possible; an unfit update is refused.

        Raises:
            OSError: the disk is too small for its copy, another sum, and the files of the closing; or a sum's file is
                damaged. See `discard`.
        """
        if shutil.disk_usage(self._folder).free < self._needed:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._all[source.learner] = source
        try:
            if not self._add_to_neighbour(source):
                self._keep(source)
        except RefusedError as error:
            self.refused[source.learner] = error.what
            return
        self.members[source.learner] = source
        while self._grow():
            pass

    def _add_to_neighbour(self, source: Source) -> bool:
        """Add an update to a sum while it is fetched; False when it has to wait, or no finite sum comes out."""
        neighbour = next((tree for tree in self._trees if self._completes(tree[1], {source.place})), None)
        if neighbour is None:
            return False
        tree, held = neighbour
        path = self._new()
        try:
            with contextlib.ExitStack() as stack, path.open("wb") as file:
                stack.enter_context(quiet())
                pair = [stack.enter_context(contextlib.closing(item)) for item in (self._opened(source), tree)]
                for chunk, values in added(stack, pair, self._layout, self._checks):
                    if chunk.is_float and not np.isfinite(values).all():
                        path.unlink()
                        return False
                    file.write(bytes_of(values))
        except RefusedError as error:
            path.unlink()
            if error.learner != source.learner:
                return False
            raise
        tree.path.unlink()
        self._trees.remove(neighbour)
        first: Source | Kept = source if source.place < tree.place else tree
        made = Kept(path, first.learner, first.place, source.weight + tree.weight, summed=True)
        self._plant(made, held | {source.place})
        return True

    def _keep(self, source: Source) -> None:
        """Fetch and verify an update as it is."""
        path = self._new()
        try:
            with contextlib.ExitStack() as stack, path.open("wb") as file:
                feed = stack.enter_context(contextlib.closing(self._opened(source)))
                for _, (values,) in together(stack, [feed], self._layout, self._checks):
                    file.write(bytes_of(values))
        except RefusedError:
            path.unlink()
            raise
        self._plant(Kept(path, source.learner, source.place, source.weight, summed=False), frozenset([source.place]))

    def _plant(self, tree: Kept, held: frozenset[int]) -> None:
        self._trees = sorted([*self._trees, (tree, held)], key=lambda item: item[0].place)

    def _completes(self, held: frozenset[int], more: Collection[int]) -> bool:
        """Return whether two sets of places make a whole subtree of all that were asked."""
        both = held.union(more)
        height = level(min(both), max(both))
        return both == {place for place in self._asked if place >> height == min(both) >> height}

    def discard(self) -> None:
        """Delete all files, so that the closing has their space."""
        for path in self._folder.glob(f"{_TREE}*"):
            path.unlink()

    def _opened(self, source: Source) -> Feed:
        return opened(self._store, source, self._layout, self._encoding)

    def _grow(self) -> bool:
        """Add two neighbours whose common subtree is complete; False when there are none."""
        for position, ((left, held), (right, more)) in enumerate(zip(self._trees, self._trees[1:], strict=False)):
            if self._completes(held, more):
                self._trees[position : position + 2] = [(self._added(left, right), held | more)]
                return True
        return False

    def _added(self, left: Kept, right: Kept) -> Kept:
        """Return the sum of two, in the file of the first if that is a sum: a piece is read before it is written."""
        path = left.path if left.summed else self._new()
        with contextlib.ExitStack() as stack, path.open("r+b" if left.summed else "wb") as file:
            for item in (left, right):
                stack.enter_context(contextlib.closing(item))
            stack.enter_context(quiet())
            try:
                for _, values in added(stack, [left, right], self._layout):
                    file.write(bytes_of(values))
            except RefusedError as error:
                raise OSError(errno.EIO, os.strerror(errno.EIO)) from error
        if path != left.path:
            left.path.unlink()
        right.path.unlink()
        return Kept(path, left.learner, left.place, left.weight + right.weight, summed=True)

    def _new(self) -> Path:
        return self._folder / f"{_TREE}{uuid.uuid4().hex}"
