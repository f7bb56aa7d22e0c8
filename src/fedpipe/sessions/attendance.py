"""A learner's part of a session: look at the board, do what it asks, leave a sign, until the session has ended.

As the coordinator, it is a generator that yields how many seconds to wait.
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
from fedpipe.store import Store, keys

log = logging.getLogger("fedpipe")

Answer = Callable[[Board], Generator[float, None, bool]]
"""Does what the board asks of this learner, and says whether it took part; may yield seconds to wait."""


class Attendance:
    """One learner in one session.

    Args:
        store: the federation's store.
        plan: the run's plan.
        learner: the learner's name.
        session: what tells this session from an earlier one of the run.
        last: its last round; 0: the plan's.
        answers: by the name of a phase: does what the board asks.
        clock: seconds, of this process alone.
        random: of the jitter between looks.
    """

    def __init__(
        self, store: Store, plan: Plan, learner: str, session: str, answers: Mapping[str, Answer], *, last: int = 0,
        clock: Callable[[], float] = time.monotonic, random: Random | None = None,
    ) -> None:  # fmt: skip
        self._store, self._plan, self._learner, self._session = store, plan, learner, session
        self._answers, self._last = answers, last or plan.federation.training.rounds
        self._clock, self._random = clock, random or Random()  # noqa: S311  (jitter)
        self._signed: Sign | None = None
        self._version = ""
        self._took_part: Counter[str] = Counter()

    def run(self) -> Generator[float, None, Counter[str]]:
        """Attend until the session has ended; yields seconds to wait.

        Returns:
            How often the learner took part in each phase.

        Raises:
            RoundError: nobody moves the board any more.
            StoreError: the store failed for good.
        """
        heard = self._clock()  # when the board moved last
        while True:
            try:
                if self._signed is None:
                    self._sign(Sign(round=0))
                moved = poll_board(self._store, self._plan.run, self._version)
                if moved is not None:
                    board, self._version = moved
                    heard = self._clock()
                    if self._is_over(board):
                        return self._took_part
                    yield from self._attended(board)
                    heard = self._clock()
                    continue
            except StoreUnavailableError as error:
                if self._clock() - heard > patience_of(self._plan.federation):
                    raise
                log.warning("the store does not answer; trying again: %s", error)
                yield 1.0
                self._version = ""  # what was asked may not have been done
                continue
            silent = self._clock() - heard
            if silent > patience_of(self._plan.federation):
                raise RoundError(
                    f"the coordinator has said nothing for {silent:.0f} s",
                    where=f"{self._store.uri}/{keys.board(self._plan.run)}",
                    remedy="Did its step start, and did it fail? Its log tells.",
                )
            yield pause(silent, len(self._plan.federation.learners), self._random)

    def _is_over(self, board: Board) -> bool:
        """Whether this session has ended; an earlier one that has is still on the board until this one begins."""
        return board.round > self._last or (board.phase == "ended" and board.session == self._session)

    def _attended(self, board: Board) -> Generator[float, None, None]:
        if board.phase == "ended":
            return
        if self._learner in board.asked:
            took_part = yield from self._answers.get(board.phase, _unknown)(board)
            self._took_part[board.phase] += took_part
            self._sign(Sign(round=board.round, attempt=board.attempt, phase=board.phase, took_part=took_part))
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


def at_once(function: Callable[[Board], bool]) -> Answer:
    """An answer that waits for nothing."""

    def answer(board: Board) -> Generator[float, None, bool]:
        yield from ()
        return function(board)

    return answer
