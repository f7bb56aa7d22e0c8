"""The meeting place of a session: a few small objects, which the parties poll.

    runs/<run>/board                   the coordinator's current request; moves by compare-and-swap only
    runs/<run>/stop                    asks it to end after the current round
    learners/<name>/runs/<run>/sign    a learner's last answer, or that it is present; a doorbell, nothing more

The parties never connect to each other. A lost object costs time and nothing else: only updates and ballots count, and
rounds are committed as in `rounds`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Annotated, ClassVar, Literal

from msgspec import Meta, Struct

from fedpipe.errors import ConflictError, DroppedError, InputError
from fedpipe.federation.names import Name
from fedpipe.rounds.manifests import Count
from fedpipe.rounds.received import Source, parse, receive_blob
from fedpipe.store import Blob, Store, keys
from fedpipe.store.objects import Digest, decode, digest_of, encode

PhaseName = Annotated[str, Meta(pattern=r"^[a-z][a-z0-9\-]{0,38}\Z")]
"""The name of a phase that learners answer, or `ended`."""
Ending = Literal["", "done", "stopped", "early_stopping", "max_seconds", "below_quorum", "failed"]
ENDINGS: dict[str, str] = {
    "done": "all rounds are done",
    "stopped": "stopped on request",
    "early_stopping": "the metric improves no more",
    "max_seconds": "the time is used up",
    "below_quorum": "too few learners",
    "failed": "a round failed",
}


class Away(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A learner that did not answer in time: the round in which it was missed, and the digest of its sign then."""

    since: Count
    sign: str = ""


class Board(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A coordinator's request: `asked` are to train from `base`, or to vote on `candidate`; or the end of the session.

    `session` distinguishes the sessions of a run; `attempt` counts how often the round was opened.
    """

    SPOKEN: ClassVar = True
    format: int = 1
    federation: Name
    run: Name
    session: str
    round: Count
    attempt: Annotated[int, Meta(ge=1)] = 1
    phase: PhaseName
    base: Digest
    asked: tuple[Name, ...] = ()
    candidate: str = ""
    owner: str = ""
    away: dict[Name, Away] = {}
    ending: Ending = ""
    why: str = ""


class Sign(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A learner's last answer to a phase, in which it took part or could not; or `here` when it has answered none.

    One that leaves is not awaited in this session, unless it leaves another sign. Defaults are not written: a version
    that does not know `leaves` reads the signs of others.
    """

    round: Count
    attempt: Count = 0
    phase: PhaseName = "here"
    took_part: bool = False
    session: str = ""
    leaves: bool = False

    def answers(self, board: Board) -> bool:
        """Return whether this is an answer to the board's request, and not one of an earlier session."""
        asked = (board.round, board.attempt, board.phase)
        return (self.round, self.attempt, self.phase) == asked and self.session in ("", board.session)


def poll_board(store: Store, run: str, version: str = "") -> tuple[Board, str] | None:
    """Return the board and its version; None while that is `version`. Raises CorruptError."""
    blob = store.poll(keys.board(run), version)
    return None if blob is None else (decode(blob.data, Board, where=f"{store.uri}/{keys.board(run)}"), blob.version)


def put_sign(store: Store, learner: str, run: str, sign: Sign) -> None:
    """Write a learner's sign."""
    store.replace(keys.sign(learner, run), encode(sign))


def ask_to_stop(store: Store, run: str) -> bool:
    """Ask a session to end after its current round; return False when somebody already did."""
    return store.create(keys.stop(run), b"{}")


def check_deadline(store: Store, seconds: float) -> None:
    """Check that a deadline is longer than a request takes. Raises InputError."""
    store.poll(keys.HEAD)  # connects
    started = time.monotonic()
    store.poll(keys.HEAD)
    taken = time.monotonic() - started
    if seconds <= taken:
        raise InputError(
            f"{seconds:g} s is shorter than one request to the store, which took {taken:.2g} s",
            where="quorum.deadline",
            remedy="Set it to the seconds that the learners' training takes, plus a margin.",
        )


class MovedError(Exception):
    """Another coordinator of this session moved the board: read it again."""


class Keeper:
    """Moves the board of one session, and reads the learners' signs.

    Args:
        store: the federation's store.
        run: the run's name.
        session: distinguishes this session from earlier ones of the run.
        clock: seconds of this process; no other clock is compared with them.
    """

    def __init__(self, store: Store, run: str, session: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._store, self._run, self._session, self._clock = store, run, session, clock
        self._board: Board | None = None
        self._version, self._opened, self._begun = "", 0.0, False
        self._signs: dict[str, Blob] = {}

    @property
    def board(self) -> Board | None:
        """The board as it was last read; None when it is another session's."""
        return self._board if self._board is not None and self._board.session == self._session else None

    def refresh(self) -> None:
        """Read the board. Raises ConflictError when another session has taken over from this one."""
        self._board, self._version = poll_board(self._store, self._run) or (None, "")
        if self._begun and self.board is None:
            raise ConflictError(
                f"another session of run {self._run!r} has taken over",
                where=f"{self._store.uri}/{keys.board(self._run)}",
                remedy="Two pipelines use the same run name. End one of them.",
            )
        self._opened = self._clock() - (self._store.age(keys.board(self._run)) or 0.0)

    def at(self, number: int, phase: str) -> bool:
        """Return whether the board is at this phase of a round."""
        return self.board is not None and (self.board.round, self.board.phase) == (number, phase)

    def move(self, board: Board) -> Board:
        """Move the board, unless it is already at this phase and attempt; return the current one.

        Raises:
            MovedError: another coordinator moved it.
        """
        now = self.board
        if now is not None and (now.round, now.attempt, now.phase) == (board.round, board.attempt, board.phase):
            return now
        data, key = encode(board), keys.board(self._run)
        moved = self._store.swap(key, data, self._version) if self._version else self._store.create(key, data)
        blob = self._store.poll(key)
        if not moved or blob is None or blob.data != data:
            raise MovedError
        self._board, self._version, self._opened, self._begun = board, blob.version, self._clock(), True
        return board

    def waited(self) -> float:
        """Return the seconds since the phase was opened, by the store's clock if another process opened it."""
        return self._clock() - self._opened

    def sign(self, learner: str) -> Sign | None:
        """Return a learner's current sign; None for one that cannot be used. One conditional read."""
        known = self._signs.get(learner)
        try:
            source = Source(self._store, self._run, keys.sign(learner, self._run), "sign")
            blob = receive_blob(source, known.version if known else "") or known
            if blob is None:
                return None
            self._signs[learner] = blob
            return parse(blob, Sign, source.what)
        except DroppedError:
            return None

    def sign_digest(self, learner: str) -> str:
        """Return the digest of the sign that was last read; empty when there was none."""
        known = self._signs.get(learner)
        return digest_of(known.data) if known else ""
