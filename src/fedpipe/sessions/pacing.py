"""How often those who wait look again, and when they give up."""

from __future__ import annotations

from collections.abc import Callable, Generator
from random import Random
from typing import TypeVar

from fedpipe.federation.federation import Federation

T = TypeVar("T")

SHARE = 1 / 16
"""Of the time that was already waited, the pause until the next look: looks grow with the logarithm of the wait."""
RATE = 200.0
"""Looks a second that all who wait may make together, so that a crowd does not overload a small store."""
IDLE_RATE = 20.0
"""The same for a crowd that has waited long."""


def pause(waited: float, crowd: int, random: Random) -> float:
    """Seconds until somebody who has waited so long looks again.

    .. math:: p = u \\cdot \\min(\\max(1, c / 20), \\max(c / 200, w / 16)), \\quad u \\sim U(0.75, 1.25)

    Args:
        waited: seconds since the wait began.
        crowd: how many look at the same store.
        random: of the jitter, which keeps a crowd from looking at the same moment.
    """
    return min(max(1.0, crowd / IDLE_RATE), max(crowd / RATE, waited * SHARE)) * random.uniform(0.75, 1.25)


def drive(waiting: Generator[float, None, T], sleep: Callable[[float], None]) -> T:
    """Runs what yields seconds to wait, and returns its result."""
    while True:
        try:
            seconds = next(waiting)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]
        sleep(seconds)


def patience_of(federation: Federation) -> float:
    """Seconds without a word after which those who wait give up: the other side is gone for good."""
    return max(900.0, 3 * federation.quorum.deadline)
