"""Schedules of learning rates over rounds. A rate follows from the round alone, so a resumed run has the same."""

from __future__ import annotations

import math
from typing import Annotated

from msgspec import Meta

from fedpipe.federation.names import Interval, Rounds, Section, Share

WarmUp = Annotated[Interval, Meta(description="rounds in which the rate rises linearly to its full value; 0: none")]


class Constant(Section, frozen=True, kw_only=True, tag_field="name", tag="constant"):
    """Keeps the rate, after a warm-up."""

    warm_up: WarmUp = 0

    def factor(self, number: int, _rounds: int) -> float:
        """Return the factor of the rate in a round, from 1."""
        return warmed(number, self.warm_up)


class StepDecay(Section, frozen=True, kw_only=True, tag_field="name", tag="step"):
    """Multiplies the rate by a factor every few rounds."""

    every: Annotated[Rounds, Meta(description="rounds between two changes")]
    by: Annotated[float, Meta(gt=0, le=1, description="factor of each change")]
    warm_up: WarmUp = 0

    def factor(self, number: int, _rounds: int) -> float:
        """Return the factor of the rate in a round, from 1."""
        if number <= self.warm_up:
            return warmed(number, self.warm_up)
        return max(_LEAST, self.by ** ((number - self.warm_up - 1) // self.every))


class Cosine(Section, frozen=True, kw_only=True, tag_field="name", tag="cosine"):
    """Lowers the rate along half a wave of the cosine (Loshchilov and Hutter 2017, without restarts)."""

    least: Annotated[Share, Meta(description="share of the rate that it approaches")] = 0.0
    rounds: Annotated[Interval, Meta(description="rounds until then, with the warm-up; 0: those of the training")] = 0
    warm_up: WarmUp = 0

    def factor(self, number: int, rounds: int) -> float:
        """Return the factor of the rate in a round, from 1, of so many; the last one keeps its rate for later ones."""
        if number <= self.warm_up:
            return warmed(number, self.warm_up)
        length = max(1, (self.rounds or rounds) - self.warm_up)
        passed = min(number - self.warm_up - 1, length - 1) / length
        wave = (1 + math.cos(math.pi * passed)) / 2
        # Rounded, since the last digits of a cosine depend on the machine.
        return max(_LEAST, round(self.least + (1 - self.least) * wave, 12))


Schedule = Constant | StepDecay | Cosine
_LEAST = 1e-12
"""The smallest factor: a rate of 0 would mean that of model.py."""


def warmed(number: int, warm_up: int) -> float:
    """Return the factor of a round of the warm-up; 1 after it.

    >>> [warmed(number, 4) for number in (1, 2, 4, 5)]
    [0.25, 0.5, 1.0, 1.0]
    """
    return min(1.0, number / warm_up) if warm_up else 1.0
