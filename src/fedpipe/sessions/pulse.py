"""The pulse of a session: an object that its coordinator renews, so that learners see soon when nobody coordinates.

Steps that others await before the session have one too, named by the job.

Only the store's clock counts. The board itself stays as it is, because its age is the age of the current phase.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

from msgspec import Struct

from fedpipe.errors import CorruptError, StoreError
from fedpipe.rounds.history import read_record
from fedpipe.sessions.board import poll_board
from fedpipe.store import Store, keys
from fedpipe.store.objects import decode, encode

BEAT = 15.0
"""Seconds between two renewals."""
GRACE = 60.0
"""Seconds without a request after which a learner looks at the pulse."""
GONE = 300.0
"""Age of the pulse, in seconds, at which nobody coordinates: a pod that was moved to another node is back by then."""


class Pulse(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The session whose coordinator works, or the job whose step does."""

    session: str


@contextlib.contextmanager
def beating(
    open_: Callable[[], Store], run: str, session: str, every: float = BEAT, *, step: str = ""
) -> Iterator[None]:  # fmt: skip
    """Renew the pulse of a session while the body runs, also while it computes.

    Args:
        open_: opens a store for the thread that renews it.
        run: the run's name.
        session: distinguishes this session from earlier ones of the run; for another step, its job.
        every: seconds between two renewals.
        step: a step that others await; by default the session's coordinator.
    """
    ended = threading.Event()

    def beat() -> None:
        store = open_()
        while True:
            with contextlib.suppress(StoreError):  # the coordinator itself reports a store that does not answer
                store.replace(keys.pulse(run, step), encode(Pulse(session=session)))
            if ended.wait(every):
                return

    thread = threading.Thread(target=beat, daemon=True, name="pulse")
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(every)


def silence(store: Store, run: str, session: str, step: str = "") -> float | None:
    """Return the seconds since the coordinator of a session, or a step, renewed its pulse; None when it never did."""
    key = keys.pulse(run, step)
    blob = store.poll(key)
    if blob is None:
        return None
    try:
        pulse = decode(blob.data, Pulse, where=key)
    except CorruptError:
        return None
    return store.age(key) if pulse.session == session else None


def continues(store: Store, run: str, session: str, last: int) -> bool:
    """Return whether a session has ended well or is coordinated, so that it does without a learner that is lost.

    Args:
        store: the federation's store.
        run: the run's name.
        session: distinguishes this session from earlier ones of the run.
        last: the session's last round.
    """
    polled = poll_board(store, run)
    if polled and polled[0].session == session and polled[0].phase == "ended":
        return polled[0].ending not in ("below_quorum", "failed")
    heard = silence(store, run, session)
    return (heard is not None and heard < GONE) or read_record(store, run, last) is not None


class Listener:
    """Looks at the pulse of a session now and then.

    Args:
        store: the federation's store.
        run: the run's name.
        session: distinguishes this session from earlier ones of the run.
    """

    def __init__(self, store: Store, run: str, session: str) -> None:
        self._store, self._run, self._session = store, run, session
        self._next = GRACE

    def gone_for(self, waited: float) -> float:
        """Return for how many seconds nobody has coordinated the session; 0 while somebody may.

        Args:
            waited: seconds without a request of the coordinator.
        """
        if waited < GRACE:
            self._next = GRACE
        if waited < self._next:
            return 0.0
        self._next = waited + BEAT
        heard = silence(self._store, self._run, self._session)
        return heard if heard is not None and heard > GONE else 0.0
