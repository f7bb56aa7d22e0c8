"""Norms of what updates change, to find an update that is far larger than the others.

A mean has no defence against one large update. So an update is refused when its change from the base has a norm above a
multiple of the others' median. At least three others are needed for such a comparison.
The largest update is compared first, and then the next without it. So the result is that of a round without those that
are refused.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fedpipe.aggregation.arithmetic import Array, Floats
from fedpipe.aggregation.feeds import Chunk

OTHERS = 3
"""Fewest other updates with which one is compared."""


class OutliersError(Exception):
    """Some updates change the weights far more than the others; `refused` has the reason for each."""

    def __init__(self, refused: dict[str, str]) -> None:
        super().__init__("; ".join(refused.values()))
        self.refused = refused


class Bounds(NamedTuple):
    """Limits on what one update may do to a round.

    Args:
        norm: the largest norm of a change, as a multiple of the median of the others; 0: no limit.
        share: the largest share of all weight; 0: no limit.
    """

    norm: float = 0.0
    share: float = 0.0


UNBOUNDED = Bounds()


class Norms:
    """The norms of updates that are read chunk by chunk.

    Args:
        base: the file of the global weights, from which the updates began.
        limit: see `Bounds`.
    """

    def __init__(self, base: Path, limit: float) -> None:
        self.base, self._limit = base, limit
        self._squares: dict[str, float] = {}
        self._start: int | None = None
        self._values: Floats = np.empty(0)

    def begin(self, learner: str) -> None:
        """Begin to measure an update from its first chunk."""
        self._squares[learner] = 0.0

    def add(self, learner: str, chunk: Chunk, values: Array) -> None:
        """Add the floats of a chunk of an update."""
        if self._start != chunk.start or self._values.size != values.size:
            read = np.fromfile(self.base, chunk.dtype, count=values.size, offset=chunk.start)
            self._start, self._values = chunk.start, read.astype(np.float64)
        self._squares[learner] += square_of(values, self._values)

    def check(self, learners: Collection[str]) -> None:
        """Compare the updates of these learners, all of them measured. Raises OutliersError."""
        if refused := outliers({name: math.sqrt(self._squares[name]) for name in learners}, self._limit):
            raise OutliersError(refused)


def square_of(values: Array, base: Array) -> float:
    """Return the squared norm of a change; infinite when it cannot be represented.

    >>> square_of(np.array([4.0, 2.0]), np.array([1.0, 2.0])), square_of(np.array([1.7e308]), np.array([0.0]))
    (9.0, inf)
    >>> square_of(np.float32(3), np.zeros(()))
    9.0
    """
    with np.errstate(over="ignore", invalid="ignore"):
        change = np.array(values, np.float64).reshape(-1)
        change -= base
        found = float(np.sum(np.square(change, out=change)))
    return math.inf if math.isnan(found) else found


def outliers(norms: Mapping[str, float], limit: float) -> dict[str, str]:
    """Return the learners whose updates are too large, each with the reason.

    >>> outliers({"a": 1.0, "b": 2.0, "c": 3.0, "d": 40.0}, 10)
    {'d': 'its update changes the weights by a norm of 40, the median of the others is 2: more than 10 times'}
    >>> outliers({"a": 1.0, "b": 2.0, "d": 40.0}, 10)
    {}
    """
    left, refused = sorted(norms, key=lambda name: (norms[name], name)), dict[str, str]()
    while limit and len(left) > OTHERS:
        name = left.pop()
        median = statistics.median(norms[other] for other in left)
        largest = norms[name]
        if (math.isinf(largest) and not math.isinf(median)) or 0 < median < largest / limit:
            refused[name] = (
                f"its update changes the weights by a norm of {largest:.4g}, the median of the others is {median:.4g}: "
                f"more than {limit:g} times"
            )
            continue
        break
    return refused


def capped(weights: list[float], share: float) -> list[float]:
    """Return weights of which none exceeds a share of their sum; all are equal when that is impossible.

    >>> capped([1, 1, 1, 97], 0.5), capped([1, 2], 0.5), capped([1, 2, 3], 0.1), capped([1, 9], 0)
    ([1, 1, 1, 3.0], [1, 1.0], [1.0, 1.0, 1.0], [1, 9])
    """
    if not share or max(weights, default=0) <= share * math.fsum(weights):
        return weights
    ascending = sorted(weights)
    for count in range(1, len(weights)):
        kept = ascending[: len(weights) - count]
        room = 1 - count * share
        if room <= 0:
            break
        cap = share * math.fsum(kept) / room
        if cap >= kept[-1]:
            return [min(weight, cap) for weight in weights]
    return [1.0] * len(weights)
