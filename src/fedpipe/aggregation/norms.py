"""Norms of what updates change, to find an update that is far larger than the others.

A mean has no defence against one large update. So an update is refused when its change from the base has a norm above a
multiple of the others' median. At least three others are needed for such a comparison.
The largest update is compared first, and then the next without it. So the result is that of a round without those that
are refused.

Two bounds keep honest learners. A change that is no larger than the weights themselves is never refused. Otherwise one
that still learns would be, where the others have converged. The path of gradient descent grows with its steps at most,
so a learner with more steps than most may go further in proportion.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from fedpipe.aggregation.arithmetic import ADDED, Array, Floats
from fedpipe.aggregation.feeds import PIECE, Chunk, Source, chunks_of
from fedpipe.weights import Layout

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
_NOTHING = np.zeros(())


class Norms:
    """The norms of updates that are read chunk by chunk.

    Args:
        base: the file of the global weights, from which the updates began.
        limit: see `Bounds`.
        layout: of these weights.
    """

    def __init__(self, base: Path, limit: float, layout: Layout) -> None:
        self.base, self._limit, self._layout = base, limit, layout
        self._squares: dict[str, float] = {}
        self._start: int | None = None
        self._values, self._held, self._scratch = np.empty(0), np.empty(PIECE), np.empty(ADDED)

    def begin(self, learner: str) -> None:
        """Begin to measure an update from its first chunk."""
        self._squares[learner] = 0.0

    def move(self, chunk: Chunk) -> None:
        """Read the base of a chunk of floats, if it is another one."""
        count = (chunk.stop - chunk.start) // chunk.dtype.itemsize
        if self._start != chunk.start or self._values.size != count:
            self._start, self._values = chunk.start, self._held[:count]
            self._values[:] = self._read(chunk)

    def add(self, learner: str, start: int, values: Array) -> None:
        """Add values of an update, from an element of the chunk on: whole strips, or all that are left."""
        below = self._values[start : start + values.size]
        self._squares[learner] = square_of(values, below, self._scratch, self._squares[learner])

    def check(self, sources: Collection[Source]) -> None:
        """Compare these updates, all of them measured. Raises OutliersError."""
        norms = {source.learner: math.sqrt(self._squares[source.learner]) for source in sources}
        steps = {source.learner: source.steps for source in sources}
        if not outliers(norms, self._limit, steps=steps):  # the base is rarely read
            return
        if refused := outliers(norms, self._limit, within=self._norm_of_base(), steps=steps):
            raise OutliersError(refused)

    def _norm_of_base(self) -> float:
        found = 0.0
        for chunk in chunks_of(self._layout):
            if chunk.is_float:
                found = square_of(self._read(chunk), _NOTHING, self._scratch, found)
        return math.sqrt(found)

    def _read(self, chunk: Chunk) -> Array:
        count = (chunk.stop - chunk.start) // chunk.dtype.itemsize
        return np.fromfile(self.base, chunk.dtype, count=count, offset=chunk.start)


def square_of(values: Array, base: Array, scratch: Floats | None = None, before: float = 0.0) -> float:
    """Return the squared norm of a change; infinite when it cannot be represented.

    Args:
        values: of the update.
        base: from which it began; one number for all, or as many.
        scratch: is used for a strip of the change; a new array by default.
        before: the square of the values before these; strip by strip, so that pieces of any length give the same bits.

    >>> square_of(np.array([4.0, 2.0]), np.array([1.0, 2.0])), square_of(np.array([1.7e308]), np.array([0.0]))
    (9.0, inf)
    >>> square_of(np.float32(3), np.zeros(()))
    9.0
    """
    flat, below, found = np.reshape(values, -1), np.reshape(base, -1), before
    scratch = np.empty(min(ADDED, flat.size)) if scratch is None else scratch
    with np.errstate(over="ignore", invalid="ignore"):
        for start in range(0, flat.size, ADDED):
            part = flat[start : start + ADDED]
            change = scratch[: part.size]
            if part.dtype != np.float64:
                np.copyto(change, part, casting="unsafe")
                part = change
            np.subtract(part, below[start : start + ADDED] if below.size > 1 else below, out=change)
            found += float(np.sum(np.square(change, out=change)))
    return math.inf if math.isnan(found) else found


def outliers(
    norms: Mapping[str, float], limit: float, *, within: float = 0.0, steps: Mapping[str, int] = MappingProxyType({})
) -> dict[str, str]:
    """Return the learners whose updates are too large, each with the reason.

    Args:
        norms: of the updates' changes, by learner.
        limit: the largest norm, as a multiple of the median of the others; 0: no limit.
        within: a norm that is always allowed: that of the weights themselves.
        steps: of the training of each learner. One with more than the median of the others may go as many times as far,
            up to `limit` times.

    >>> outliers({"a": 1.0, "b": 2.0, "c": 3.0, "d": 40.0}, 10)
    {'d': 'its update changes the weights by a norm of 40, the median of the others is 2: more than 10 times'}
    >>> outliers({"a": 1.0, "b": 2.0, "d": 40.0}, 10)
    {}
    >>> outliers({"a": 1.0, "b": 2.0, "c": 3.0, "d": 40.0}, 10, within=50.0)
    {}
    >>> outliers({"a": 1.0, "b": 2.0, "c": 3.0, "d": 40.0}, 10, steps={"a": 4, "b": 4, "c": 4, "d": 8})
    {}
    >>> list(outliers({"a": 1.0, "b": 1.0, "c": 1.0, "d": 80.0, "e": 90.0}, 10, steps={"e": 10}))
    ['d']
    """
    left, refused = sorted(norms, key=lambda name: (norms[name], name)), dict[str, str]()
    while limit and len(left) > OTHERS:
        name = left.pop()
        median, largest = statistics.median(norms[other] for other in left), norms[name]
        usual = statistics.median(steps.get(other, 1) for other in left)
        times = limit * min(max(1.0, steps.get(name, 1) / usual), max(1.0, limit))
        beyond = (math.isinf(largest) and not math.isinf(median)) or 0 < median < largest / times
        if largest <= within or (not beyond and times == limit):
            break
        if not beyond:  # by its steps alone: smaller ones have their own limits
            continue
        refused[name] = (
            f"its update changes the weights by a norm of {largest:.4g}, the median of the others is {median:.4g}: "
            f"more than {times:g} times"
        )
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
