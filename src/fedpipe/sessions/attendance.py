"""A learner's part of a session: read the board, answer it, leave a sign, until the session has ended.

Like the coordinator, it is a generator that yields how many seconds to wait.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Generator, Mapping
from random import Random

from fedpipe.errors import RoundError, StoreUnavailableError
from fedpipe.rounds.plan import Plan
from fedpipe.sessions.board import Board, Sign, poll_board, put_sign
from fedpipe.sessions.pacing import patience_of, pause
from fedpipe.sessions.pulse import Listener
from fedpipe.store import Store, keys

log = logging.getLogger("fedpipe")

Answering = Callable[[Board], Generator[float, None, bool]]
"""Answers the board's request, and returns whether the learner took part; may yield seconds to wait."""


class Attendance:
    """Attends one session as one learner.

    Args:
        store: the federation's store.
        plan: the run's plan.
        learner: the learner's name.
        session: distinguishes this session from earlier ones of the run.
        last: the session's last round; 0: the plan's.
        answers: an answer for each phase, by its name.
        clock: seconds of this process; no other clock is compared with them.
        random: of the jitter between looks.
    """

    def __init__(
        self, store: Store, plan: Plan, learner: str, session: str, answers: Mapping[str, Answering], *, last: int = 0,
        clock: Callable[[], float] = time.monotonic, random: Random | None = None,
    ) -> None:  # fmt: skip
        self._store, self._plan, self._learner, self._session = store, plan, learner, session
        self._answers, self._last = answers, last or plan.federation.training.rounds
        self._clock, self._random = clock, random or Random()  # noqa: S311  (jitter)
        self._signed: Sign | None = None
        self._version = ""
        self._took_part: Counter[str] = Counter()
        self._pulse = Listener(store, plan.run, session)

    def run(self) -> Generator[float, None, Counter[str]]:
        """Attend until the session has ended; yield seconds to wait.

        Returns:
            How often the learner took part in each phase.

        Raises:
            RoundError: nobody coordinates the session, or the board has not moved for too long.
            StoreError: the store failed for good.
        """
        moved_at = self._clock()  # the last move of the board
        while True:
            try:
                if self._signed is None:
                    self._sign(Sign(round=0))
                moved = poll_board(self._store, self._plan.run, self._version)
                if moved is not None:
                    board, self._version = moved
                    moved_at = self._clock()
                    if self._is_over(board):
                        return self._took_part
                    yield from self._attended(board)
                    moved_at = self._clock()
                    continue
                self._check_coordinated(self._clock() - moved_at)
            except StoreUnavailableError as error:
                if self._clock() - moved_at > patience_of(self._plan.federation):
                    raise
                log.warning("the store does not answer; trying again: %s", error)
                yield 1.0
                self._version = ""  # the last request may be unanswered
                continue
            silent = self._clock() - moved_at
            if silent > patience_of(self._plan.federation):
                raise RoundError(
                    f"the coordinator has been silent for {silent:.0f} s",
                    where=f"{self._store.uri}/{keys.board(self._plan.run)}",
                    remedy="Check in its log whether its step started or failed.",
                )
            yield pause(silent, len(self._plan.federation.learners), self._random)

    def _check_coordinated(self, waited: float) -> None:
        if gone := self._pulse.gone_for(waited):
            raise RoundError(
                f"nobody coordinates the session: its coordinator was last heard of {gone:.0f} s ago",
                where=f"{self._store.uri}/{keys.pulse(self._plan.run)}",
                remedy=f"Check its log, and continue the run: fedpipe resume {self._plan.run}",
            )

    def _is_over(self, board: Board) -> bool:
        """Return whether this session has ended; the end of an earlier one is on the board until this one begins."""
        return board.round > self._last or (board.phase == "ended" and board.session == self._session)

    def _attended(self, board: Board) -> Generator[float, None, None]:
        if board.phase == "ended":
            return
        if self._learner in board.asked:
            took_part = yield from self._answers.get(board.phase, _unknown)(board)
            self._took_part[board.phase] += took_part
            sign = Sign(
                round=board.round, attempt=board.attempt, phase=board.phase, took_part=took_part, session=board.session
            )
            self._sign(sign)
        elif self._learner in board.away:
            self._sign(Sign(round=board.round, attempt=board.attempt))

    def _sign(self, sign: Sign) -> None:
        if sign != self._signed:
            put_sign(self._store, self._learner, self._plan.run, sign)
            self._signed = sign


def _unknown(board: Board) -> Generator[float, None, bool]:
    yield from ()
    log.warning("round %d: this version of fedpipe cannot answer the phase %r", board.round, board.phase)
    return False


def at_once(function: Callable[[Board], bool]) -> Answering:
    """Return an answer that does not wait."""

    def answer(board: Board) -> Generator[float, None, bool]:
        yield from ()
        return function(board)

    return answer
