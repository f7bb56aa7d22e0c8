"""Adds up the traffic between the parties of a cut network, from the timings that they noted, and its rows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from fedpipe.federation.federation import Federation
from fedpipe.rounds.manifests import Record
from fedpipe.rounds.timings import PARCELS, TEST_PARCELS, Timing

EXCHANGE = "exchange"
PHASES = {"align": "common rows", EXCHANGE: "training", "score": "last test"}
"""The phases in which parties send parcels, by the names of their steps, and what reports call them."""


class Traffic(NamedTuple):
    """Holds the sums of a party in a phase: bytes sent, seconds computing and awaiting others."""

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


def traffic_of(federation: Federation, timings: Iterable[Timing]) -> dict[str, dict[str, Traffic]]:
    """Returns what each party of a cut network noted in each phase; empty for other federations."""
    if not federation.split:
        return {}
    kept = [timing for timing in timings if timing.learner]
    return {
        learner.name: {
            phase: found
            for phase in PHASES
            if (found := _sums([timing for timing in kept if timing.learner == learner.name], phase))
        }
        for learner in federation.learners
    }


def _sums(own: Sequence[Timing], phase: str) -> Traffic | None:
    """Returns the sums of a party's phase; None without parcels."""
    parcels = [timing for timing in own if _phase_of(timing) == phase]
    if not parcels:
        return None
    waiting = sum(timing.seconds for timing in parcels)
    whole = sum(timing.seconds for timing in own if timing.step == phase)
    return Traffic(sum(timing.sent for timing in parcels), max(0.0, whole - waiting), waiting)


def _phase_of(timing: Timing) -> str:
    """Returns the phase of which a timing counts the parcels; empty for other timings."""
    if timing.step == TEST_PARCELS:
        return "score"
    return "" if timing.step != PARCELS else EXCHANGE if timing.round else "align"
