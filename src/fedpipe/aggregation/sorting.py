"""Values of each coordinate in order, for rules of columns.

Few arrays are sorted by a network of minima and maxima, which work on many coordinates at once. A network for n arrays
has about n (log n)^2 / 4 comparators. Those that no wanted rank depends on are left out.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence

import numpy as np

from fedpipe.aggregation.arithmetic import Array, Floats

_STRIP = 2**15
"""Number of coordinates that are sorted at a time: few enough for a cache, and enough that threads seldom wait."""
_MOST_IN_NETWORK = 64
"""Most arrays that are sorted by a network; more are sorted one coordinate after the other."""


def ranked(values: Sequence[Array], low: int, high: int) -> list[Array]:
    """Return the values of ranks [low, high) of each coordinate, in ascending order.

    Args:
        values: one flat array per learner, each of the same length and dtype, all finite.
        low: the first rank, from 0.
        high: behind the last rank.

    Returns:
        One array per rank: float64 for float64, else float32, which holds all smaller floats.
    """
    strips = [ordered for _, ordered in _strips(values, low, high)]
    return [np.concatenate(parts) for parts in zip(*strips, strict=True)]


def median_of(values: Sequence[Array]) -> Floats:
    """Return the median of each coordinate in float64; of an even number, the mean of the two in the middle."""
    count, result = len(values), np.empty(values[0].size)
    for strip, middle in _strips(values, (count - 1) // 2, count // 2 + 1):
        low, high = middle[0].astype(np.float64), middle[-1].astype(np.float64)
        result[strip] = low * 0.5 + high * 0.5  # halved before they are added, for the sum of two may overflow
    return _plain(result)


def mean_between(values: Sequence[Array], low: int, high: int) -> Floats:
    """Return the mean of the ranks [low, high) of each coordinate in float64, added in ascending order."""
    result = np.zeros(values[0].size)
    for strip, ordered in _strips(values, low, high):
        total = result[strip]
        for part in ordered:
            total += part
    result /= high - low
    return _plain(result)


def _strips(values: Sequence[Array], low: int, high: int) -> Iterator[tuple[slice, list[Array]]]:
    """Yield some coordinates at a time, with their values in order."""
    dtype, length = np.float64 if values[0].dtype == np.float64 else np.float32, values[0].size
    order = _by_network if len(values) <= _MOST_IN_NETWORK else _by_sorting
    for start in range(0, max(1, length), _STRIP):
        strip = slice(start, min(start + _STRIP, length))
        yield strip, order([np.array(value[strip], dtype) for value in values], low, high)


def _plain(values: Floats) -> Floats:
    """Replace -0.0 by 0.0: which of the two a minimum returns depends on the machine."""
    values += 0.0
    return values


def _by_network(held: list[Array], low: int, high: int) -> list[Array]:
    spare = np.empty_like(held[0])
    for first, second, wants_low, wants_high in network(len(held), low, high):
        left, right = held[first], held[second]
        if wants_low and wants_high:
            np.minimum(left, right, out=spare)
            np.maximum(left, right, out=right)
            held[first], spare = spare, left
        elif wants_low:
            np.minimum(left, right, out=left)
        else:
            np.maximum(left, right, out=right)
    return held[low:high]


def _by_sorting(held: list[Array], low: int, high: int) -> list[Array]:
    ordered = np.sort(np.stack(held, axis=1), axis=1)
    return [ordered[:, rank] for rank in range(low, high)]


@functools.lru_cache(maxsize=64)
def network(count: int, low: int, high: int) -> tuple[tuple[int, int, bool, bool], ...]:
    """Return the comparators that put the ranks [low, high) of `count` values in their places.

    Each has two places, and whether the smaller and the larger value is needed later.

    Source: Batcher's odd-even merging, as Knuth, "The Art of Computer Programming", volume 3, section 5.2.2,
    Algorithm M.

    >>> network(2, 0, 2), network(3, 1, 2)
    (((0, 1, True, True),), ((0, 2, True, True), (0, 1, False, True), (1, 2, True, False)))
    """
    pairs: list[tuple[int, int]] = []
    top = 1 << max(0, (count - 1).bit_length() - 1)
    step = top
    while step > 0 and count > 1:
        other, residue, distance = top, 0, step
        while True:
            pairs += [(i, i + distance) for i in range(count - distance) if i & step == residue]
            if other == step:
                break
            distance, other, residue = other - step, other >> 1, step
        step >>= 1
    wanted, kept = set(range(low, high)), list[tuple[int, int, bool, bool]]()
    for first, second in reversed(pairs):
        wants_low, wants_high = first in wanted, second in wanted
        if wants_low or wants_high:
            kept.append((first, second, wants_low, wants_high))
            wanted |= {first, second}
    return tuple(reversed(kept))
