"""Adds up the traffic between the parties of a cut network, from the timings that they noted, and its rows."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from fedpipe.federation.federation import Federation
from fedpipe.rounds.manifests import Record
from fedpipe.rounds.timings import PARCELS, Timing


class Traffic(NamedTuple):
    """Holds the sums of a party over all rounds: bytes sent, seconds computing and awaiting others."""

    sent: int
    computing: float
    waiting: float


class CommonRows(NamedTuple):
    """Holds how many rows a party has, how many are common to all parties, and how many are dropped."""

    rows: int
    common: int
    dropped: int


def common_rows(records: Iterable[Record]) -> dict[str, CommonRows]:
    """Returns the rows that each party of a cut network stated; empty if the parties did not align them."""
    found = next((record.aligned for record in records if record.aligned), None) or ()
    return {one.learner: CommonRows(one.rows, one.common, one.dropped) for one in found}


def traffic_of(federation: Federation, timings: Iterable[Timing]) -> dict[str, Traffic]:
    """Returns what each party of a cut network noted; empty for other federations."""
    if not federation.split:
        return {}
    found, timings = {}, tuple(timings)
    for learner in federation.learners:
        own = [timing for timing in timings if timing.learner == learner.name and timing.round]
        exchanged = sum(timing.seconds for timing in own if timing.step == "exchange")
        parcels = [timing for timing in own if timing.step == PARCELS]
        waiting = sum(timing.seconds for timing in parcels)
        found[learner.name] = Traffic(sum(timing.sent for timing in parcels), max(0.0, exchanged - waiting), waiting)
    return found
