"""Durations of steps: stored next to the records, never in them, so that records contain no times."""

from __future__ import annotations

from collections.abc import Iterator

from msgspec import Struct

from fedpipe.errors import CorruptError
from fedpipe.store import Store, keys
from fedpipe.store.objects import encode, find

_LIMIT = 2**16


class Timing(Struct, frozen=True, kw_only=True):
    """The start of a step (seconds since 1970), and its duration in seconds."""

    step: str
    learner: str = ""
    round: int = 0
    started: float
    seconds: float


def note(store: Store, run: str, timing: Timing) -> None:
    """Write a timing unless there is one: a repeated step that finds its work done did not do the work."""
    store.create(keys.timing(run, timing.round, timing.step, timing.learner), encode(timing))


def find_timing(store: Store, run: str, number: int, step: str, learner: str = "") -> Timing | None:
    """Return a step's timing; None when there is none that can be read."""
    return _found(store, keys.timing(run, number, step, learner))


def read_timings(store: Store, run: str, learners: tuple[str, ...]) -> Iterator[Timing]:
    """Yield all timings of a run; malformed ones are left out."""
    for learner in ("", *learners):
        for key in store.keys(keys.run_folder(run, learner), limit=keys.MOST_LEFT):
            if keys.is_timing(key) and (timing := _found(store, key)):
                yield timing


def _found(store: Store, key: str) -> Timing | None:
    try:
        return find(store, key, Timing, limit=_LIMIT)
    except CorruptError:
        return None
