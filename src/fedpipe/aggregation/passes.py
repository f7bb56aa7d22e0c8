"""Passes over a round's updates, one chunk of each at a time, verified at the end.

A pass of sums may read sums that were made before. With many updates, it holds one chunk of one at a time. A pass that
needs the chunks of all updates together reads single updates only; the more there are, the smaller its chunks are.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np

from fedpipe.aggregation.arithmetic import Array, Floats, Watch, largest, total
from fedpipe.aggregation.feeds import PIECE, STRIP, Ahead, Chunk, Feed, Operand, RefusedError, chunks_of
from fedpipe.aggregation.geometry import Geometry, measure, summed
from fedpipe.aggregation.norms import Norms
from fedpipe.aggregation.rule import Columns, Mixture, Sums
from fedpipe.store import Store, keys
from fedpipe.weights import Layout

NOT_FINITE = "the weights hold NaN or infinity"
Ceiling = Callable[[Chunk], Array | None]
"""Returns the largest values that counters of a chunk may have; None without a bound."""


def unbounded(_chunk: Chunk) -> Array | None:
    """Return no bound."""
    return None


def ceiling_of(store: Store, base: str) -> Ceiling:
    """Return the bounds of counters, from the weights in the store that updates begin with.

    A counter of 64 bits may grow by 2^40 in a round, one of 32 bits by 2^24. So no learner makes one overflow, or
    stick at its largest value. Smaller ones, and flags, have no bound.
    """

    def ceiling(chunk: Chunk) -> Array | None:
        if not is_bounded(chunk.dtype):
            return None
        data = store.read_range(keys.content(base), chunk.start, chunk.stop - chunk.start)
        return most_after(np.frombuffer(data, chunk.dtype))

    return ceiling


def is_bounded(dtype: np.dtype[Any]) -> bool:
    """Return whether counters of this dtype have a bound."""
    return dtype.kind in "iu" and dtype.itemsize >= 4


def most_after(base: Array) -> Array:
    """Return the largest values that bounded counters may have after a round; see `ceiling_of`."""
    growth = 2**40 if base.dtype.itemsize == 8 else 2**24
    most: Array = np.minimum(base, base.dtype.type(np.iinfo(base.dtype).max - growth)) + base.dtype.type(growth)
    return most


class Checks(NamedTuple):
    """Checks that a pass makes of the updates that it reads.

    Args:
        ceiling: bounds counters.
        norms: measures changes, if given.
    """

    ceiling: Ceiling = unbounded
    norms: Norms | None = None


NO_CHECKS = Checks()
Base = Callable[[Chunk], Array]
"""Returns the values of the base in a chunk of floats."""
_TOGETHER = 2**23
"""Bytes of updates that a pass holds together."""
_LEAST = 2**12
"""Bytes of a chunk, however many updates there are. A chunk is a multiple of them, and so of encoded blocks."""
_Operand = TypeVar("_Operand", bound=Operand)


def finished(
    stack: contextlib.ExitStack, operands: Sequence[Operand], layout: Layout, rule: Sums, checks: Checks = NO_CHECKS
) -> Iterator[tuple[Chunk, Array]]:
    """Yield each chunk with the result of a rule of sums; of counters the largest. See `added`."""
    weight = float(sum(o.weight for o in _in_order(operands)))
    for chunk, values in added(stack, operands, layout, checks):
        yield chunk, rule.finish(values, weight) if chunk.is_float else values


def added(
    stack: contextlib.ExitStack, operands: Sequence[Operand], layout: Layout, checks: Checks = NO_CHECKS
) -> Iterator[tuple[Chunk, Array]]:
    """Yield each chunk with the weighted sum of the operands; of counters the largest. The next chunk overwrites it.

    Args:
        stack: closes what the pass opens.
        operands: of one layout, in any order.
        layout: the layout of the global weights.
        checks: what is checked of the updates that are read.

    Raises:
        RefusedError: an update is truncated or does not match its digest, or a counter of it is too large.
    """
    operands = _in_order(operands)
    weights, places = [o.weight for o in operands], [o.place for o in operands]
    summed = frozenset(position for position, o in enumerate(operands) if o.summed)
    watch = _measuring(checks.norms, operands) if checks.norms else None
    sums = np.empty(PIECE)  # a new array for each chunk would be cleared by the system each time
    piece = max(STRIP, piece_of(len(operands)) // STRIP * STRIP)
    for chunk, values in _read(stack, operands, layout, checks, piece):
        if not chunk.is_float:
            yield chunk, largest(values)
            continue
        if checks.norms:
            checks.norms.move(chunk)
        held = list(values) if piece * len(operands) <= _TOGETHER else values
        out = sums[: (chunk.stop - chunk.start) // chunk.dtype.itemsize]
        yield chunk, total(held, weights, places, summed, out, watch)


def _measuring(norms: Norms, operands: Sequence[Operand]) -> Watch:
    """Return what measures the updates among operands while they are added up."""
    measured = [isinstance(operand, Feed) for operand in operands]
    for operand, counts in zip(operands, measured, strict=True):
        if counts:
            norms.begin(operand.learner)

    def watch(position: int, start: int, values: Floats) -> None:
        if measured[position]:
            norms.add(operands[position].learner, start, values)

    return watch


def combined(
    stack: contextlib.ExitStack, feeds: Sequence[Feed], layout: Layout, rule: Columns, checks: Checks = NO_CHECKS
) -> Iterator[tuple[Chunk, Array]]:
    """Yield each chunk with the result of a rule of columns; of counters the largest. See `together`."""
    weights = [feed.weight for feed in _in_order(feeds)]
    for chunk, values in together(stack, feeds, layout, checks):
        yield chunk, rule.combined(values, weights) if chunk.is_float else largest(values)


def mixed(
    stack: contextlib.ExitStack, feeds: Sequence[Feed], layout: Layout, rule: Sums | Columns, mixture: Mixture,
    base: Base, checks: Checks = NO_CHECKS,
) -> Iterator[tuple[Chunk, Array]]:  # fmt: skip
    """Yield each chunk with the result of a rule over mixtures of the updates; of counters the largest.

    Args:
        stack: closes what the pass opens.
        feeds: the updates that the mixtures need, with their places.
        layout: the layout of the global weights.
        rule: combines the mixtures.
        mixture: of these updates and, if it has one more column, of the base.
        base: reads the base.
        checks: what is checked of the updates.
    """
    with_base = mixture.rows.shape[1] > len(feeds)
    for chunk, values in together(stack, feeds, layout, checks):
        if not chunk.is_float:
            yield chunk, largest(values)
            continue
        points = [*values, base(chunk)] if with_base else values
        yield chunk, blended(points, mixture, rule)


def blended(points: Sequence[Array], mixture: Mixture, rule: Sums | Columns) -> Floats:
    """Return the result of a rule over mixtures of one block."""
    if isinstance(rule, Columns):
        return rule.combined(mixture.applied(points), mixture.weights)
    counts, weight = mixture.total()
    there = [position for position, count in enumerate(counts) if count > 0]
    return rule.finish(total([points[k] for k in there], [counts[k] for k in there]), weight)


def measured(stack: contextlib.ExitStack, feeds: Sequence[Feed], layout: Layout, base: Base | None) -> Geometry:
    """Return the distances of all floats, in the order of the places, from the base too if it is given."""
    parts = (
        measure(values, base(chunk) if base else None)
        for chunk, values in together(stack, feeds, layout)
        if chunk.is_float
    )
    return summed(parts, len(feeds), from_base=base is not None)


def together(
    stack: contextlib.ExitStack, feeds: Sequence[Feed], layout: Layout, checks: Checks = NO_CHECKS
) -> Iterator[tuple[Chunk, list[Array]]]:
    """Yield each chunk with the values of all updates, in the order of their places; all floats are finite.

    A robust rule may hide a NaN, so values are checked before the rule sees them.

    Args:
        stack: closes what the pass opens.
        feeds: of one layout, in any order.
        layout: the layout of the global weights.
        checks: what is checked of the updates.

    Raises:
        RefusedError: an update is truncated, not finite, or does not match its digest.
    """
    feeds = _in_order(feeds)
    watch = _measuring(checks.norms, feeds) if checks.norms else None
    for chunk, values in _read(stack, feeds, layout, checks, piece_of(len(feeds))):
        held = list(values)
        if chunk.is_float:
            for feed, value in zip(feeds, held, strict=True):
                check_finite(feed.learner, value)
            if checks.norms and watch:
                checks.norms.move(chunk)
                for position, value in enumerate(held):
                    watch(position, 0, value)
        yield chunk, held


def piece_of(count: int) -> int:
    """Return the bytes of a chunk when the chunks of several updates are held together."""
    return min(PIECE, max(_LEAST, _TOGETHER // count // _LEAST * _LEAST))


def quiet() -> np.errstate:
    """Silence overflows: values that are not finite are found and named afterwards."""
    return np.errstate(over="ignore", invalid="ignore")


def check_finite(learner: str, values: Array) -> None:
    """Raise RefusedError when a learner's values hold NaN or infinity."""
    if not np.isfinite(values).all():
        raise RefusedError(learner, NOT_FINITE)


