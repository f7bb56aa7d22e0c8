"""Histograms whose bins are multiples of a power of two, so that those of several learners add up exactly.

The bins of width 2^e are the intervals [i 2^e, (i + 1) 2^e), for whole numbers i. Two bins of one width are a bin of
the next. A histogram has the smallest e for which its values fit in SPAN bins. So the sum of histograms is the
histogram of all values together, however they were split.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Annotated

import numpy as np
import numpy.typing as npt
from msgspec import Meta, Struct

SPAN = 64
"""Most bins of a histogram."""
FINEST, COARSEST = -120, 340
"""Bounds of the exponent; finer differences are not resolved."""
_SMALLEST = 2.0**-700
"""Smaller values are taken for 0, so that dividing by a width never underflows."""

Floats = npt.NDArray[np.float64]
Count = Annotated[int, Meta(ge=0, le=2**53)]
Real = Annotated[float, Meta(ge=-1e100, le=1e100)]
Size = Annotated[float, Meta(ge=0, le=1e200)]


class Histogram(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Counts of values in bins of width 2^exponent, and the sums of a second number over the values of each bin.

    Bin k holds values in [(first + k) 2^exponent, (first + k + 1) 2^exponent).
    """

    exponent: Annotated[int, Meta(ge=FINEST, le=COARSEST)]
    first: Annotated[int, Meta(ge=-(2**62), le=2**62)]
    counts: Annotated[tuple[Count, ...], Meta(max_length=SPAN)]
    sums: Annotated[tuple[Real, ...], Meta(max_length=SPAN)] = ()
    squares: Annotated[tuple[Size, ...], Meta(max_length=SPAN)] = ()

    @property
    def width(self) -> float:
        """The width of a bin."""
        return math.ldexp(1.0, self.exponent)

    @property
    def edges(self) -> list[float]:
        """The lower bound of each bin, and the upper bound of the last."""
        return [math.ldexp(self.first + k, self.exponent) for k in range(len(self.counts) + 1)]

    @property
    def count(self) -> int:
        """The number of values."""
        return sum(self.counts)


def histogram_of(values: Floats, seconds: Floats | None = None) -> Histogram:
    """Count values in bins.

    Args:
        values: finite, at least one, (values,).
        seconds: numbers whose sums and sums of squares are wanted by bin, (values,).
    """
    values = np.where(np.abs(values) < _SMALLEST, 0.0, values)
    low, high = float(values.min()), float(values.max())
    exponent = _exponent(low, high)
    first, last = _bin(low, exponent), _bin(high, exponent)
    at = (np.floor(np.ldexp(values, -exponent)) - first).astype(np.int64)
    size = last - first + 1
    more: dict[str, tuple[float, ...]] = {}
    if seconds is not None:
        more = {
            "sums": tuple(np.bincount(at, seconds, size).tolist()),
            "squares": tuple(np.bincount(at, seconds * seconds, size).tolist()),
        }
    return Histogram(exponent=exponent, first=first, counts=tuple(np.bincount(at, minlength=size).tolist()), **more)


def _bin(value: float, exponent: int) -> int:
    return math.floor(math.ldexp(value, -exponent))


def _exponent(low: float, high: float) -> int:
    """Return the smallest exponent for which the bins of both values span at most SPAN bins, and fit in a float."""
    size = max(abs(low), abs(high))
    exponent = max(FINEST, math.frexp(size)[1] - 53) if size else FINEST
    if high > low:
        exponent = max(exponent, math.frexp(high - low)[1] - 7)
    while _bin(high, exponent) - _bin(low, exponent) >= SPAN:
        exponent += 1
    return exponent


def add_histograms(parts: Sequence[Histogram]) -> Histogram:
    """Return the histogram of all values together.

    >>> one, two = histogram_of(np.array([0.0, 1.0])), histogram_of(np.array([5.0, 300.0]))
    >>> add_histograms([one, two]) == histogram_of(np.array([0.0, 1.0, 5.0, 300.0]))
    True
    """
    return _merged(parts, SPAN)


def coarsened(part: Histogram, most: int) -> Histogram:
    """Return a histogram of the same values with at most so many bins, for a picture."""
    return _merged([part], most)


def _merged(parts: Sequence[Histogram], most: int) -> Histogram:
    exponent = max(part.exponent for part in parts)
    while True:
        bounds = [_span(part, exponent) for part in parts]
        first, last = min(low for low, _ in bounds), max(high for _, high in bounds)
        if last - first < max(2, most):  # zero is always an edge, so two bins may be the fewest
            break
        exponent += 1
    counts, sums, squares = [0] * (last - first + 1), [0.0] * (last - first + 1), [0.0] * (last - first + 1)
    for part in parts:
        for k, count in enumerate(part.counts):
            at = ((part.first + k) >> (exponent - part.exponent)) - first
            if not count:
                continue
            counts[at] += count
            if part.sums:
                sums[at] += part.sums[k]
                squares[at] += part.squares[k]
    summed = all(part.sums for part in parts)
    return Histogram(
        exponent=exponent, first=first, counts=tuple(counts),
        sums=tuple(sums) if summed else (), squares=tuple(squares) if summed else (),
    )  # fmt: skip


def _span(part: Histogram, exponent: int) -> tuple[int, int]:
    shift = exponent - part.exponent
    return part.first >> shift, (part.first + len(part.counts) - 1) >> shift


def is_canonical(part: Histogram, *, summed: bool) -> bool:
    """Return whether a histogram of another party is as `histogram_of` makes it: no empty ends, sums where wanted."""
    sizes = {len(part.sums), len(part.squares)}
    furthest = max(abs(part.first), abs(part.first + len(part.counts))) << (part.exponent - FINEST)
    return bool(
        furthest <= 1 << (COARSEST - FINEST)
        and part.counts and part.counts[0] and part.counts[-1] and sizes == {len(part.counts) if summed else 0}
        and all(count or not sums for count, sums in zip(part.counts, part.sums, strict=False))
    )  # fmt: skip


def add_counts(rows: Iterable[Sequence[int]]) -> tuple[int, ...]:
    """Return the sums of counts, position by position."""
    return tuple(sum(counts) for counts in zip(*rows, strict=True))
