"""The sessions that are current, in one object: the agent of a site finds them without a right to list.

    runs/_current     an entry for each session whose coordinator works; it changes by compare-and-swap only

An entry is a hint, like a sign: a session that it names counts only if its board, plan and records agree.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import Annotated

from msgspec import Meta, Struct

from fedpipe.errors import CorruptError, StoreError
from fedpipe.federation.names import Name
from fedpipe.rounds.manifests import Count, Moment
from fedpipe.sessions.pulse import GONE, silence
from fedpipe.store import Blob, Store, keys
from fedpipe.store.objects import Digest, decode, encode

log = logging.getLogger("fedpipe")

MOST = 64
"""Most sessions at once; the oldest entries of more are dropped."""
_TRIES = 20


class Opened(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A session: rounds [first, last] of a run, to its end when last is 0, by the plan with this digest.

    `since` is the start of its coordinator by its own clock: one that starts again has another entry.
    """

    run: Name
    plan: Digest
    first: Count = 1
    last: Count = 0
    job: Annotated[str, Meta(max_length=200)] = ""
    since: Moment = 0.0

    @property
    def session(self) -> str:
        """The name of the session on its board."""
        return session_name(self.job, self.first)


class Current(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The sessions that are current, the oldest first."""

    format: int = 1
    sessions: Annotated[tuple[Opened, ...], Meta(max_length=MOST)] = ()


def session_name(job: str, first: int) -> str:
    """Return what distinguishes a session from others of its run: the KFP job, and the first round."""
    return f"{job}-{first}"


def poll_current(store: Store, version: str = "") -> tuple[tuple[Opened, ...], str] | None:
    """Return the sessions that are current, and the version of their object; None while that is `version`.

    Raises:
        CorruptError: the object is malformed.
        StoreError: the store does not answer, or refuses.
    """
    blob = store.poll(keys.CURRENT, version)
    return None if blob is None else (_sessions_in(store, blob), blob.version)


def _sessions_in(store: Store, blob: Blob) -> tuple[Opened, ...]:
    return decode(blob.data, Current, where=f"{store.uri}/{keys.CURRENT}").sessions


@contextlib.contextmanager
def announced(store: Store, opened: Opened) -> Iterator[None]:
    """Name a session among those that are current while the body runs."""

    def stays(one: Opened) -> bool:
        """Return whether another entry stays: a run has one session at a time, and dead ones are dropped."""
        return one.run != opened.run and not _is_gone(store, one)

    _change(store, lambda found: (*filter(stays, found), opened), opened)
    try:
        yield
    finally:
        with contextlib.suppress(StoreError):  # agents see by its board and its pulse that the session has ended
            _change(store, lambda found: tuple(one for one in found if one != opened), opened)


def _change(store: Store, change: Callable[[tuple[Opened, ...]], tuple[Opened, ...]], opened: Opened) -> None:
    """Change the sessions that are current by compare-and-swap."""
    for _ in range(_TRIES):
        blob = store.poll(keys.CURRENT)
        try:
            found = _sessions_in(store, blob) if blob is not None else ()
        except CorruptError as error:
            log.warning("the list of current sessions is written again: %s", error)
            found = ()
        data = encode(Current(sessions=change(found)[-MOST:]))
        if store.create(keys.CURRENT, data) if blob is None else store.swap(keys.CURRENT, data, blob.version):
            return
    log.warning("others changed the list of current sessions at every try; sites may not find %s", opened.run)


def _is_gone(store: Store, opened: Opened) -> bool:
    """Return whether nobody has coordinated a session for a long time, so that its entry is dropped."""
    heard = silence(store, opened.run, opened.session)
    return heard is not None and heard > GONE
