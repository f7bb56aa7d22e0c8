"""Adds up the traffic between the parties of a cut network, from the timings that they noted."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from fedpipe.federation.federation import Federation
from fedpipe.rounds.timings import PARCELS, Timing


class Traffic(NamedTuple):
    """Holds the sums of a party over all rounds: bytes sent, seconds computing and awaiting others."""

    sent: int
    computing: float
    waiting: float


def traffic_of(federation: Federation, timings: Iterable[Timing]) -> dict[str, Traffic]:
    """Returns what each party of a cut network noted; empty for other federations."""
    if not federation.split:
        return {}
    found, timings = {}, tuple(timings)
    for learner in federation.learners:
        own = [timing for timing in timings if timing.learner == learner.name]
        exchanged = sum(timing.seconds for timing in own if timing.step == "exchange")
        parcels = [timing for timing in own if timing.step == PARCELS]
        waiting = sum(timing.seconds for timing in parcels)
        found[learner.name] = Traffic(sum(timing.sent for timing in parcels), max(0.0, exchanged - waiting), waiting)
    return found
