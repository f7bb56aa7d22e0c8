"""The coordinator of a session: asks, waits, and closes one round after the other.

All its state is in the store, so a coordinator that was killed is restarted and resumes. Two at once do no harm,
because the board moves by compare-and-swap and a round is committed once. It is a generator that yields how many
seconds to wait, so that a test can run it by a clock of its own.
"""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Callable, Collection, Generator, Mapping
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from fedpipe.errors import DroppedError, QuorumError, RoundError, StoreUnavailableError
from fedpipe.rounds.history import commit, read_record
from fedpipe.rounds.manifests import Record
from fedpipe.rounds.plan import Plan
from fedpipe.rounds.received import Source, guarded
from fedpipe.rounds.roll import Roll
from fedpipe.rounds.stopping import monitored, stalled
from fedpipe.rounds.timings import Timing, note
from fedpipe.sessions.board import ENDINGS, Away, Board, Ending, Keeper, MovedError
from fedpipe.sessions.pacing import patience_of, pause
from fedpipe.sessions.phases import Early, Phase, Script
from fedpipe.sessions.scripts import script_of
from fedpipe.store import Store, keys
from fedpipe.store.requests import each

log = logging.getLogger("fedpipe")

Rounds = Generator[float, None, Record]
"""Yields seconds to wait, and returns a record."""

_GRAIN = 2.0
"""Seconds by which a store's age may be wrong: S3 servers report whole seconds, some of them a little late."""


class Moment(NamedTuple):
    """An event for a listener: a phase is `opened`, a learner `answered`, a round is `closed`, the session has `ended`.

    `last` is the session's last round.
    """

    what: str
    board: Board
    learner: str = ""
    took_part: bool = False
    record: Record | None = None
    seconds: float = 0.0
    last: int = 0


class _Answers(NamedTuple):
    """The learners that answered, with whether they took part; and whether the deadline passed."""

    took_part: Mapping[str, bool]
    late: bool


