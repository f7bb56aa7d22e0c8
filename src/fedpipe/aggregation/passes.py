"""Passes over a round's updates, one chunk of each at a time, verified at the end.

A pass of sums holds one update's chunk at a time, and may read sums that were made before. A pass that needs the
chunks of all updates together reads single updates only; the more there are, the smaller its chunks are.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TypeVar

import numpy as np

from fedpipe.aggregation.arithmetic import Array, Floats, add_distances, largest, total
from fedpipe.aggregation.feeds import PIECE, Ahead, Aside, Chunk, Feed, Operand, RefusedError, chunks_of
from fedpipe.aggregation.norms import Norms
from fedpipe.aggregation.rule import Columns, Sums
from fedpipe.weights import Layout

_TOGETHER = 2**23
"""Bytes of updates that a pass holds together."""
_LEAST = 2**12
"""Bytes of a chunk, however many updates there are."""
_Operand = TypeVar("_Operand", bound=Operand)


def finished(
    stack: contextlib.ExitStack, operands: Sequence[Operand], layout: Layout, rule: Sums, norms: Norms | None = None
) -> Iterator[tuple[Chunk, Array]]:
    """Yield each chunk with the result of a rule of sums; of counters the largest. See `added`."""
    weight = float(sum(o.weight for o in _in_order(operands)))
    for chunk, values in added(stack, operands, layout, norms):
        yield chunk, rule.finish(values, weight) if chunk.is_float else values


def added(
    stack: contextlib.ExitStack, operands: Sequence[Operand], layout: Layout, norms: Norms | None = None
) -> Iterator[tuple[Chunk, Array]]:
    """Yield each chunk with the weighted sum of the operands; of counters the largest.

    Args:
        stack: closes what the pass opens.
        operands: of one layout, in any order.
        layout: the layout of the global weights.
        norms: measures the updates that are read from the store.

    Raises:
        RefusedError: an update is truncated or does not match its digest.
    """
    operands = _in_order(operands)
    weights, places = [o.weight for o in operands], [o.place for o in operands]
    summed = frozenset(position for position, o in enumerate(operands) if o.summed)
    for chunk, values in _read(stack, operands, layout, norms=norms):
        yield chunk, total(values, weights, places, summed) if chunk.is_float else largest(values)


def combined(
    stack: contextlib.ExitStack, feeds: Sequence[Feed], layout: Layout, rule: Columns
) -> Iterator[tuple[Chunk, Array]]:
    """Yield each chunk with the result of a rule of columns; of counters the largest. See `together`."""
    weights = [feed.weight for feed in _in_order(feeds)]
    for chunk, values in together(stack, feeds, layout):
        yield chunk, rule.combined(values, weights) if chunk.is_float else largest(values)


def distances(stack: contextlib.ExitStack, feeds: Sequence[Feed], layout: Layout) -> Floats:
    """Return the squared Euclidean distances of all floats, in the order of the places. See `together`."""
    found = np.zeros((len(feeds), len(feeds)))
    for chunk, values in together(stack, feeds, layout):
        if chunk.is_float:
            add_distances(values, found)
    return found


def together(
    stack: contextlib.ExitStack, feeds: Sequence[Feed], layout: Layout, norms: Norms | None = None
) -> Iterator[tuple[Chunk, list[Array]]]:
    """Yield each chunk with the values of all updates, in the order of their places; all floats are finite.

    A robust rule may hide a NaN, so values are checked before the rule sees them.

    Args:
        stack: closes what the pass opens.
        feeds: of one layout, in any order.
        layout: the layout of the global weights.
        norms: measures the updates.

    Raises:
        RefusedError: an update is truncated, not finite, or does not match its digest.
    """
    feeds = _in_order(feeds)
    piece = min(PIECE, max(_LEAST, _TOGETHER // len(feeds) // 8 * 8))
    for chunk, values in _read(stack, feeds, layout, piece, norms):
        held = list(values)
        if chunk.is_float:
            for feed, value in zip(feeds, held, strict=True):
                check_finite(feed.learner, value)
        yield chunk, held


def quiet() -> np.errstate:
    """Silence overflows: values that are not finite are found and named afterwards."""
    return np.errstate(over="ignore", invalid="ignore")


def check_finite(learner: str, values: Array) -> None:
    """Raise RefusedError when a learner's values hold NaN or infinity."""
    if not np.isfinite(values).all():
        raise RefusedError(learner, "the weights hold NaN or infinity")


def _in_order(operands: Sequence[_Operand]) -> list[_Operand]:
    return sorted(operands, key=lambda operand: operand.place)


def _read(
    stack: contextlib.ExitStack,
    operands: Sequence[Operand],
    layout: Layout,
    piece: int = PIECE,
    norms: Norms | None = None,
) -> Iterator[tuple[Chunk, Iterator[Array]]]:
    """Yield each chunk with the operands' arrays, all of which must be taken; then verify the operands."""
    pieces = stack.enter_context(contextlib.closing(Ahead(operands, chunks_of(layout, piece))))
    hasher = stack.enter_context(contextlib.closing(Aside()))
    for operand in operands:
        if norms and isinstance(operand, Feed):
            norms.begin(operand.learner)

    def taken(operand: Operand, chunk: Chunk) -> Array:
        data, is_sum = pieces.next(), operand.summed and chunk.is_float
        if len(data) != (chunk.sum_bytes if operand.summed else chunk.stop - chunk.start):
            raise RefusedError(operand.learner, "the weights are truncated")
        hasher.do(operand.taken, data)
        values = np.frombuffer(data, np.float64 if is_sum else chunk.dtype)
        if norms and chunk.is_float and isinstance(operand, Feed):
            norms.add(operand.learner, chunk, values)
        return values

    for chunk in chunks_of(layout, piece):
        yield chunk, (taken(operand, chunk) for operand in operands)
    hasher.finish()
    for operand in operands:
        operand.verify()
