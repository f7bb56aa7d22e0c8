"""Rules: several learners' values, coordinate by coordinate, to one."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

from fedpipe.errors import WeightsError

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]
Rule = Callable[[Iterable[Array], Sequence[float]], Floats]
"""Flat arrays of one length, one per learner in sorted order, and their weights, to float64 of that length."""

BLOCK = 3 * 2**15
"""Elements that are combined at a time: two float64 arrays of a block fit the second-level cache of a core."""


def mean(values: Iterable[Array], weights: Sequence[float]) -> Floats:
    """Weighted mean in float64.

    .. math:: \\bar w = \\frac{\\sum_k n_k w_k}{\\sum_k n_k}

    The sum runs over the learners in the given order, so that equal inputs give equal bits.

    Args:
        values: one flat array per learner, each of the same length; taken one at a time.
        weights: positive, one per learner.

    Returns:
        float64, the arrays' length.

    Raises:
        WeightsError: no values, or weights that are not positive and finite.

    Source: McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data", 2017,
    Algorithm 1.
    """
    check_weights(weights)
    uniform = len(set(weights)) == 1
    total: Floats | None = None
    part: Floats | None = None
    for value, weight in zip(values, weights, strict=True):
        # Casting first is faster than a ufunc over mixed dtypes, which casts in small buffers.
        if total is None:
            part = total = value.astype(np.float64)
        else:
            part = np.empty_like(total) if part is total or part is None else part
            np.copyto(part, value, casting="unsafe")
        if not uniform:
            np.multiply(part, weight, out=part)
        if part is not total:
            np.add(total, part, out=total)
    if total is None:
        raise WeightsError("there is nothing to average")
    total /= len(weights) if uniform else float(sum(weights))
    return total


def largest(values: Iterable[Array]) -> Array:
    """The largest value of each coordinate: the rule of all counters."""
    result: Array | None = None
    for value in values:
        result = value.copy() if result is None else np.maximum(result, value, out=result)
    if result is None:
        raise WeightsError("there is nothing to compare")
    return result


def check_weights(weights: Sequence[float]) -> None:
    """Raises WeightsError unless every weight is positive and finite."""
    if not all(np.isfinite(w) and w > 0 for w in weights):
        raise WeightsError(f"weights must be positive and finite: {list(weights)}")


def average(updates: Sequence[Mapping[str, Array]], weights: Sequence[float], *, rule: Rule = mean) -> dict[str, Array]:
    """Combines updates that are held in memory.

    Args:
        updates: named arrays per learner, all with the same names, shapes and dtypes.
        weights: positive, one per learner.
        rule: one of RULES.

    Returns:
        Named arrays in the dtypes of the first update.

    Raises:
        WeightsError: names, shapes or dtypes differ, or the weights are not positive.
    """
    _check_alike(updates, weights)
    result = {name: np.empty(value.shape, value.dtype) for name, value in updates[0].items()}

    def fill(name: str, start: int) -> None:
        parts = [np.ascontiguousarray(u[name]).reshape(-1)[start : start + BLOCK] for u in updates]
        target = result[name].reshape(-1)[start : start + BLOCK]
        target[...] = rule(parts, weights) if is_float(target.dtype) else largest(parts)

    spans = [(name, start) for name, value in result.items() for start in range(0, value.size, BLOCK)]
    workers = os.cpu_count() or 1
    hands = [spans[len(spans) * k // workers : len(spans) * (k + 1) // workers] for k in range(workers)]

    def fill_all(hand: list[tuple[str, int]]) -> None:
        for span in hand:
            fill(*span)

    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(fill_all, hands))
    return result


def _check_alike(updates: Sequence[Mapping[str, Array]], weights: Sequence[float]) -> None:
    check_weights(weights)
    if not updates or len(updates) != len(weights):
        raise WeightsError(f"{len(updates)} updates with {len(weights)} weights")
    expected = {name: (value.shape, value.dtype) for name, value in updates[0].items()}
    for position, update in enumerate(updates):
        if {name: (value.shape, value.dtype) for name, value in update.items()} != expected:
            raise WeightsError(f"update {position} has other names, shapes or dtypes than the first")


def is_float(dtype: np.dtype[Any]) -> bool:
    """True for every dtype that is averaged, the small floats of ml_dtypes too."""
    return dtype.kind == "f" or dtype.name.startswith(("bfloat", "float8"))


RULES: dict[str, Rule] = {"mean": mean}