class Coordinator:
    """Works through the rounds of a run that are not committed yet.

    Args:
        store: the federation's store.
        plan: the run's plan.
        session: distinguishes this session from earlier ones of the run.
        last: the last round of this session; 0: the plan's.
        clock: seconds of this process; no other clock is compared with them.
        listener: takes every moment.
        random: of the jitter between looks.
        script: returns a round's script, from the record of the round before; by default the plan's algorithm.
        opening: a phase whose closing commits round 0; None for a run that has begun.
        final: returns the phase after the last round, from its record; None for a session that others follow.
    """

    def __init__(
        self, store: Store, plan: Plan, session: str, *, last: int = 0,
        clock: Callable[[], float] = time.monotonic, listener: Callable[[Moment], None] = lambda _: None,
        random: Random | None = None, script: Callable[[Record], Script] | None = None,
        opening: Phase | None = None, final: Callable[[Record], Phase] | None = None,
    ) -> None:  # fmt: skip
        self._store, self._plan, self._federation = store, plan, plan.federation
        self._session = session
        self._last = min(last or plan.federation.training.rounds, plan.federation.training.rounds)
        self._clock, self._listener, self._random = clock, listener, random or Random()  # noqa: S311  (jitter)
        self._keeper = Keeper(store, plan.run, session, clock)
        self._script = script or script_of(store, plan, session=session)
        self._opening, self._final = opening, final
        self._record: Record | None = None
        self._values: list[float] = []
        self._away: dict[str, Away] = {}
        self._lost: float | None = None

    def run(self) -> Rounds:
        """Work until the session has ended; yield seconds to wait, and return the last record.

        Raises:
            QuorumError: a round stayed below the quorum at every try; HEAD is at the last good one.
            RoundError: a round cannot be committed, or another session took over.
            StoreError: the store failed for good.
        """
        while True:
            try:
                self._keeper.refresh()
                return (yield from self._work())
            except MovedError:
                log.info("another coordinator of this session is working too")
                yield pause(0.0, len(self._federation.learners), self._random)
            except StoreUnavailableError as error:
                self._lost = self._clock() if self._lost is None else self._lost
                if self._clock() - self._lost > patience_of(self._federation):
                    raise
                log.warning("the store does not answer; trying again: %s", error)
                yield 1.0

    def _work(self) -> Rounds:
        board = self._keeper.board
        self._away = dict(board.away) if board else {}
        if board is not None and board.phase == "ended":  # a retried step finds no learners any more
            if board.ending in ("below_quorum", "failed"):
                raise (QuorumError if board.ending == "below_quorum" else RoundError)(board.why)
            return self._begun()
        if self._opening is not None:
            yield from self._open_run(self._opening)
            self._opening = None
        record = self._begun()
        try:
            commit(self._store, record)  # an earlier commit may have been interrupted before HEAD moved
            while not (ending := self._ending(record)):
                record = yield from self._round(record)
            if self._final is not None:
                yield from self._played(self._final(record), past=False)
        except RoundError as error:
            ended: Ending = "below_quorum" if isinstance(error, QuorumError) else "failed"
            self._end(record.weights, record.round, ended, str(error))
            raise
        self._end(record.weights, record.round, ending, ENDINGS[ending])
        return record

    def _open_run(self, phase: Phase) -> Generator[float, None, None]:
        try:
            yield from self._played(phase, past=False)
        except RoundError as error:
            self._end(phase.base, phase.round, "failed", str(error))
            raise

    def _begun(self) -> Record:
        """Return the last committed round; keep the monitored metric of the earlier ones."""
        number = self._record.round + 1 if self._record else 0
        while found := read_record(self._store, self._plan.run, number):
            self._keep(found)
            number += 1
        if self._record is None:
            raise RoundError(f"run {self._plan.run!r} has not begun: round 0 is not committed")
        return self._record

    def _keep(self, record: Record) -> None:
        self._record = record
        if stopping := self._federation.training.early_stopping:
            self._values += monitored([record], stopping.metric)

    def _ending(self, record: Record) -> Ending:
        training = self._federation.training
        if record.round >= self._last:
            return "done"
        if self._store.size(keys.stop(self._plan.run)) is not None:
            return "stopped"
        if training.early_stopping and stalled(self._values, training.early_stopping):
            return "early_stopping"
        age = self._store.age(keys.record(self._plan.run, 0)) if training.max_seconds else None
        return "max_seconds" if age is not None and age >= training.max_seconds else ""

    def _end(self, base: str, number: int, ending: Ending, why: str) -> None:
        board = self._keeper.move(self._made(base, number, "ended", (), ending=ending, why=why[:500]))
        log.info("the session ends after round %d: %s", number, why)
        self._notify(Moment("ended", board))

    def _notify(self, moment: Moment) -> None:
        self._listener(moment._replace(last=self._last))

    def _made(
        self, base: str, number: int, phase: str, asked: tuple[str, ...], *, attempt: int = 1, candidate: str = "",
        owner: str = "", ending: Ending = "", why: str = "",
    ) -> Board:  # fmt: skip
        return Board(
            format=self._plan.format,
            federation=self._federation.name, run=self._plan.run, session=self._session, round=number,
            attempt=attempt, phase=phase, base=base, asked=asked, candidate=candidate, owner=owner,
            away=dict(self._away), ending=ending, why=why,
        )  # fmt: skip

    def _round(self, previous: Record) -> Rounds:
        """Play the script of a round; after a crash it is played from its start, and finds its work done."""
        script, result = self._script(previous), None
        played: list[tuple[int, str]] = []
        while True:
            try:
                phase: Phase = script.send(result)
            except StopIteration as end:
                record: Record = end.value
                break
            played.append((phase.round, phase.name))
            result = yield from self._played(phase, self._is_past(phase, played))
        self._keep(record)
        if self._keeper.board is not None:
            self._notify(Moment("closed", self._keeper.board, record=record, seconds=self._keeper.waited()))
        return record

    def _is_past(self, phase: Phase, played: list[tuple[int, str]]) -> bool:
        """Return whether the board, as an earlier coordinator left it, is at a later phase of the script."""
        board = self._keeper.board
        return board is not None and board.round >= phase.round and (board.round, board.phase) not in played

    def _played(self, phase: Phase, past: bool) -> Generator[float, None, Any]:
        """Open a phase and close it; repeat this while too few take part and retries are left."""
        if past:
            return self._closed(phase, Roll(phase.asks(1, ())), None)
        board = self._keeper.board
        attempt = board.attempt if board and self._keeper.at(phase.round, phase.name) else 1
        refused: set[str] = set()
        while True:
            with tempfile.TemporaryDirectory() as folder:
                roll, early = yield from self._asked(phase, attempt, Path(folder), refused)
                try:
                    return self._closed(phase, roll, early)
                except QuorumError as error:
                    more = set(phase.asks(attempt + 1, self._away)) - set(roll.asked)
                    if attempt > phase.retries or (error.lasting and not more):
                        raise
                    refused |= set(error.missing) - set(roll.excused)
                    log.warning("%s; trying the round again", error.what)
            attempt += 1

    def _asked(
        self, phase: Phase, attempt: int, folder: Path, refused: Collection[str]
    ) -> Generator[float, None, tuple[Roll, Early | None]]:
        """Ask the learners of the phase, and wait until it is over.

        Answers of those that were refused in an earlier attempt count at the closing, but do not end the wait.
        """
        self._come_back()
        asked = phase.asks(attempt, self._away)
        if not asked:
            return Roll((), excused=_excuses(self._away), attempt=attempt), None
        board = self._open(
            self._made(
                phase.base, phase.round, phase.name, asked, attempt=attempt, candidate=phase.candidate,
                owner=phase.owner,
            )
        )  # fmt: skip
        early = phase.early(board.asked, folder)
        excused = self._excused(board, phase, (yield from self._answers(board, phase, early, refused)))
        if phase.round:
            self._note(board)
        return Roll(board.asked, excused=excused, attempt=attempt), early

    def _open(self, board: Board) -> Board:
        board = self._keeper.move(board)
        log.info("round %d %s: asking %s", board.round, board.phase, ", ".join(board.asked))
        self._notify(Moment("opened", board))
        return board

    def _answers(
        self, board: Board, phase: Phase, early: Early | None, refused: Collection[str]
    ) -> Generator[float, None, _Answers]:
        """Wait until all have answered, enough took part, or the deadline passes."""
        needed, deadline = phase.enough(board.asked), max(self._federation.quorum.deadline, phase.seconds)
        answers: dict[str, bool] = {}
        offered: list[str] = []
        while True:
            awaited = [name for name in board.asked if name not in answers]
            signs = each(self._store, self._keeper.sign, awaited)
            seen = [(name, sign) for name, sign in zip(awaited, signs, strict=True) if sign]
            left = [name for name, sign in seen if sign.leaves and sign.session == board.session]
            given = {name: sign.took_part for name, sign in seen if sign.answers(board)}
            came = [*given.items(), *((name, False) for name in left if name not in given)]
            self._away |= {name: Away(since=board.round, sign=self._keeper.sign_digest(name)) for name in left}
            counts = each(self._store, partial(_counts, phase), came)
            for (name, _), took_part in zip(came, counts, strict=True):
                answers[name] = took_part
                self._answered(board, name, answers)
                offered += [name] if took_part else []
            self._lost = None
            counted = sum(took_part for name, took_part in answers.items() if name not in refused)
            if len(answers) == len(board.asked) or counted >= needed:
                return _Answers(answers, late=False)
            waited = self._keeper.waited()
            if waited >= deadline:
                return _Answers(answers, late=True)
            if early is not None and offered:
                early.take(offered.pop(0))
                continue
            remaining = deadline - waited
            few = len(board.asked) - len(answers)  # the fewer are awaited, the less a poll costs
            yield min(max(remaining, 0.01), pause(waited * few / len(board.asked), few, self._random))

    def _answered(self, board: Board, name: str, answers: Mapping[str, bool]) -> None:
        awaited = [n for n in board.asked if n not in answers]
        rest = f"; awaiting {', '.join(awaited[:5])}{' and more' if len(awaited) > 5 else ''}" if awaited else ""
        seconds = self._keeper.waited()
        log.info(
            "round %d %s: %s after %.1f s, %d of %d%s", board.round, board.phase, name, seconds, len(answers),
            len(board.asked), rest,
        )  # fmt: skip
        self._notify(Moment("answered", board, name, answers[name], seconds=seconds))

    def _note(self, board: Board) -> None:
        """Record how long the learners were awaited."""
        waited = self._keeper.waited()
        timing = Timing(step=f"await-{board.phase}", round=board.round, started=time.time() - waited, seconds=waited)
        note(self._store, board.run, timing)

    def _excused(self, board: Board, phase: Phase, answers: _Answers) -> dict[str, str]:
        """Return the learners whose answers do not count, with the reason; late ones are away from now on."""
        excused = _excuses({name: away for name, away in board.away.items() if name not in board.asked})
        missing = [name for name in board.asked if name not in answers.took_part]
        if not answers.late:
            count = sum(answers.took_part.values())
            return excused | dict.fromkeys(missing, f"not needed: {count} others had answered")
        for name in missing:
            if not self._in_time(board, name, phase.answer):
                excused[name] = f"late: no {phase.answer} within {self._federation.quorum.deadline:g} s"
                self._away[name] = Away(since=board.round, sign=self._keeper.sign_digest(name))
        return excused

    def _in_time(self, board: Board, name: str, part: str) -> bool:
        """Return whether a learner without a sign has written its answer before the deadline, by the store's clock."""
        source = Source(self._store, board.run, keys.answer(name, board.run, board.round, part), part)
        try:
            age = guarded(source, lambda: self._store.age(source.key))
        except DroppedError:
            return True  # it is there, and the closing reports why it cannot be used
        return age is not None and self._keeper.waited() - age <= self._federation.quorum.deadline + _GRAIN

    def _come_back(self) -> None:
        """Let learners that were away and have left a new sign take part again."""
        for name, away in list(self._away.items()):
            if self._keeper.sign(name) and self._keeper.sign_digest(name) != away.sign:
                del self._away[name]
                log.info("%s is back", name)

    def _closed(self, phase: Phase, roll: Roll, early: Early | None) -> Any:
        if not phase.closing:
            return phase.close(roll, early)
        started, begun = time.time(), self._clock()
        result = phase.close(roll, early)
        seconds = self._clock() - begun
        timing = Timing(step=phase.closing, round=phase.round, started=started, seconds=seconds)
        note(self._store, self._plan.run, timing)
        metrics = result.metrics if isinstance(result, Record) else {}
        numbers = " ".join(f"{name} {value:.4g}" for name, value in metrics.items())
        log.info("round %d %s in %.1f s%s", phase.round, phase.closing, seconds, f": {numbers}" if numbers else "")
        return result


def _counts(phase: Phase, answer: tuple[str, bool]) -> bool:
    """Return whether a learner took part, as it says, and has left its answer."""
    name, took_part = answer
    return took_part and phase.answered(name)


def _excuses(away: Mapping[str, Away]) -> dict[str, str]:
    return {name: f"away since round {item.since}" for name, item in away.items()}
