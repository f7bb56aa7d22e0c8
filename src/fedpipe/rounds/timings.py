"""How long steps took: kept beside the records, never in them, so that records hold no clock."""

from __future__ import annotations

from collections.abc import Iterator

from msgspec import Struct

from fedpipe.errors import CorruptError, NotFoundError, TooLargeError
from fedpipe.store import Store
from fedpipe.store.objects import decode, encode, find

_LIMIT = 2**16


class Timing(Struct, frozen=True, kw_only=True):
    """When a step began (seconds since 1970) and how many seconds it took."""

    step: str
    learner: str = ""
    round: int = 0
    started: float
    seconds: float


def note(store: Store, run: str, timing: Timing) -> None:
    """Keeps a timing; the first counts, for a repeated step that finds its work done says nothing about the work."""
    owner = f"learners/{timing.learner}/" if timing.learner else ""
    store.create(f"{owner}runs/{run}/{timing.round}/{timing.step}.time", encode(timing))


def find_timing(store: Store, run: str, number: int, step: str, learner: str = "") -> Timing | None:
    """A step's timing; None when there is none that can be read."""
    key = f"{f'learners/{learner}/' if learner else ''}runs/{run}/{number}/{step}.time"
    try:
        return find(store, key, Timing, limit=_LIMIT)
    except (CorruptError, TooLargeError):
        return None


def read_timings(store: Store, run: str, learners: tuple[str, ...]) -> Iterator[Timing]:
    """All timings of a run; what is not one is left out."""
    for owner in ("", *(f"learners/{name}/" for name in learners)):
        for key in store.keys(f"{owner}runs/{run}/"):
            if key.endswith(".time"):
                try:
                    yield decode(store.read(key, limit=_LIMIT).data, Timing, where=key)
                except (CorruptError, NotFoundError):
                    continue
