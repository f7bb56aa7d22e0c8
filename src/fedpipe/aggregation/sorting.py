"""Values of each coordinate in order, for rules of columns.

Few arrays are sorted by a network of minima and maxima, which work on many coordinates at once. A network for n arrays
has about n (log n)^2 / 4 comparators. Those that no wanted rank depends on are left out.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

from fedpipe.aggregation.arithmetic import Array, Floats

_STRIP = 2**13
"""Number of coordinates that are sorted at a time."""
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
    dtype = np.float64 if values[0].dtype == np.float64 else np.float32
    length = values[0].size
    result = [np.empty(length, dtype) for _ in range(low, high)]
    for start in range(0, length, _STRIP):
        strip = slice(start, min(start + _STRIP, length))
        held = [np.array(value[strip], dtype) for value in values]
        ordered = _by_network(held, low, high) if len(held) <= _MOST_IN_NETWORK else _by_sorting(held, low, high)
        for target, found in zip(result, ordered, strict=True):
            target[strip] = found
    return result


def median_of(values: Sequence[Array]) -> Floats:
    """Return the median of each coordinate in float64; of an even number, the mean of the two in the middle."""
    count = len(values)
    middle = ranked(values, (count - 1) // 2, count // 2 + 1)
    if len(middle) == 1:
        return _plain(middle[0].astype(np.float64))
    low, high = (part.astype(np.float64) for part in middle)
    low *= 0.5  # before they are added, for the sum of two may overflow
    high *= 0.5
    low += high
    return _plain(low)


def mean_of(ordered: Sequence[Array]) -> Floats:
    """Return the mean of arrays in float64, added in their order."""
    total = ordered[0].astype(np.float64)
    for part in ordered[1:]:
        total += part
    total /= len(ordered)
    return _plain(total)


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
