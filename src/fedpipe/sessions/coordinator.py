"""The coordinator of a session: asks, waits, and closes one round after the other.

It keeps nothing that matters: all it knows is in the store, and one that was killed is started again and goes on. Two
at once do no harm, for the board moves by compare-and-swap and a round is committed once. It is a generator that
yields how many seconds to wait, so that a test can run it by a clock of its own.
"""

from __future__ import annotations

import contextlib
import logging
import tempfile
import time
from collections.abc import Callable, Generator, Mapping
from functools import partial
from pathlib import Path
from random import Random
from typing import NamedTuple

from fedpipe.aggregation import Forest
from fedpipe.errors import CorruptError, DroppedError, QuorumError, RoundError, StoreUnavailableError, TooLargeError
from fedpipe.rounds.closing import close_round, close_vote, in_constant_memory, plant, proposal_of, source_of
from fedpipe.rounds.history import commit, read_candidate, read_record, record_key, record_layout
from fedpipe.rounds.manifests import Record
from fedpipe.rounds.plan import Plan
from fedpipe.rounds.roll import Roll, learner_key
from fedpipe.rounds.selection import enough, select
from fedpipe.rounds.stopping import monitored, stalled
from fedpipe.rounds.timings import Timing, note
from fedpipe.rounds.updates import check_update, find_update
from fedpipe.rounds.voting import proposer_of
from fedpipe.sessions.board import ENDINGS, Away, Board, Ending, Keeper, MovedError, Phase, stop_key
from fedpipe.sessions.pacing import patience_of, pause
from fedpipe.store import Store
from fedpipe.weights import Layout

log = logging.getLogger("fedpipe")

Rounds = Generator[float, None, Record]
"""Yields seconds to wait, and returns a record."""
Close = Callable[[int, str, Roll], Record]
"""Takes a round's number, the digest of the weights that it began with, and whom it asked."""

_GRAIN = 2.0
"""Seconds by which a store's age may be wrong: S3 servers tell whole ones, and some tell now a little late."""


