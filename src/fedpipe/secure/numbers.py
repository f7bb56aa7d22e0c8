r"""Fixed-point numbers: floats as integers modulo a power of two, whose sums are exact in any order.

A value x is clipped to [-B, B] and rounded at random to one of 2^b points, so that its mean does not change:

.. math:: q = \lfloor (x + B) / s + u \rfloor, \quad s = 2B / (2^b - 1), \quad u \sim U[0, 1)

The sum over m parties is below m 2^b. The modulus 2^k has room for all parties, so nothing overflows.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fedpipe.errors import WeightsError

Words = npt.NDArray[Any]
"""Unsigned integers of 32 or 64 bits, modulo a power of two."""
Floats = npt.NDArray[np.float64]

EDGES = tuple(2.0 ** (place // 4 - 8) * (1 + place % 4 / 4) for place in range(4 * 16 + 1))
"""Magnitudes, relative to the bound, that divide values into classes: four in each octave."""
_AT_ONCE = 2**13
"""Numbers that are packed at a time: the memory of larger ones would be returned to the system each time."""
_LOWEST = (1023 - 8) << 2
"""The leading bits of the first of EDGES."""
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
    output = bytearray(packed_size(words.size, width))
    pack_into(memoryview(output), words, width)
    return bytes(output)


def pack_into(output: memoryview, words: Words, width: int) -> None:
    """Write words modulo 2^width as bytes, `width` bits each, in little-endian order.

    Args:
        output: `packed_size` bytes of memory.
        words: a multiple of GROUP of them.
        width: a multiple of 4 up to 32, or of 8 up to 64.
    """
    numbers, each = words.view("<u8"), width // (8 if width > 32 else 4)
    rows = np.frombuffer(output, _pieces(each))
    for start in range(0, numbers.size, _AT_ONCE):
        several = _paired(numbers[start : start + _AT_ONCE], width)
        for name, part in _parts(rows, several):
            rows[name][start : start + _AT_ONCE] = part.copy()  # faster than between two strides


def _paired(numbers: Words, width: int) -> Words:
    """Return numbers with their leading bits removed; of words of 32 bits, two are joined in each."""
    low = np.uint64(2**width - 1)
    if width > 32:
        return numbers & low
    joined = numbers >> np.uint64(32 - width)
    joined &= low << np.uint64(width)
    joined |= numbers & low
    return joined


def unpack(data: bytes, width: int, dtype: np.dtype[Any]) -> Words:
    """Return the words in packed bytes; see `pack`."""
    rows = np.frombuffer(data, _pieces(width // (8 if width > 32 else 4)))
    numbers = np.zeros(rows.size, "<u8")
    for name, part in _parts(rows, numbers):
        part[:] = rows[name]
    if width <= 32:
        high = numbers >> np.uint64(width)
        high <<= np.uint64(32)
        numbers &= np.uint64(2**width - 1)
        numbers |= high
    return numbers.view(dtype)


def _parts(rows: npt.NDArray[Any], numbers: Words) -> Iterator[tuple[str, Words]]:
    """Yield the pieces of numbers by name, each as a view of all numbers."""
    for name, (kind, place, *_) in (rows.dtype.fields or {}).items():
        yield name, numbers.view(kind)[place // kind.itemsize :: 8 // kind.itemsize]


@functools.cache
def _pieces(size: int) -> np.dtype[Any]:
    """Return the dtype of a number of so many bytes, in pieces of 8, 4, 2 and 1."""
    pieces, left = list[tuple[str, str]](), size
    for piece in (8, 4, 2, 1):
        if left >= piece:
            pieces.append((f"bytes{piece}", f"<u{piece}"))
            left -= piece
    return np.dtype(pieces)


def packed_size(count: int, width: int) -> int:
    """Return the bytes of so many packed words."""
    return count * width // 8
