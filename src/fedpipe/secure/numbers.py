r"""Fixed-point numbers: floats as integers modulo a power of two, whose sums are exact in any order.

A value x is clipped to [-B, B] and rounded at random to one of 2^b points, so that its mean does not change:

.. math:: q = \lfloor (x + B) / s + u \rfloor, \quad s = 2B / (2^b - 1), \quad u \sim U[0, 1)

The sum over m parties is below m 2^b. The modulus 2^k has room for all parties, so nothing overflows.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fedpipe.errors import WeightsError

Words = npt.NDArray[Any]
"""Unsigned integers of 32 or 64 bits, modulo a power of two."""
Floats = npt.NDArray[np.float64]

EDGES = tuple(2.0 ** (place // 4 - 8) * (1 + place % 4 / 4) for place in range(4 * 16 + 1))
"""Magnitudes, relative to the bound, that divide values into classes: four in each octave."""
_AT_ONCE = 2**15
"""Numbers that are packed at a time, so that their factors stay in a cache."""
_LOWEST = (1023 - 8) << 2
"""The leading bits of the first of EDGES."""
SPARE = 8
"""Bytes behind packed words that may be written over."""
GROUP = 8
"""Each part of a vector begins at a multiple of so many words: whole bytes when packed, whole blocks of the cipher."""


class Grid(NamedTuple):
    """The points that values are rounded to.

    Args:
        bits: of a value, 8 to 32.
        bound: the largest magnitude.
        parties: the most that may take part.
    """

    bits: int
    bound: float
    parties: int

    @property
    def _top(self) -> int:
        """The highest point."""
        return (1 << self.bits) - 1

    @property
    def width(self) -> int:
        """The bits of a sum, k: so many that pairs of sums, or single ones above 32 bits, are whole bytes."""
        needed = (self.parties * self._top).bit_length()
        return needed + -needed % (4 if needed <= 32 else 8)

    @property
    def step(self) -> float:
        """The distance of two points, s."""
        return 2 * self.bound / self._top

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of words."""
        return np.dtype("<u4") if self.width <= 32 else np.dtype("<u8")

    def encode(self, values: Floats, random: np.random.Generator) -> tuple[Words, int]:
        """Round values to the grid, and return how many were clipped.

        Raises:
            WeightsError: a value is NaN or infinite.
        """
        largest = max(-float(values.min(initial=0.0)), float(values.max(initial=0.0)))
        if not math.isfinite(largest):
            raise WeightsError("a value is NaN or infinite, which no sum can hold")
        clipped = int(np.count_nonzero(np.abs(values) > self.bound)) if largest > self.bound else 0
        scaled = values / self.step
        scaled += self.bound / self.step
        scaled += random.random(scaled.shape)
        np.clip(scaled, 0, self._top, out=scaled)  # also clips the values themselves
        return scaled.astype(self.dtype), clipped

    def magnitudes(self, values: Floats) -> npt.NDArray[np.int64]:
        """Count the values other than zero by their magnitude: below each of EDGES, and from the last one on."""
        found = np.abs(values[values != 0.0])
        found /= self.bound
        places = found.view(np.int64) >> 50  # the exponent, and two bits of the fraction: four classes in each octave
        places -= _LOWEST - 1
        np.clip(places, 0, len(EDGES), out=places)
        return np.bincount(places, minlength=len(EDGES) + 1)

    def decode(self, sums: Words, parties: int) -> Floats:
        """Return the sums of the values of so many parties."""
        return sums.astype(np.float64) * self.step - parties * self.bound

    def limbs_of(self, number: int, bits: int) -> list[int]:
        """Return a number in pieces of the grid's bits, the lowest first, so that sums of pieces do not overflow.

        Args:
            number: below 2^bits.
            bits: of the largest number.

        Raises:
            WeightsError: it is negative or too large.
        """
        if not 0 <= number < 2**bits:
            raise WeightsError(f"a number of the round is out of range: {number}")
        return [number >> shift & self._top for shift in range(0, bits, self.bits)]

    def joined(self, limbs: Words) -> int:
        """Return the sum of numbers from the sums of their pieces."""
        return sum(int(limb) << self.bits * place for place, limb in enumerate(limbs))


def quantile_of(counts: Sequence[int], quantile: float) -> float:
    """Return the magnitude, relative to the bound, that a share of the counted values does not exceed.

    It is one of EDGES, so it is at most a quarter too large. Beyond the last edge it is four times that.

    >>> quantile_of([0] * 32 + [9, 1] + [0] * 32, 0.9)
    1.0
    """
    needed, found = quantile * sum(counts), 0
    for count, edge in zip(counts, (*EDGES, 4 * EDGES[-1]), strict=True):
        found += count
        if found >= needed:
            return edge
    return 4 * EDGES[-1]


def padded(count: int) -> int:
    """Return a number of words rounded up to a whole GROUP."""
    return count + -count % GROUP


def pack(words: Words, width: int) -> bytes:
    """Return words modulo 2^width as bytes; see `pack_into`."""
    output = memoryview(bytearray(packed_size(words.size, width) + SPARE))
    pack_into(output, words.copy(), width)
    return bytes(output[:-SPARE])


def pack_into(output: memoryview, words: Words, width: int) -> None:
    """Write words modulo 2^width as bytes, `width` bits each, in little-endian order.

    Args:
        output: `packed_size` bytes of memory, and SPARE behind them that are written over too.
        words: a multiple of GROUP of them, which are written over.
        width: a multiple of 4 up to 32, or of 8 up to 64.
    """
    numbers = words.view("<u8")
    rows = _rows(output, numbers.size, width)
    for start in range(0, numbers.size, _AT_ONCE):
        several = numbers[start : start + _AT_ONCE]
        if width <= 32:
            _pair(several, width)
        rows[start : start + _AT_ONCE] = several


def _rows(data: memoryview, count: int, width: int) -> Words:
    """Return packed numbers as eight bytes each, of which the last belong to the next number.

    NumPy writes them in their order, so each number replaces what the one before it wrote too far.
    """
    return np.ndarray((count,), "<u8", data, strides=(width // (8 if width > 32 else 4),))


def _pair(numbers: Words, width: int) -> None:
    """Turn pairs of words of 32 bits into numbers whose low bits are both words modulo 2^width, in place."""
    words = numbers.view("<u4")
    words *= _factors(width)[: words.size]
    numbers >>= np.uint64(32 - width)


@functools.cache
def _factors(width: int) -> Words:
    """Return factors that move the first word of each pair to its leading bits, and leave the second."""
    return np.tile(np.array([2 ** (32 - width), 1], "<u4"), _AT_ONCE)


def unpack(data: bytes, width: int, dtype: np.dtype[Any]) -> Words:
    """Return the words in packed bytes; see `pack`."""
    count = len(data) * 8 // width
    rows = _rows(memoryview(data + bytes(SPARE)), count if width > 32 else count // 2, width)
    low = np.uint64(2**width - 1)
    numbers = rows & low
    if width <= 32:
        second = rows << np.uint64(32 - width)
        second &= low << np.uint64(32)
        numbers |= second
    return numbers.view(dtype)


def packed_size(count: int, width: int) -> int:
    """Return the bytes of so many packed words."""
    return count * width // 8
