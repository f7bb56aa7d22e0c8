"""The vector of a secure sum: the changes of all floats, and counts and metrics as whole numbers.

Each tensor begins at a multiple of GROUP words. Counters and other tensors without floats are not in it; they keep the
values of the base. The numbers come last: train examples, test examples, clipped values, and each metric's sum over
examples and their number. If the bound follows the magnitudes of values, these are counted too.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from fedpipe.errors import WeightsError
from fedpipe.secure.masks import CHUNK
from fedpipe.secure.messages import TEST
from fedpipe.secure.numbers import EDGES, Floats, Grid, Words, packed_size, padded
from fedpipe.weights import FLOATS, Array, Layout, Tensor

COUNT = 53
"""Bits of a number of examples or values."""
METRIC = 108
"""Bits of a metric times examples: 30 before the point, 24 behind it, 53 of the examples, and the sign."""
_LARGEST = 2.0**30
_POINT = 24
_ZERO = 1 << METRIC - 1


class Counts(NamedTuple):
    """Numbers of a learner, or of all members together.

    Args:
        examples: of the train part.
        tested: examples of the test part.
        clipped: values that were clipped.
        metrics: means over the examples, or over test examples if the name begins with TEST. Those of a learner may be
            infinite or NaN: it does not count in them. Of all, they have more than half of the examples behind them.
        magnitudes: values in each class of `Grid.magnitudes`; empty where the bound does not follow them.
    """

    examples: int
    tested: int
    clipped: int
    metrics: Mapping[str, float]
    magnitudes: tuple[int, ...] = ()


class Vector(NamedTuple):
    """The form of a vector.

    Args:
        grid: of its values.
        layout: of the weights.
        metrics: the names of the metrics, sorted.
        follows: whether the values are counted by their magnitude too.
    """

    grid: Grid
    layout: Layout
    metrics: tuple[str, ...]
    follows: bool = False

    @property
    def tensors(self) -> list[Tensor]:
        """The tensors whose changes are summed."""
        return [tensor for tensor in self.layout.tensors if tensor.dtype in FLOATS]

    @property
    def values(self) -> int:
        """The number of values, without the words that fill groups."""
        return sum(math.prod(tensor.shape) for tensor in self.tensors)

    @property
    def size(self) -> int:
        """The number of words."""
        return sum(padded(math.prod(tensor.shape)) for tensor in self.tensors) + padded(sum(self._limbs))

    @property
    def bytes(self) -> int:
        """The bytes of a packed vector."""
        return packed_size(self.size, self.grid.width)

    @property
    def _limbs(self) -> list[int]:
        """The words of each number."""
        bits = [COUNT] * (3 + self._classes) + [METRIC, COUNT] * len(self.metrics)
        return [-(-bit // self.grid.bits) for bit in bits]

    @property
    def _classes(self) -> int:
        return len(EDGES) + 1 if self.follows else 0

    def encode(
        self, base: Mapping[str, Array], new: Mapping[str, Array], factor: float, counts: Counts,
        random: np.random.Generator,
    ) -> Iterator[Words]:  # fmt: skip
        """Yield the vector in chunks, as `Masks.write` takes them.

        Args:
            base: the weights from which the training began.
            new: the trained weights.
            factor: of each change, at most 1 in the mean.
            counts: of the learner; clipped values and magnitudes are counted here.
            random: rounds the values.

        Raises:
            WeightsError: a weight is NaN or infinite, or the tensors are not those of the layout.
        """
        clipped, magnitudes = 0, np.zeros(self._classes, np.int64)
        for tensor in self.tensors:
            first, second = base[tensor.name].reshape(-1), new[tensor.name].reshape(-1)
            for start in range(0, first.size, CHUNK):
                stop = min(start + CHUNK, first.size)
                change = second[start:stop].astype(np.float64)
                change -= first[start:stop].astype(np.float64)
                change *= factor
                words, more = self.grid.encode(change, random)
                clipped += more
                if self.follows:
                    magnitudes += self.grid.magnitudes(change)
                yield _filled(words)
        yield _filled(self._numbers(counts._replace(clipped=clipped, magnitudes=tuple(map(int, magnitudes)))))

    def _numbers(self, counts: Counts) -> Words:
        pairs = [(count, COUNT) for count in (counts.examples, counts.tested, counts.clipped, *counts.magnitudes)]
        for name in self.metrics:
            value, weight = max(-_LARGEST, min(_LARGEST, counts.metrics[name])), _behind(name, counts)
            if not math.isfinite(counts.metrics[name]):
                value, weight = 0.0, 0
            pairs += [(round(value * 2**_POINT) * weight + _ZERO, METRIC), (weight, COUNT)]
        limbs = [limb for number, bits in pairs for limb in self.grid.limbs_of(number, bits)]
        return np.array(limbs, self.grid.dtype)

    def counts(self, total: Words, parties: int) -> Counts:
        """Return the numbers of all members, from the sum of their vectors."""
        numbers, start = list[int](), self.size - padded(sum(self._limbs))
        for limbs in self._limbs:
            numbers.append(self.grid.joined(total[start : start + limbs]))
            start += limbs
        examples, tested, clipped, *left = numbers
        magnitudes, sums, weights = left[: self._classes], left[self._classes :: 2], left[self._classes + 1 :: 2]
        found = Counts(examples, tested, clipped, {}, tuple(magnitudes))
        means = {
            name: (total - parties * _ZERO) / 2**_POINT / weight
            for name, total, weight in zip(self.metrics, sums, weights, strict=True)
            if 2 * weight > _behind(name, found)
        }
        return found._replace(metrics=means)

    def decode(self, total: Words, parties: int) -> Iterator[tuple[Tensor, int, Floats]]:
        """Yield the sums of changes, chunk by chunk: the tensor, the first of its coordinates, and the sums."""
        position = 0
        for tensor in self.tensors:
            count = math.prod(tensor.shape)
            for start in range(0, count, CHUNK):
                stop = min(start + CHUNK, count)
                yield tensor, start, self.grid.decode(total[position + start : position + stop], parties)
            position += padded(count)


def _behind(metric: str, counts: Counts) -> int:
    """Return the number of examples that a metric is a mean over, if all have it."""
    return counts.tested if metric.startswith(TEST) else counts.examples


def scale_of(base: Mapping[str, Array], new: Mapping[str, Array], names: Sequence[str], norm: float) -> float:
    """Return the factor that scales a change to an L2 norm of at most `norm`; 1 if that is 0.

    Raises:
        WeightsError: the change is not finite.
    """
    if not norm:
        return 1.0
    squares = 0.0
    for name in names:
        first, second = base[name].reshape(-1), new[name].reshape(-1)
        for start in range(0, first.size, CHUNK):
            change = second[start : start + CHUNK].astype(np.float64) - first[start : start + CHUNK].astype(np.float64)
            squares += float(change @ change)
    if not math.isfinite(squares):
        raise WeightsError("a value is NaN or infinite, which no sum can hold")
    return min(1.0, norm / math.sqrt(squares)) if squares else 1.0


def _filled(words: Words) -> Words:
    """Return words with zeros behind them, up to a whole group."""
    missing = padded(words.size) - words.size
    return np.concatenate([words, np.zeros(missing, words.dtype)]) if missing else words