def _in_order(operands: Sequence[_Operand]) -> list[_Operand]:
    return sorted(operands, key=lambda operand: operand.place)


def _read(
    stack: contextlib.ExitStack, operands: Sequence[Operand], layout: Layout, checks: Checks, piece: int = PIECE
) -> Iterator[tuple[Chunk, Iterator[Array]]]:
    """Yield each chunk with the operands' arrays, all of which must be taken; then verify the operands."""
    ahead = Ahead(operands, lambda: chunks_of(layout, piece))
    pieces = stack.enter_context(contextlib.closing(ahead))

    def taken(position: int, operand: Operand, chunk: Chunk, most: Array | None) -> Array:
        data, is_sum = pieces.next(position), operand.summed and chunk.is_float
        if len(data) != (chunk.sum_bytes if operand.summed else chunk.stop - chunk.start):
            raise RefusedError(operand.learner, "the weights are truncated")
        values = np.frombuffer(data, np.float64 if is_sum else chunk.dtype)
        if most is not None and (values > most).any():
            raise RefusedError(operand.learner, "a counter of the weights has leapt")
        return values

    for chunk in chunks_of(layout, piece):
        most = checks.ceiling(chunk)
        yield chunk, (taken(position, operand, chunk, most) for position, operand in enumerate(operands))
    for operand in operands:
        operand.verify()
