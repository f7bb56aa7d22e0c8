"""Durations of steps: stored next to the records, never in them, so that records contain no times."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from typing import Annotated

from msgspec import Meta, Struct
from msgspec.structs import replace

from fedpipe.rounds.manifests import Count, Moment
from fedpipe.rounds.received import Source, usable
from fedpipe.store import Store, keys
from fedpipe.store.objects import encode

_MOST_STEPS = 20
"""Most timings of a learner in a round that are read."""
_MARGIN = 3600.0
"""Seconds by which the clocks of learners may be wrong."""


PARCELS, TEST_PARCELS = "parcels", "parcels-score"
"""Steps of the parcels of a phase, and of those of the last test."""


class Timing(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The start of a step (seconds since 1970), and its duration in seconds.

    The steps PARCELS and TEST_PARCELS of a party of a cut network have the seconds in which it awaited parcels, and the
    bytes it sent.
    """

    step: Annotated[str, Meta(max_length=100)]
    learner: str = ""
    round: Count = 0
    started: Moment
    seconds: Moment
    sent: Count = 0


def note(store: Store, run: str, timing: Timing) -> None:
    """Write a timing unless there is one: a repeated step that finds its work done did not do the work."""
    timing = replace(timing, seconds=max(0.0, timing.seconds))  # a clock may be set back
    store.create(keys.timing(run, timing.round, timing.step, timing.learner), encode(timing))


def find_timing(store: Store, run: str, number: int, step: str, learner: str = "") -> Timing | None:
    """Return a step's timing; None when there is none that can be read."""
    source = Source(store, run, keys.timing(run, number, step, learner), "timing")
    return usable(source, Timing, step=step, learner=learner, round=number)


def read_timings(store: Store, run: str, learners: tuple[str, ...], last_round: int = 2**53) -> Iterator[Timing]:
    """Yield all timings of a run; a learner's only if they are well-formed and within those of the coordinator.

    Args:
        store: the federation's store.
        run: the run's name.
        learners: of the run; up to _MOST_STEPS timings of each are read in a round.
        last_round: the last round in which learners may have worked.
    """
    own = list(_timings_of(store, run, "", last_round))
    yield from own
    first = min((timing.started for timing in own), default=0.0) - _MARGIN
    last = max((timing.started + timing.seconds for timing in own), default=math.inf) + _MARGIN
    for learner in learners:
        for timing in _timings_of(store, run, learner, last_round):
            if first <= timing.started and timing.started + timing.seconds <= last:
                yield timing


def _timings_of(store: Store, run: str, learner: str, last_round: int) -> Iterator[Timing]:
    counts = Counter[int]()
    for key in store.keys(keys.run_folder(run, learner), limit=keys.MOST_LEFT):
        found = keys.parse_timing(key, run, learner)
        if found is None or (learner and (found[0] > last_round or counts[found[0]] >= _MOST_STEPS)):
            continue
        counts[found[0]] += 1
        if timing := find_timing(store, run, *found, learner):
            yield timing
