"""Aggregation of updates that are held in memory: to try a rule, and to compare it with others."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from fedpipe.aggregation.arithmetic import BLOCK, Array, add_distances, check_weights, is_float, largest, total
from fedpipe.aggregation.rule import Distances, Rule, Sums
from fedpipe.errors import WeightsError

_Span = tuple[str, int]
"""A tensor's name, and the first element of one of its blocks."""


def combine_arrays(updates: Sequence[Mapping[str, Array]], weights: Sequence[float], *, rule: Rule) -> dict[str, Array]:
    """Combine updates that are held in memory.

    Args:
        updates: named arrays per learner, all with the same names, shapes and dtypes; floats must be finite.
        weights: positive, one per learner.
        rule: see `make_rule`.

    Returns:
        Named arrays in the dtypes of the first update.

    Raises:
        WeightsError: names, shapes or dtypes differ, or the weights are not positive.
    """
    _check_alike(updates, weights)
    result = {name: np.empty(value.shape, value.dtype) for name, value in updates[0].items()}
    spans = [(name, start) for name, value in result.items() for start in range(0, value.size, BLOCK)]
    if isinstance(rule, Distances):
        shares = rule.weighed(_distances(updates, [s for s in spans if is_float(result[s[0]].dtype)]), weights)
        counted = [k for k, share in enumerate(shares) if share > 0]
        updates, weights, rule = [updates[k] for k in counted], [shares[k] for k in counted], rule.then
    last = rule

    def fill(span: _Span) -> None:
        parts, (name, start) = _parts(updates, span), span
        target = result[name].reshape(-1)[start : start + BLOCK]
        if not is_float(target.dtype):
            target[...] = largest(parts)
        elif isinstance(last, Sums):
            target[...] = last.finish(total(parts, weights), float(sum(weights)))
        else:
            target[...] = last.combined(parts, weights)

    workers = os.cpu_count() or 1
    hands = [spans[len(spans) * k // workers : len(spans) * (k + 1) // workers] for k in range(workers)]

    def fill_all(hand: list[_Span]) -> None:
        for span in hand:
            fill(span)

    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(fill_all, hands))
    return result


def _parts(updates: Sequence[Mapping[str, Array]], span: _Span) -> list[Array]:
    name, start = span
    return [np.ascontiguousarray(u[name]).reshape(-1)[start : start + BLOCK] for u in updates]


def _distances(updates: Sequence[Mapping[str, Array]], spans: list[_Span]) -> Array:
    distances = np.zeros((len(updates), len(updates)))
    for span in spans:
        add_distances(_parts(updates, span), distances)
    return distances


def _check_alike(updates: Sequence[Mapping[str, Array]], weights: Sequence[float]) -> None:
    check_weights(weights)
    if not updates or len(updates) != len(weights):
        raise WeightsError(f"{len(updates)} updates with {len(weights)} weights")
    expected = {name: (value.shape, value.dtype) for name, value in updates[0].items()}
    for position, update in enumerate(updates):
        if {name: (value.shape, value.dtype) for name, value in update.items()} != expected:
            raise WeightsError(f"update {position} has other names, shapes or dtypes than the first")
