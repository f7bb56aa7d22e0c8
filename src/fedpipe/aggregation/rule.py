"""Rules: several learners' values, coordinate by coordinate, to one."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

from fedpipe.errors import WeightsError

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]
Rule = Callable[[Iterable[Array], Sequence[float], Sequence[int], Collection[int]], Floats]
"""Flat arrays of one length in the order of their places, their weights and places, to float64 of that length.

The last argument names the positions of arrays that are weighted sums of several learners already.
"""

BLOCK = 3 * 2**15
"""Elements that are combined at a time: two float64 arrays of a block fit the second-level cache of a core."""


def total(
    values: Iterable[Array], weights: Sequence[float], places: Sequence[int] = (), summed: Collection[int] = ()
) -> Floats:
    """Weighted sum in float64, added up in the binary tree over the places.

    Equal inputs give equal bits: whoever has the sum of a whole subtree can give that instead of its arrays. The error
    grows with the logarithm of their number (Higham, "The Accuracy of Floating Point Summation", 1993, section 3).

    Args:
        values: one flat array per learner, each of the same length; taken one at a time.
        weights: positive, one per array.
        places: positions of the learners, increasing; 0, 1, 2, ... by default.
        summed: positions of arrays that are weighted sums of a subtree, in float64, at the place of its first learner.
    """
    check_weights(weights)
    stack: list[tuple[int, Floats]] = []
    spare: list[Floats] = []
    for position, (value, weight) in enumerate(zip(values, weights, strict=True)):
        place = places[position] if places else position
        while len(stack) > 1 and level(stack[-2][0], stack[-1][0]) < level(stack[-1][0], place):
            free = _merged(stack)
            spare += [free] if free.flags.writeable else []
        if position in summed:
            stack.append((place, value))
            continue
        # Casting first is faster than a ufunc over mixed dtypes, which casts in small buffers.
        part = spare.pop() if spare else np.empty(value.shape, np.float64)
        np.copyto(part, value, casting="unsafe")
        if weight != 1:
            np.multiply(part, weight, out=part)
        stack.append((place, part))
    if not stack:
        raise WeightsError("there is nothing to average")
    while len(stack) > 1:
        _merged(stack)
    result = stack[0][1]
    return result if result.flags.writeable else result.copy()


def level(left: int, right: int) -> int:
    """The height of the lowest subtree that holds both places.

    >>> [level(0, 1), level(2, 3), level(1, 2), level(0, 7)]
    [1, 1, 2, 3]
    """
    return (left ^ right).bit_length()


def _merged(stack: list[tuple[int, Floats]]) -> Floats:
    """Adds the last sum to the one before it; returns the array that is free now."""
    (place, left), (_, right) = stack[-2:]
    if not left.flags.writeable:  # the bytes of a file; a sum does not depend on the order of two
        left, right = (right, left) if right.flags.writeable else (left.copy(), right)
    np.add(left, right, out=left)
    stack[-2:] = [(place, left)]
    return right


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


def average(updates: Sequence[Mapping[str, Array]], weights: Sequence[float], *, rule: Rule) -> dict[str, Array]:
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
    weights = [1.0] * len(weights) if len(set(weights)) == 1 else weights
    places = range(len(weights))
    result = {name: np.empty(value.shape, value.dtype) for name, value in updates[0].items()}

    def fill(name: str, start: int) -> None:
        parts = [np.ascontiguousarray(u[name]).reshape(-1)[start : start + BLOCK] for u in updates]
        target = result[name].reshape(-1)[start : start + BLOCK]
        target[...] = rule(parts, weights, places, ()) if is_float(target.dtype) else largest(parts)

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