class Moment(NamedTuple):
    """What a listener hears: a phase is `opened`, a learner `answered`, a round is `closed`, the session has `ended`.

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
    """Who took part (or answered that it cannot), and whether the deadline passed."""

    took_part: Mapping[str, bool]
    late: bool


class Coordinator:
    """Works through the rounds of a run that are not committed yet.

    Args:
        store: the federation's store.
        plan: the run's plan.
        session: what tells this session from an earlier one of the run.
        last: the last round of this session; 0: the plan's.
        clock: seconds, of this process alone.
        listener: hears of every moment.
        random: of the jitter between looks.
        close: aggregates a round and commits it; by default in constant memory, as updates arrive.
    """

    def __init__(
        self, store: Store, plan: Plan, session: str, *, last: int = 0,
        clock: Callable[[], float] = time.monotonic, listener: Callable[[Moment], None] = lambda _: None,
        random: Random | None = None, close: Close | None = None,
    ) -> None:  # fmt: skip
        self._store, self._plan, self._federation = store, plan, plan.federation
        self._session = session
        self._last = min(last or plan.federation.training.rounds, plan.federation.training.rounds)
        self._clock, self._tell, self._random = clock, listener, random or Random()  # noqa: S311  (jitter)
        self._keeper = Keeper(store, plan.run, session, clock)
        self._close, self._plants = close or self._close_here, close is None
        self._record: Record | None = None
        self._values: list[float] = []
        self._away: dict[str, Away] = {}
        self._forest: Forest | None = None
        self._layout: Layout | None = None
        self._lost: float | None = None

    def run(self) -> Rounds:
        """Works until the session has ended; yields seconds to wait, and returns the last record.

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
                log.info("another coordinator of this session is at work as well")
                yield pause(0.0, len(self._federation.learners), self._random)
            except StoreUnavailableError as error:
                self._lost = self._clock() if self._lost is None else self._lost
                if self._clock() - self._lost > patience_of(self._federation):
                    raise
                log.warning("the store does not answer; trying again: %s", error)
                yield 1.0

    def _work(self) -> Rounds:
        record = self._begun()
        board = self._keeper.board
        self._away = dict(board.away) if board else {}
        if board is not None and board.phase == "ended":  # a step that is tried again finds no learner any more
            if board.ending in ("below_quorum", "failed"):
                raise (QuorumError if board.ending == "below_quorum" else RoundError)(board.why)
            return record
        try:
            commit(self._store, record)  # it may have been cut off before HEAD moved
            if self._federation.vote and not record.round:
                yield from self._score_start(record)
            while not (ending := self._ending(record)):
                record = yield from self._round(record)
        except RoundError as error:
            self._end(record, "below_quorum" if isinstance(error, QuorumError) else "failed", str(error))
            raise
        self._end(record, ending, ENDINGS[ending])
        return record

    def _begun(self) -> Record:
        """The last committed round. What earlier ones tell of the metric is kept."""
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
        if self._store.size(stop_key(self._plan.run)) is not None:
            return "stopped"
        if training.early_stopping and stalled(self._values, training.early_stopping):
            return "early_stopping"
        age = self._store.age(record_key(self._plan.run, 0)) if training.max_seconds else None
        return "max_seconds" if age is not None and age >= training.max_seconds else ""

    def _end(self, record: Record, ending: Ending, why: str) -> None:
        board = self._keeper.move(self._made(record, record.round, 1, "ended", (), ending=ending, why=why[:500]))
        log.info("the session ends after round %d: %s", record.round, why)
        self._listen(Moment("ended", board))

    def _listen(self, moment: Moment) -> None:
        self._tell(moment._replace(last=self._last))

    def _made(
        self, base: Record, number: int, attempt: int, phase: Phase, asked: tuple[str, ...], *, candidate: str = "",
        owner: str = "", ending: Ending = "", why: str = "",
    ) -> Board:  # fmt: skip
        return Board(
            federation=self._federation.name, run=self._plan.run, session=self._session, round=number,
            attempt=attempt, phase=phase, base=base.weights, asked=asked, candidate=candidate, owner=owner,
            away=dict(self._away), ending=ending, why=why,
        )  # fmt: skip

    def _score_start(self, record: Record) -> Generator[float, None, None]:
        """The learners score the first weights; whoever does not has nothing to compare with later."""
        names = tuple(learner.name for learner in self._federation.learners)
        board = self._open(self._made(record, 0, 1, "vote", names, candidate=record.weights))
        self._excused(board, (yield from self._answers(board)))

    def _round(self, previous: Record) -> Rounds:
        if self._federation.proposers:
            record = yield from self._collective(previous)
        else:
            record = yield from self._averaging(previous)
        self._keep(record)
        return record

    def _averaging(self, previous: Record) -> Rounds:
        number = previous.round + 1

        def ask(attempt: int) -> tuple[str, ...]:
            return select(self._federation, number, attempt, self._away)

        def close(roll: Roll) -> Record:
            return self._close(number, previous.weights, roll)

        drafted = read_candidate(self._store, self._plan.run, number) if self._federation.vote else None
        if drafted is None:
            drafted = yield from self._tried(previous, "train", ask, close)
        if not self._federation.vote:
            return drafted
        return (yield from self._vote(previous, drafted.weights, ""))

    def _close_here(self, number: int, base: str, roll: Roll) -> Record:
        return close_round(self._store, self._plan, number, base, roll, in_constant_memory(self._forest))

    def _collective(self, previous: Record) -> Rounds:
        number = previous.round + 1
        proposer = proposer_of(self._federation.proposers, number)
        self._come_back()
        unheard: dict[str, str] = {}
        if proposer in self._away:
            unheard = {proposer: _told(self._away[proposer])}
        elif not self._keeper.at(number, "vote"):
            board = self._open(self._made(previous, number, 1, "train", (proposer,)))
            unheard = self._excused(board, (yield from self._answers(board)))
            self._note(board)
        roll = Roll(tuple(learner.name for learner in self._federation.learners), unheard=unheard)
        proposed = proposal_of(self._store, self._plan, previous, roll)
        if proposed.candidate is None:
            close = partial(close_vote, self._store, self._plan, number, previous.weights)
            return self._closed(number, "tally", close, roll)
        return (yield from self._vote(previous, proposed.candidate, proposer))

    def _vote(self, previous: Record, candidate: str, owner: str) -> Rounds:
        number, names = previous.round + 1, tuple(learner.name for learner in self._federation.learners)

        def ask(attempt: int) -> tuple[str, ...]:
            there = tuple(name for name in names if name not in self._away)
            return names if attempt > 1 or len(there) < self._federation.min_learners else there

        close = partial(close_vote, self._store, self._plan, number, previous.weights)
        return (yield from self._tried(previous, "vote", ask, close, candidate, owner))

    def _tried(
        self, previous: Record, phase: Phase, ask: Callable[[int], tuple[str, ...]], close: Callable[[Roll], Record],
        candidate: str = "", owner: str = "",
    ) -> Rounds:  # fmt: skip
        """Opens a phase and closes it, again and again while too few take part and another try is left."""
        number, board = previous.round + 1, self._keeper.board
        attempt = board.attempt if board and self._keeper.at(number, phase) else 1
        while True:
            self._come_back()
            board = self._open(
                self._made(previous, number, attempt, phase, ask(attempt), candidate=candidate, owner=owner)
            )
            with tempfile.TemporaryDirectory() as folder:
                self._forest = self._planted(previous, board, Path(folder))
                excused = self._excused(board, (yield from self._answers(board)))
                self._note(board)
                roll = Roll(board.asked, excused=excused, attempt=attempt)
                try:
                    return self._closed(number, "aggregate" if phase == "train" else "tally", close, roll)
                except QuorumError as error:
                    if attempt > self._federation.quorum.retries:
                        raise
                    log.warning("%s; trying the round again", error.what)
            attempt += 1

    def _planted(self, previous: Record, board: Board, folder: Path) -> Forest | None:
        """Return where updates of this round are added as they arrive; None where that is impossible or in vain."""
        if not self._plants or board.phase != "train" or self._federation.proposers:
            return None
        layout = self._layout = self._layout or record_layout(self._store, previous)
        return plant(self._store, self._plan, layout, board.asked, folder)

    def _fetch(self, board: Board, name: str) -> None:
        """Fetches an update and adds it, while others are awaited; what is wrong with it, the closing will say."""
        with contextlib.suppress(DroppedError, CorruptError, TooLargeError):
            update = find_update(self._store, name, board.run, board.round)
            if update is not None and self._forest is not None:
                check_update(
                    update, federation=board.federation, run=board.run, number=board.round, learner=name,
                    base=board.base,
                )  # fmt: skip
                try:
                    self._forest.add(source_of(self._plan, update))
                except OSError as error:  # no space to keep it: the closing streams from the store
                    log.warning("updates are not added before all are there: %s", error.strerror)
                    self._forest = None

    def _open(self, board: Board) -> Board:
        board = self._keeper.move(board)
        log.info("round %d %s: asking %s", board.round, board.phase, ", ".join(board.asked))
        self._listen(Moment("opened", board))
        return board

    def _answers(self, board: Board) -> Generator[float, None, _Answers]:
        """Waits until all have answered, enough took part, or the deadline passes."""
        needed = enough(self._federation, board.asked) if board.phase == "train" else len(board.asked)
        told: dict[str, bool] = {}
        offered: list[str] = []
        while True:
            for name in board.asked:
                sign = None if name in told else self._keeper.sign(name)
                if sign and (sign.round, sign.attempt, sign.phase) == (board.round, board.attempt, board.phase):
                    told[name] = sign.took_part
                    self._answered(board, name, told)
                    offered += [name] if sign.took_part else []
            self._lost = None
            if len(told) == len(board.asked) or sum(told.values()) >= needed:
                return _Answers(told, late=False)
            waited = self._keeper.waited()
            if waited >= self._federation.quorum.deadline:
                return _Answers(told, late=True)
            if self._forest is not None and offered:
                self._fetch(board, offered.pop(0))
                continue
            left = self._federation.quorum.deadline - waited
            share = 1 - len(told) / len(board.asked)  # the fewer are awaited, the less a look costs
            yield min(max(left, 0.01), pause(waited * share, len(board.asked), self._random))

    def _answered(self, board: Board, name: str, told: Mapping[str, bool]) -> None:
        awaited = [n for n in board.asked if n not in told]
        rest = f"; awaiting {', '.join(awaited[:5])}{' and more' if len(awaited) > 5 else ''}" if awaited else ""
        seconds = self._keeper.waited()
        log.info(
            "round %d %s: %s after %.1f s, %d of %d%s", board.round, board.phase, name, seconds, len(told),
            len(board.asked), rest,
        )  # fmt: skip
        self._listen(Moment("answered", board, name, told[name], seconds=seconds))

    def _note(self, board: Board) -> None:
        """How long the learners were awaited."""
        waited = self._keeper.waited()
        timing = Timing(step=f"await-{board.phase}", round=board.round, started=time.time() - waited, seconds=waited)
        note(self._store, board.run, timing)

    def _excused(self, board: Board, answers: _Answers) -> dict[str, str]:
        """Whose part does not count, and why; whoever is late is away from now on."""
        excused = {name: _told(away) for name, away in board.away.items() if name not in board.asked}
        missing = [name for name in board.asked if name not in answers.took_part]
        if not answers.late:
            count = sum(answers.took_part.values())
            return excused | dict.fromkeys(missing, f"not needed: {count} others had answered")
        part = "update" if board.phase == "train" else "ballot"
        for name in missing:
            if not self._in_time(board, name, part):
                excused[name] = f"late: no {part} within {self._federation.quorum.deadline:g} s"
                self._away[name] = Away(since=board.round, sign=self._keeper.sign_digest(name))
        return excused

    def _in_time(self, board: Board, name: str, part: str) -> bool:
        """Whether a learner whose sign is missing has left its part before the deadline, by the store's clock."""
        age = self._store.age(learner_key(name, board.run, board.round, part))
        return age is not None and self._keeper.waited() - age <= self._federation.quorum.deadline + _GRAIN

    def _come_back(self) -> None:
        """Learners that were away and have left a new sign take part again."""
        for name, away in list(self._away.items()):
            if self._keeper.sign(name) and self._keeper.sign_digest(name) != away.sign:
                del self._away[name]
                log.info("%s is back", name)

    def _closed(self, number: int, step: str, close: Callable[[Roll], Record], roll: Roll) -> Record:
        started, begun = time.time(), self._clock()
        record = close(roll)
        seconds = self._clock() - begun
        note(self._store, self._plan.run, Timing(step=step, round=number, started=started, seconds=seconds))
        numbers = " ".join(f"{name} {value:.4g}" for name, value in record.metrics.items())
        log.info("round %d %s in %.1f s: %s", number, step, seconds, numbers)
        if self._keeper.board is not None and not (step == "aggregate" and self._federation.vote):
            self._listen(Moment("closed", self._keeper.board, record=record, seconds=self._keeper.waited()))
        return record


def _told(away: Away) -> str:
    return f"away since round {away.since}"
