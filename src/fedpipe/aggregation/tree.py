"""Sums that grow while others are awaited.

Sums are made in a binary tree over the places of all learners, so that they have the same bits in any order of
arrival: two neighbouring subtrees are added as soon as both are complete, and what cannot be added yet is kept in a
file. When the last update arrives, only a few sums are left to read beside it.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fedpipe.aggregation.feeds import (
    Ahead,
    Aside,
    Chunk,
    Feed,
    Kept,
    Operand,
    RefusedError,
    Source,
    bytes_of,
    chunks_of,
)
from fedpipe.aggregation.rule import Rule, largest, level, total
from fedpipe.store import Store
from fedpipe.weights import Layout


def passed(
    stack: contextlib.ExitStack, operands: Sequence[Operand], layout: Layout, rule: Rule
) -> Iterator[tuple[Chunk, npt.NDArray[Any]]]:
    """One pass over operands: each chunk with what the rule makes of it, then all are verified.

    Args:
        stack: closes what the pass opens.
        operands: of one layout, in any order.
        layout: the layout of the global weights.
        rule: for floats; of counters the largest is taken.

    Raises:
        RefusedError: an update is truncated or is not what its digest says.
    """
    operands = sorted(operands, key=lambda o: o.place)
    pieces = stack.enter_context(contextlib.closing(Ahead(operands, chunks_of(layout))))
    hasher = stack.enter_context(contextlib.closing(Aside()))

    def taken(operand: Operand, chunk: Chunk) -> npt.NDArray[Any]:
        data, is_sum = pieces.next(), operand.summed and chunk.is_float
        if len(data) != (chunk.sum_bytes if operand.summed else chunk.stop - chunk.start):
            raise RefusedError(operand.learner, "the weights are truncated")
        hasher.do(operand.taken, data)
        return np.frombuffer(data, np.float64 if is_sum else chunk.dtype)

    weights, places = [o.weight for o in operands], [o.place for o in operands]
    summed = frozenset(position for position, o in enumerate(operands) if o.summed)
    for chunk in chunks_of(layout):
        values = (taken(operand, chunk) for operand in operands)
        with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is found and named afterwards
            yield chunk, rule(values, weights, places, summed) if chunk.is_float else largest(values)
    hasher.finish()
    for operand in operands:
        operand.verify()


class Forest:
    """The updates of a round that were fetched so far, added up as far as that can be done.

    Args:
        store: the federation's store.
        layout: the layout of the global weights.
        asked: the places of all learners that the round asks.
        folder: where files are kept.
    """

    def __init__(self, store: Store, layout: Layout, asked: Collection[int], folder: Path) -> None:
        self._store, self._layout, self._asked, self._folder = store, layout, frozenset(asked), folder
        self._trees: list[tuple[Kept, frozenset[int]]] = []
        self.members: dict[str, Source] = {}
        self.refused: dict[str, str] = {}
        self._all: dict[str, Source] = {}

    @property
    def kept(self) -> list[Kept]:
        """What a last pass has to read."""
        return [tree for tree, _ in self._trees]

    def fits(self, sources: Sequence[Source]) -> bool:
        """Whether all that was fetched counts, as it was then."""
        return self._all.items() <= {source.learner: source for source in sources}.items()

    def add(self, source: Source) -> None:
        """Fetches and verifies an update, and adds what can be added; one that is unfit is refused."""
        self._all[source.learner] = source
        path = self._new()
        try:
            with contextlib.ExitStack() as stack, path.open("wb") as file:
                feed = stack.enter_context(contextlib.closing(Feed(self._store, source, self._layout)))
                for chunk, values in passed(stack, [feed], self._layout, _as_it_is):
                    if chunk.is_float and not np.isfinite(values).all():
                        raise RefusedError(source.learner, "the weights hold NaN or infinity")
                    file.write(bytes_of(values))
        except RefusedError as error:
            path.unlink()
            self.refused[source.learner] = error.what
            return
        self.members[source.learner] = source
        tree = Kept(path, source.learner, source.place, source.weight, summed=False)
        self._trees = sorted([*self._trees, (tree, frozenset([source.place]))], key=lambda item: item[0].place)
        while self._grow():
            pass

    def _grow(self) -> bool:
        """Adds two neighbours whose common subtree is complete; False when there are none."""
        for position, ((left, held), (right, more)) in enumerate(zip(self._trees, self._trees[1:], strict=False)):
            height = level(left.place, right.place)
            below = {place for place in self._asked if place >> height == left.place >> height}
            if below == held | more:
                self._trees[position : position + 2] = [(self._added(left, right), held | more)]
                return True
        return False

    def _added(self, left: Kept, right: Kept) -> Kept:
        path = self._new()
        with contextlib.ExitStack() as stack, path.open("wb") as file:
            for item in (left, right):
                stack.enter_context(contextlib.closing(item))
            for _, values in passed(stack, [left, right], self._layout, total):
                file.write(bytes_of(values))
        left.path.unlink()
        right.path.unlink()
        return Kept(path, left.learner, left.place, left.weight + right.weight, summed=True)

    def _new(self) -> Path:
        return self._folder / f"tree-{uuid.uuid4().hex}"


def _as_it_is(values: Any, _weights: Any, _places: Any = None, _summed: Any = ()) -> Any:
    return next(iter(values))
