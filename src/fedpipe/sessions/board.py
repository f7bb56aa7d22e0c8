"""The meeting place of a session: a few small objects that are polled.

    runs/<run>/board                   what the coordinator asks for now; moves by compare-and-swap only
    runs/<run>/stop                    asks it to end after the current round
    learners/<name>/runs/<run>/sign    what a learner did last, or that it is there; only a doorbell: what counts is its
                                       update or ballot

Nobody connects to anybody. Whatever is lost here costs time and nothing else: rounds are committed as in `rounds`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Annotated, Literal

from msgspec import Meta, Struct

from fedpipe.errors import ConflictError, CorruptError, InputError, TooLargeError
from fedpipe.federation.names import Name
from fedpipe.rounds.roll import MANIFEST
from fedpipe.store import Blob, Store, keys
from fedpipe.store.objects import Digest, decode, digest_of, encode

PhaseName = Annotated[str, Meta(pattern=r"^[a-z][a-z0-9\-]{0,38}\Z")]
"""What learners answer by: the phases of scripts, and `ended`."""
Ending = Literal["", "done", "stopped", "early_stopping", "max_seconds", "below_quorum", "failed"]
Count = Annotated[int, Meta(ge=0)]
ENDINGS: dict[str, str] = {
    "done": "all rounds are done",
    "stopped": "stopped on request",
    "early_stopping": "the metric improves no more",
    "max_seconds": "the time is used up",
    "below_quorum": "too few learners",
    "failed": "a round failed",
}


class Away(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A learner that did not answer in time: since which round, and the digest of its sign at that time."""

    since: Count
    sign: str = ""


class Board(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a coordinator asks for: that `asked` train from `base`, or vote on `candidate`; or that the session ended.

    `session` tells one session of a run from the next; `attempt` counts how often the round was opened.
    """

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


class Sign(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a learner did last: it answered a phase (and took part, or could not), or it is `here` and free."""

    round: Count
    attempt: Count = 0
    phase: PhaseName = "here"
    took_part: bool = False


def poll_board(store: Store, run: str, version: str = "") -> tuple[Board, str] | None:
    """The board and its version when it is another than `version`. Raises CorruptError."""
    blob = store.poll(keys.board(run), version)
    return None if blob is None else (decode(blob.data, Board, where=f"{store.uri}/{keys.board(run)}"), blob.version)


def put_sign(store: Store, learner: str, run: str, sign: Sign) -> None:
    """Leaves a learner's sign."""
    store.replace(keys.sign(learner, run), encode(sign))


def parse_sign(blob: Blob) -> Sign | None:
    """What a learner left, or None when it is no sign: a learner cannot hurt a session by it."""
    try:
        return decode(blob.data, Sign, where="sign")
    except CorruptError:
        return None


def ask_to_stop(store: Store, run: str) -> bool:
    """Asks a session to end after its current round; False when that was asked before."""
    return store.create(keys.stop(run), b"{}")


def check_deadline(store: Store, seconds: float) -> None:
    """Checks that a deadline is longer than a request takes. Raises InputError."""
    store.poll(keys.HEAD)  # connects
    started = time.monotonic()
    store.poll(keys.HEAD)
    taken = time.monotonic() - started
    if seconds <= taken:
        raise InputError(
            f"{seconds:g} s is shorter than one request to the store, which took {taken:.2g} s",
            where="quorum.deadline",
            remedy="Give the learners the seconds that their training takes, and a margin.",
        )


class MovedError(Exception):
    """Another coordinator of this session moved the board: look again what there is to do."""


class Keeper:
    """Moves the board of one session, and looks at the learners' signs.

    Args:
        store: the federation's store.
        run: the run's name.
        session: what tells this session from an earlier one of the run.
        clock: seconds, of this process alone.
    """

    def __init__(self, store: Store, run: str, session: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._store, self._run, self._session, self._clock = store, run, session, clock
        self._board: Board | None = None
        self._version, self._opened, self._begun = "", 0.0, False
        self._signs: dict[str, Blob] = {}

    @property
    def board(self) -> Board | None:
        """The board when it is this session's, as it was last seen."""
        return self._board if self._board is not None and self._board.session == self._session else None

    def refresh(self) -> None:
        """Reads the board. Raises ConflictError when another session has taken over from this one."""
        self._board, self._version = poll_board(self._store, self._run) or (None, "")
        if self._begun and self.board is None:
            raise ConflictError(
                f"another session of run {self._run!r} has taken over",
                where=f"{self._store.uri}/{keys.board(self._run)}",
                remedy="Two pipelines with one run name are at work; let one of them end.",
            )
        self._opened = self._clock() - (self._store.age(keys.board(self._run)) or 0.0)

    def at(self, number: int, phase: str) -> bool:
        """Whether the board stands at this phase of a round."""
        return self.board is not None and (self.board.round, self.board.phase) == (number, phase)

    def move(self, board: Board) -> Board:
        """Moves the board, unless it stands there already; returns what is on it.

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
        """Seconds since the phase was opened, by the store's clock if another process opened it."""
        return self._clock() - self._opened

    def sign(self, learner: str) -> Sign | None:
        """What a learner left last; one conditional read."""
        known = self._signs.get(learner)
        try:
            key, version = keys.sign(learner, self._run), known.version if known else ""
            blob = self._store.poll(key, version, limit=MANIFEST) or known
        except TooLargeError:
            return None
        if blob is None:
            return None
        self._signs[learner] = blob
        return parse_sign(blob)

    def sign_digest(self, learner: str) -> str:
        """The digest of the sign that was seen last; empty when there was none."""
        known = self._signs.get(learner)
        return digest_of(known.data) if known else ""
