"""Aggregation of updates that stay in the store: constant memory, identical bytes in any order of arrival.

All updates of a round have one layout, so their files hold the same coordinates at the same bytes. They are read
together, one chunk of each at a time, verified and combined while the next chunks are fetched. Memory is a few chunks,
whatever the size of the model and the number of learners. A rule of distances takes two passes.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from fedpipe.aggregation.arithmetic import Array, Floats, check_weights
from fedpipe.aggregation.encoding import Encoding, opened
from fedpipe.aggregation.feeds import Aside, Chunk, Feed, Kept, Piece, RefusedError, Source, bytes_of, refusing
from fedpipe.aggregation.norms import OTHERS, UNBOUNDED, Bounds, Norms, OutliersError, capped
from fedpipe.aggregation.optimizers import ServerStep
from fedpipe.aggregation.passes import NOT_FINITE, Checks, ceiling_of, combined, finished, measured, mixed, quiet
from fedpipe.aggregation.rule import Columns, Distances, Mixture, Rule, Sums, check_sums
from fedpipe.aggregation.tree import Forest
from fedpipe.errors import WeightsError
from fedpipe.federation.exchange import Exchange
from fedpipe.store import Store, keys
from fedpipe.store.files import allow_files
from fedpipe.store.objects import fetch_file
from fedpipe.weights import FLOATS, Layout, head_bytes, layout_of, load, save


class TooFewError(WeightsError):
    """Updates are too few for the rule.

    Args:
        fewest: how many it needs.
        left: learners whose updates can be used.
        refused: the others, with the reason.
    """

    def __init__(self, fewest: int, left: Sequence[str], refused: dict[str, str]) -> None:
        super().__init__(f"the rule needs {fewest} updates, and {len(left)} can be used")
        self.left, self.refused = left, refused


class Combined(NamedTuple):
    """The next global weights and optimizer state as files, and the learners that were refused, with the reason.

    `measured` are numbers of the aggregation itself. `not_chosen` are the accepted learners of whose updates the rule
    used nothing.
    """

    weights: tuple[Path, str]
    state: dict[str, tuple[Path, str]]
    accepted: tuple[str, ...]
    refused: dict[str, str]
    measured: Mapping[str, float] = MappingProxyType({})
    not_chosen: tuple[str, ...] = ()


def combine(
    store: Store,
    sources: Sequence[Source],
    *,
    layout: Layout,
    base: str,
    state: dict[str, str],
    rule: Rule,
    server: ServerStep,
    folder: Path,
    forest: Forest | None = None,
    bounds: Bounds = UNBOUNDED,
    exchange: Exchange | None = None,
) -> Combined:
    """Combine updates from the store into the next global weights.

    An update whose bytes are missing, truncated, altered, differently laid out or not finite is refused. So is one that
    is far larger than the others. The pass is repeated without it, so that nothing of it remains in the result.

    Args:
        sources: the updates; their order does not matter.
        layout: the layout of the global weights, which every update must have.
        base: digest of the global weights that the updates began from.
        state: digests of the server optimizer's arrays; empty before the first step.
        rule: combines the floats.
        server: moves the global weights to the combination.
        folder: where the result's files are written.
        forest: updates of this round that were fetched and added up while others were awaited; for a rule of sums.
        bounds: what one update may do at most; norms are compared for a rule of sums.
        exchange: how the updates are encoded; None: as the weights themselves.

    Raises:
        WeightsError: no update could be used, they are too few for the rule, or the result is not finite.
        StoreError: the store failed; the step can be repeated.
        TypeError: the rule needs single updates, and there is a forest.
    """
    check_weights([s.weight for s in sources])
    allow_files(len(sources))
    if forest is not None:
        check_sums(rule)
    known = forest if forest is not None and _serves(forest, bounds, sources) and forest.fits(sources) else None
    refused = {s.learner: known.refused[s.learner] for s in sources if s.learner in known.refused} if known else {}
    kept = known.kept if known else []
    fetched = [s for s in sources if known and s.learner in known.members]
    left = [s for s in sources if s not in fetched and s.learner not in refused]
    compares = bounds.norm and isinstance(rule, Sums) and len(sources) > OTHERS
    norms = known.norms if known else Norms(folder / "base", bounds.norm, layout) if compares else None
    encoding = Encoding(exchange, layout, folder / "base") if exchange else None
    needs_base = (
        (norms is not None and known is None)
        or (isinstance(rule, Distances) and rule.from_base)
        or (exchange is not None and exchange.changes)
    )
    checks = Checks(ceiling_of(store, base), norms)
    with contextlib.closing(_Optimizer(store, server, base, state, layout, folder, needs_base)) as optimizer:
        while left or kept:
            everyone = [*left, *fetched]
            names = [s.learner for s in everyone]
            try:
                if norms and not left:
                    norms.check(everyone)
                if len(everyone) < rule.fewest:
                    raise TooFewError(rule.fewest, names, refused)
                counted, mixture = _mixed(store, _weighed(left, bounds), layout, encoding, rule, optimizer)
                path, digest = _last_pass(
                    store, counted, kept, everyone, layout, encoding, rule, mixture, optimizer, folder, checks
                )
            except RefusedError as error:
                if any(s.learner == error.learner for s in fetched):  # a file of a sum is damaged: not its update
                    left, fetched, kept = left + fetched, [], []
                    continue
                refused[error.learner] = error.what
                left = [s for s in left if s.learner != error.learner]
                continue
            except _OverflowError as error:
                refused |= error.culprits
                left = [s for s in (*left, *fetched) if s.learner not in error.culprits]  # their sums cannot be used
                kept, fetched = [], []
                if not left and set(refused.values()) == {_TOO_LARGE}:
                    raise WeightsError(
                        "the aggregate is not finite although every update is: lower the learning rates"
                    ) from error
                continue
            except OutliersError as error:
                refused |= error.refused
                if any(s.learner in error.refused for s in fetched):  # the sums are made again, without it
                    left, fetched, kept = left + fetched, [], []
                left = [s for s in left if s.learner not in error.refused]
                continue
            chosen = {s.learner for s in (*counted, *fetched)}
            not_chosen = tuple(sorted(set(names) - chosen))
            return Combined((path, digest), optimizer.finish(), tuple(sorted(names)), refused, not_chosen=not_chosen)
    raise WeightsError("no update can be used: " + "; ".join(f"{k}: {v}" for k, v in sorted(refused.items())))


def _mixed(
    store: Store, sources: list[Source], layout: Layout, encoding: Encoding | None, rule: Rule, optimizer: _Optimizer
) -> tuple[list[Source], Mixture | None]:  # fmt: skip
    """Return the updates that count and, for a rule of distances, the mixtures of them."""
    if not isinstance(rule, Distances):
        return sources, None
    in_order = sorted(sources, key=lambda s: s.place)
    with contextlib.ExitStack() as stack, quiet():
        feeds = _opened(stack, store, in_order, layout, encoding)
        geometry = measured(stack, feeds, layout, optimizer.base if rule.from_base else None)
    parts = [geometry.squares, *([] if geometry.products is None else [geometry.products])]
    far = sum(np.count_nonzero(~np.isfinite(part), axis=1) for part in parts)[: len(in_order)]
    if far.any():
        raise RefusedError(in_order[int(far.argmax())].learner, _TOO_LARGE)
    return rule.mixed(geometry, [s.weight for s in in_order]).needed(in_order)


def _serves(forest: Forest, bounds: Bounds, sources: Sequence[Source]) -> bool:
    """Return whether there are early sums that keep to the bounds: updates were measured, and weights are theirs.

    A forest without an update, when all answer at once, has not fetched the base either.
    """
    measured = forest.norms is not None or not bounds.norm or len(sources) <= OTHERS
    return bool(forest.members or forest.refused) and not bounds.share and measured


def _weighed(sources: list[Source], bounds: Bounds) -> list[Source]:
    """Return the updates with weights of which none exceeds its share."""
    weights = capped([s.weight for s in sources], bounds.share)
    return [s._replace(weight=weight) for s, weight in zip(sources, weights, strict=True)]


def _opened(
    stack: contextlib.ExitStack, store: Store, sources: list[Source], layout: Layout, encoding: Encoding | None
) -> list[Feed]:  # fmt: skip
    return [stack.enter_context(contextlib.closing(opened(store, source, layout, encoding))) for source in sources]


def _last_pass(
    store: Store, sources: list[Source], kept: list[Kept], everyone: list[Source], layout: Layout,
    encoding: Encoding | None, rule: Rule, mixture: Mixture | None, optimizer: _Optimizer, folder: Path, checks: Checks,
) -> tuple[Path, str]:  # fmt: skip
    """Write the result. Once all updates are read, and measured, those that are far too large are refused."""
    optimizer.restart()
    path, out = folder / "weights", hashlib.sha256()
    with contextlib.ExitStack() as stack, path.open("wb") as file:
        feeds = _opened(stack, store, sources, layout, encoding)
        trees = [stack.enter_context(contextlib.closing(item)) for item in kept]
        writer = stack.enter_context(contextlib.closing(Aside()))
        stack.enter_context(quiet())
        results = _results(stack, feeds, trees, layout, rule, mixture, optimizer, checks)

        def emit(data: Piece) -> None:
            out.update(data)
            file.write(data)

        writer.do(emit, head_bytes(layout))
        overflow: _OverflowError | None = None
        for chunk, result in results:
            if overflow:  # the rest is only measured
                continue
            stepped = optimizer.step(chunk, result).astype(chunk.dtype) if chunk.is_float else result
            if not (chunk.is_float and not np.isfinite(stepped).all()):
                writer.do(emit, bytes_of(stepped))
                continue
            overflow = _OverflowError(_culprits(store, everyone, chunk, encoding))
            if checks.norms is None or set(overflow.culprits.values()) != {_TOO_LARGE}:
                raise overflow
        writer.finish()
        if checks.norms:
            checks.norms.check(everyone)
        if overflow:
            raise overflow
    return path, f"sha256:{out.hexdigest()}"


def _results(
    stack: contextlib.ExitStack, feeds: list[Feed], trees: list[Kept], layout: Layout, rule: Rule,
    mixture: Mixture | None, optimizer: _Optimizer, checks: Checks,
) -> Iterator[tuple[Chunk, Array]]:  # fmt: skip
    """Yield each chunk with the result of the rule."""
    if isinstance(rule, Sums):
        return finished(stack, [*feeds, *trees], layout, rule, checks)
    if isinstance(rule, Columns):
        return combined(stack, feeds, layout, rule, checks)
    assert mixture is not None
    return mixed(stack, feeds, layout, rule.then, mixture, optimizer.base, checks)


_TOO_LARGE = "the weights are so large that the aggregate is not finite"


class _OverflowError(Exception):
    """The aggregate is not finite because of some updates; `culprits` has the reason for each."""

    def __init__(self, culprits: dict[str, str]) -> None:
        super().__init__("; ".join(culprits.values()))
        self.culprits = culprits


def _culprits(store: Store, sources: Sequence[Source], chunk: Chunk, encoding: Encoding | None) -> dict[str, str]:
    """Return why a chunk of the aggregate is not finite, by learner: for those with NaN or with the largest values.

    Learners whose weights cannot be read again come first, and alone.
    """
    sizes: dict[str, float] = {}
    lost: dict[str, str] = {}
    start, length = chunk.start, chunk.stop - chunk.start
    if encoding:
        start, length = encoding.start(chunk), encoding.length(chunk)
    for source in sources:
        try:
            with refusing(store, source.learner):
                key = keys.content(source.digest, source.learner)
                data = store.read_range(key, start, length)
        except RefusedError as error:
            lost[source.learner] = error.what
            continue
        if len(data) < length:
            lost[source.learner] = "the weights are truncated"
            continue
        read = encoding.decoded(data, chunk) if encoding else np.frombuffer(data, chunk.dtype)
        values = read.astype(np.float64)
        sizes[source.learner] = float(np.abs(values).max()) if np.isfinite(values).all() else math.inf
    if lost:
        return lost
    largest = max(sizes.values())
    why = _TOO_LARGE if math.isfinite(largest) else NOT_FINITE
    return {name: why for name, size in sizes.items() if size >= largest / 2}


class _Optimizer:
    """The server optimizer over chunks: base and state are verified files, and so is the new state."""

    def __init__(
        self, store: Store, server: ServerStep, base: str, state: dict[str, str], layout: Layout, folder: Path,
        needs_base: bool = False,
    ) -> None:  # fmt: skip
        self._server, self._folder = server, folder
        self._count = sum((t.stop - t.start) // t.numpy_dtype.itemsize for t in layout.tensors if t.dtype in FLOATS)
        self._base = folder / "base"
        if needs_base or not server.replaces:
            fetch_file(store, base, self._base)
        for slot in (*server.slots, *([_STEPS] if server.counts else [])):
            if slot in state:
                fetch_file(store, state[slot], folder / f"old-{slot}", kind="coordinator")
        self._number = 1 + _steps_in(folder / f"old-{_STEPS}") if server.counts else 1
        self._layouts = {slot: layout_of({slot: np.broadcast_to(0.0, self._count)}) for slot in server.slots}
        self._known = frozenset(state) & frozenset(server.slots)
        self._position = 0
        self._files: dict[str, Any] = {}

    def base(self, chunk: Chunk) -> Array:
        """Return the global weights of a chunk."""
        count = (chunk.stop - chunk.start) // chunk.dtype.itemsize
        return np.fromfile(self._base, chunk.dtype, count=count, offset=chunk.start)

    def restart(self) -> None:
        """Begin a pass from the first coordinate."""
        self._position = 0
        self.close()
        for slot in self._server.slots:
            self._files[slot] = (self._folder / f"new-{slot}").open("wb")
            self._files[slot].write(head_bytes(self._layouts[slot]))

    def step(self, chunk: Chunk, aggregate: Floats) -> Floats:
        """Return the next values of a chunk's coordinates."""
        if self._server.replaces:
            return aggregate
        base = self.base(chunk).astype(np.float64)
        old = {slot: self._old(slot, aggregate.size) for slot in self._server.slots}
        result, new = self._server.step(base, aggregate, old, self._number)
        for slot, values in new.items():
            self._files[slot].write(bytes_of(values))
        self._position += aggregate.size
        return result

    def _old(self, slot: str, count: int) -> Floats:
        if slot not in self._known:
            return np.full(count, self._server.starts.get(slot, 0.0))
        offset = self._layouts[slot].data_start + 8 * self._position
        return np.fromfile(self._folder / f"old-{slot}", np.float64, count=count, offset=offset)

    def finish(self) -> dict[str, tuple[Path, str]]:
        """Return the new state's files and digests."""
        self.close()
        paths = {slot: self._folder / f"new-{slot}" for slot in self._server.slots}
        if self._server.counts:
            paths[_STEPS] = self._folder / f"new-{_STEPS}"
            save({_STEPS: np.int64(self._number)}, paths[_STEPS])
        return {slot: (path, _file_digest(path)) for slot, path in paths.items()}

    def close(self) -> None:
        """Close the files of the new state."""
        for file in self._files.values():
            file.close()
        self._files = {}


_STEPS = "steps"
"""Name of the number of steps in the state of an optimizer."""


def _steps_in(path: Path) -> int:
    """Return the number of steps so far; 0 before the first."""
    return int(load(path)[_STEPS]) if path.exists() else 0


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
