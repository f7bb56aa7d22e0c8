"""Arithmetic on several learners' values that gives the same bits on every machine and in any order of arrival."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fedpipe.errors import WeightsError

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]
Watch = Callable[[int, int, Floats], None]
"""Takes the position of an array, the first of some of its elements, and these elements."""

ADDED = 2**15
"""Number of elements that are added up at a time: all float64 sums that wait in the tree fit the cache of a core."""
_SQUARED = 2**13
"""Number of elements whose squares make one sum."""
_TOGETHER = 2**18
"""Number of elements that are subtracted at a time: few enough for a cache, and enough that threads seldom wait."""


def is_float(dtype: np.dtype[Any]) -> bool:
    """Return whether a rule combines this dtype, which includes the small floats of ml_dtypes."""
    return dtype.kind == "f" or dtype.name.startswith(("bfloat", "float8"))


def check_weights(weights: Sequence[float]) -> None:
    """Raise WeightsError unless every weight is positive and finite."""
    if not all(np.isfinite(w) and w > 0 for w in weights):
        raise WeightsError(f"weights must be positive and finite: {list(weights)}")


def largest(values: Iterable[Array]) -> Array:
    """Return the largest value of each coordinate: the rule of all counters."""
    result: Array | None = None
    for value in values:
        result = value.copy() if result is None else np.maximum(result, value, out=result)
    if result is None:
        raise WeightsError("there is nothing to compare")
    return result


def total(
    values: Iterable[Array], weights: Sequence[float], places: Sequence[int] = (), summed: Collection[int] = (),
    out: Floats | None = None, watch: Watch | None = None,
) -> Floats:  # fmt: skip
    """Return the weighted sum in float64, added up in the binary tree over the places.

    Equal inputs give equal bits, and the sum of a whole subtree may replace its arrays. The error grows with the
    logarithm of their number (Higham, "The Accuracy of Floating Point Summation", 1993, section 3).

    Args:
        values: one flat array per learner, each of the same length. An iterator's are taken one at a time, and whole.
        weights: positive, one per array.
        places: positions of the learners, increasing; 0, 1, 2, ... by default.
        summed: positions of arrays that are weighted sums of a subtree, in float64, at the place of its first learner.
        out: where the sum is written; a new array by default.
        watch: sees the values of each single update, before they are weighted.

    Raises:
        WeightsError: no values, or weights that are not positive and finite.
    """
    check_weights(weights)
    if not weights:
        raise WeightsError("there is nothing to add")
    spare, places = list[Floats](), places or range(len(weights))
    if not isinstance(values, Sequence) or (out is None and values[0].size <= ADDED):
        result = _total(values, weights, places, summed, spare, watch, 0)
        return result if result.flags.writeable else result.copy()
    result = np.empty(values[0].size) if out is None else out
    for start in range(0, result.size, ADDED):
        strip = slice(start, start + ADDED)
        result[strip] = _total((value[strip] for value in values), weights, places, summed, spare, watch, start)
    return result


def _total(
    values: Iterable[Array], weights: Sequence[float], places: Sequence[int], summed: Collection[int],
    spare: list[Floats], watch: Watch | None, start: int,
) -> Floats:  # fmt: skip
    """Return the sum of a strip, until the next one; `spare` are arrays for parts of it."""
    stack: list[tuple[int, Floats]] = []
    for position, (value, weight, place) in enumerate(zip(values, weights, places, strict=True)):
        while len(stack) > 1 and level(stack[-2][0], stack[-1][0]) < level(stack[-1][0], place):
            _merge(stack, spare)
        if position in summed:
            stack.append((place, value))
            continue
        # Casting first is faster than a ufunc over mixed dtypes, which casts in small buffers.
        part = (spare.pop() if spare else np.empty(value.size))[: value.size]
        np.copyto(part, value, casting="unsafe")
        if watch is not None:
            watch(position, start, part)
        if weight != 1:
            np.multiply(part, weight, out=part)
        stack.append((place, part))
    while len(stack) > 1:
        _merge(stack, spare)
    result = stack[0][1]
    spare += [result] if result.flags.writeable else []
    return result


def level(left: int, right: int) -> int:
    """Return the height of the lowest subtree that holds both places.

    >>> [level(0, 1), level(2, 3), level(1, 2), level(0, 7)]
    [1, 1, 2, 3]
    """
    return (left ^ right).bit_length()


def _merge(stack: list[tuple[int, Floats]], spare: list[Floats]) -> None:
    """Add the last sum to the one before it, and keep the array that is free now."""
    (place, left), (_, right) = stack[-2:]
    if not left.flags.writeable:  # the bytes of a file; a sum does not depend on the order of two
        left, right = (right, left) if right.flags.writeable else (left.copy(), right)
    np.add(left, right, out=left)
    stack[-2:] = [(place, left)]
    spare += [right] if right.flags.writeable else []


def add_distances(values: Sequence[Array], distances: Floats) -> None:
    r"""Add a block's part of the squared distance between each two learners to a symmetric matrix.

    .. math:: D_{ij} \leftarrow D_{ij} + \sum_c (x_{ic} - x_{jc})^2

    Differences are taken first, in float64: the shorter form with inner products cancels where updates are close. The
    sums are NumPy's own, for those of a BLAS depend on the machine.

    All rows are compared with those that come d later, for each d, after the first rows were written again behind the
    last. So an operation takes many rows.

    Args:
        values: one flat array per learner, each of the same length.
        distances: the matrix, which is changed.
    """
    count, length = len(values), values[0].size
    width = min(length, max(1, _TOGETHER // (count * _SQUARED)) * _SQUARED)
    rows, scratch = np.empty((count + count // 2, width)), np.empty((count, width))
    pairs = []
    for later in range(1, count // 2 + 1):  # in the middle of an even number, the second half meets the first again
        first = np.arange(count // 2 if 2 * later == count else count)
        pairs.append((first, (first + later) % count))
    found = [distances[pair] for pair in pairs]
    for start in range(0, length, width):
        size = min(width, length - start)
        for row, value in zip(rows, values, strict=False):
            np.copyto(row[:size], value[start : start + size], casting="unsafe")
        rows[count:, :size] = rows[: count // 2, :size]
        whole = size // _SQUARED * _SQUARED
        for later, sums in enumerate(found, 1):
            many = len(sums)
            apart = np.subtract(rows[later : later + many, :size], rows[:many, :size], out=scratch[:many, :size])
            np.multiply(apart, apart, out=apart)
            for part in apart[:, :whole].reshape(many, -1, _SQUARED).sum(axis=2).T:
                sums += part
            sums += apart[:, whole:].sum(axis=1)
    for (one, other), sums in zip(pairs, found, strict=True):
        distances[one, other] = distances[other, one] = sums
