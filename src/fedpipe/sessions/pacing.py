"""Pace the polls of waiting parties, and decide when they give up."""

from __future__ import annotations

from collections.abc import Callable, Generator
from random import Random
from typing import TypeVar

from fedpipe.federation.federation import Federation

T = TypeVar("T")

SHARE = 1 / 16
"""The next pause, as a share of the time already waited: polls grow with the logarithm of the wait."""
RATE = 200.0
"""Polls a second of all waiting parties together, so that a crowd does not overload a small store."""
IDLE_RATE = 20.0
"""The same for a crowd that has waited for a long time."""


def pause(waited: float, crowd: int, random: Random) -> float:
    """Return the seconds until the next poll after a wait of so many seconds.

    .. math:: p = u \\cdot \\min(\\max(1, c / 20), \\max(c / 200, w / 16)), \\quad u \\sim U(0.75, 1.25)

    Args:
        waited: seconds since the wait began.
        crowd: how many parties poll the same store.
        random: of the jitter, which keeps a crowd from polling at the same moment.
    """
    return min(max(1.0, crowd / IDLE_RATE), max(crowd / RATE, waited * SHARE)) * random.uniform(0.75, 1.25)


def drive(waiting: Generator[float, None, T], sleep: Callable[[float], None]) -> T:
    """Run a generator that yields seconds to wait, and return its result."""
    while True:
        try:
            seconds = next(waiting)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]
        sleep(seconds)


def patience_of(federation: Federation) -> float:
    """Return the seconds of silence after which a waiting party gives up: the other side is gone for good."""
    return max(900.0, 3 * federation.quorum.deadline)
