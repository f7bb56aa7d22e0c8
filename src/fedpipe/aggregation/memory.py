"""Aggregation of updates that are held in memory: to try a rule, and to compare it with others."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from fedpipe.aggregation.arithmetic import Array, check_weights, is_float, largest, total
from fedpipe.aggregation.feeds import Chunk, chunks_of
from fedpipe.aggregation.geometry import Geometry, measure, summed
from fedpipe.aggregation.passes import blended, piece_of
from fedpipe.aggregation.rule import Distances, Rule, Sums
from fedpipe.errors import WeightsError
from fedpipe.weights import Layout, layout_of

_BLOCK = 2**17
"""Number of elements that are combined at a time: enough that threads seldom wait for each other's Python."""
_Span = tuple[str, int]
"""A tensor's name, and the first element of one of its blocks."""


def combine_arrays(
    updates: Sequence[Mapping[str, Array]], weights: Sequence[float], *, rule: Rule,
    base: Mapping[str, Array] | None = None,
) -> dict[str, Array]:  # fmt: skip
    """Combine updates that are held in memory.

    Args:
        updates: named arrays per learner, all with the same names, shapes and dtypes; floats must be finite.
        weights: positive, one per learner.
        rule: see `make_rule`. It combines any number of updates, also fewer than its guarantee needs.
        base: the weights that the updates began with, for rules that clip changes; zeros by default.

    Returns:
        Named arrays in the dtypes of the first update.

    Raises:
        WeightsError: names, shapes or dtypes differ, or the weights are not positive.
    """
    _check_alike(updates, weights)
    result = {name: np.empty(value.shape, value.dtype) for name, value in updates[0].items()}
    spans = [(name, start) for name, value in result.items() for start in range(0, value.size, _BLOCK)]
    workers = os.cpu_count() or 1
    mixture = None
    if isinstance(rule, Distances):
        base = base or {name: np.zeros(value.shape, value.dtype) for name, value in result.items()}
        with ThreadPoolExecutor(workers) as pool:
            found = rule.mixed(_geometry(updates, base if rule.from_base else None, pool), weights)
        counted, mixture = found.needed(updates)
        points = [*counted, base] if mixture.rows.shape[1] > len(counted) else counted
    else:
        counted = points = list(updates)
    flat = [{name: np.ascontiguousarray(value).reshape(-1) for name, value in point.items()} for point in points]

    def fill(span: _Span) -> None:
        name, start = span
        target = result[name].reshape(-1)[start : start + _BLOCK]
        if not is_float(target.dtype):
            target[...] = largest(_parts(flat[: len(counted)], span))
            return
        parts = _parts(flat, span)
        if isinstance(rule, Distances):
            assert mixture is not None
            target[...] = blended(parts, mixture, rule.then)
        elif isinstance(rule, Sums):
            target[...] = rule.finish(total(iter(parts), weights), float(sum(weights)))
        else:
            target[...] = rule.combined(parts, weights)

    hands = [spans[len(spans) * k // workers : len(spans) * (k + 1) // workers] for k in range(workers)]

    def fill_all(hand: list[_Span]) -> None:
        for span in hand:
            fill(span)

    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(fill_all, hands))
    return result


def _parts(flat: Sequence[Mapping[str, Array]], span: _Span) -> list[Array]:
    name, start = span
    return [update[name][start : start + _BLOCK] for update in flat]


def _geometry(
    updates: Sequence[Mapping[str, Array]], base: Mapping[str, Array] | None, pool: ThreadPoolExecutor
) -> Geometry:  # fmt: skip
    """Return the distances of updates, from the same blocks as those of updates in a store."""
    layout = layout_of(updates[0])
    chunks = [chunk for chunk in chunks_of(layout, piece_of(len(updates))) if chunk.is_float]

    def measured(chunk: Chunk) -> Geometry:
        values = [_block(update, layout, chunk) for update in updates]
        return measure(values, None if base is None else _block(base, layout, chunk))

    return summed(pool.map(measured, chunks), len(updates), from_base=base is not None)


def _block(update: Mapping[str, Array], layout: Layout, chunk: Chunk) -> Array:
    """Return a chunk of an update's file."""
    size, parts = chunk.dtype.itemsize, list[Array]()
    for tensor in layout.tensors:
        start, stop = max(tensor.start, chunk.start), min(tensor.stop, chunk.stop)
        if start < stop:
            values = np.ascontiguousarray(update[tensor.name]).reshape(-1)
            parts.append(values[(start - tensor.start) // size : (stop - tensor.start) // size])
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _check_alike(updates: Sequence[Mapping[str, Array]], weights: Sequence[float]) -> None:
    check_weights(weights)
    if not updates or len(updates) != len(weights):
        raise WeightsError(f"{len(updates)} updates with {len(weights)} weights")
    expected = {name: (value.shape, value.dtype) for name, value in updates[0].items()}
    for position, update in enumerate(updates):
        if {name: (value.shape, value.dtype) for name, value in update.items()} != expected:
            raise WeightsError(f"update {position} has other names, shapes or dtypes than the first")
