"""The algorithms, each as a script that reads like its paper."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from functools import cache, partial
from pathlib import Path

from msgspec.structs import replace

from fedpipe.errors import DroppedError, InputError, RoundError
from fedpipe.identity.enrolment import Enrolled, read_enrolled
from fedpipe.rounds.aligned import FIRST, close_aligned, read_aligned
from fedpipe.rounds.ballots import is_cast
from fedpipe.rounds.closing import close_round, close_vote, encoding_of, in_constant_memory, proposal_of
from fedpipe.rounds.cut import close_cut, is_joined
from fedpipe.rounds.early import EarlySums
from fedpipe.rounds.evaluation import earlier_model, is_scored
from fedpipe.rounds.history import begun_from, commit, is_aggregated, record_layout
from fedpipe.rounds.manifests import Record, Update
from fedpipe.rounds.plan import Plan
from fedpipe.rounds.roll import Roll
from fedpipe.rounds.selection import enough, select
from fedpipe.rounds.updates import find_offered
from fedpipe.rounds.voting import proposer_of
from fedpipe.sessions.alignment import ALIGN, ALIGN_SECONDS
from fedpipe.sessions.phases import Early, Phase, Script, close_phase
from fedpipe.sessions.secure import SecureRound, secure_averaging
from fedpipe.store import Store, keys
from fedpipe.weights import Layout

log = logging.getLogger("fedpipe")

Aggregate = Callable[[int, str, Roll], Record]
"""Aggregates a round and commits it, from its number, the digest of its base, and its roll."""


_TEST_SECONDS = 300.0
"""Seconds that learners have at least for the test of the last model: the quorum's deadline is one of trainings."""


def averaging(round: Round) -> Script:
    """Play federated averaging (McMahan et al. 2017, Algorithm 1); when learners vote, the aggregate is a candidate."""
    aggregated: Record = yield round.train()
    if not round.votes:
        return aggregated
    voted: Record = yield round.vote(aggregated)
    return voted


def collective(round: Round) -> Script:
    """Play collective learning (Fetch.ai's colearn): one learner proposes, all vote."""
    proposed: Record = yield round.propose()
    voted: Record = yield round.vote(proposed) if proposed.candidate else round.reject(proposed)
    return voted


def split(round: Round) -> Script:
    """Play split learning (Gupta and Raskar 2018): the parties exchange batches with each other.

    Before the first round they find their common rows, if the federation says so.
    """
    if round.aligns:
        yield round.align()
    joined: Record = yield round.exchange()
    return joined


def script_of(
    store: Store, plan: Plan, aggregate: Aggregate | None = None, session: str = ""
) -> Callable[[Record], Script]:
    """Return the scripts of a run's rounds, each from the record of the round before.

    Args:
        store: the federation's store.
        plan: the run's plan.
        aggregate: aggregates a round and commits it; by default in constant memory, as updates arrive.
        session: of the coordinator, to which the keys of secure sums and statements about common rows belong.
    """
    algorithm = split if plan.federation.split else collective if plan.federation.proposers else averaging
    layouts: dict[str, Layout] = {}  # one for a whole run

    def layout(previous: Record) -> Layout:
        if previous.layout not in layouts:
            layouts[previous.layout] = record_layout(store, previous)
        return layouts[previous.layout]

    def script(previous: Record) -> Script:
        if plan.federation.secure:
            return (yield from secure_averaging(SecureRound(store, plan, previous, layout(previous), session)))
        round = Round(store, plan, previous, layout, aggregate, session)
        if round.votes and not previous.round:
            yield round.score_start()
        return (yield from algorithm(round))

    return script


def describing(plan: Plan, begin: Callable[[Collection[str]], Record]) -> Phase:
    """Return the phase before round 1 in which learners disclose statistics of their tables; it closes with round 0.

    Args:
        plan: the run's plan.
        begin: commits round 0, from the learners whose statistics do not count.
    """
    names = tuple(learner.name for learner in plan.federation.learners)

    def close(roll: Roll, _early: Early | None) -> Record:
        try:
            return begin(sorted(roll.excused))
        except InputError as error:
            raise RoundError(error.what, where=error.where, remedy=error.remedy) from error

    return Phase(
        name="describe", round=0, base=plan.definition.digest, answer=keys.STATISTICS, asks=lambda *_: names,
        close=close,
    )  # fmt: skip


def scoring(store: Store, plan: Plan, record: Record) -> Phase:
    """Return the phase after the last round in which learners test its model, as the steps `score` do.

    Args:
        store: the federation's store.
        plan: the run's plan.
        record: of the last round.
    """
    earlier = earlier_model(store, plan)

    def asks(_attempt: int, away: Collection[str]) -> tuple[str, ...]:
        names = (learner.name for learner in plan.federation.learners if learner.name not in away)
        return tuple(
            name for name in names
            if plan.federation.scores_in_session(name) and not is_scored(store, plan, name, record.weights, earlier)
        )  # fmt: skip

    return Phase(
        name="score",
        round=record.round,
        base=record.weights,
        answer="score",
        asks=asks,
        close=lambda *_: None,
        seconds=_TEST_SECONDS,
    )


def tally_round(store: Store, plan: Plan, number: int, base: str) -> Record:
    """Play a round to its end, once everybody has voted in a step of its own.

    Args:
        store: the federation's store.
        plan: the run's plan.
        number: the round, from 1.
        base: digest of the weights that the round began with.

    Raises:
        QuorumError: too few learners voted; nothing is committed.
        RoundError: the round before is not committed or ended with other weights, or nothing was aggregated.
    """
    previous = begun_from(store, plan.run, number, base)
    if not plan.federation.proposers and not is_aggregated(store, plan.run, number):
        raise RoundError(f"round {number} has nothing to vote on: its updates are not aggregated")
    record: Record = close_phase(script_of(store, plan)(previous))
    return record


class Round:
    """The phases of which a round's script can be made.

    Args:
        store: the federation's store.
        plan: the run's plan.
        previous: the record of the round before.
        layout: reads the layout of a record's weights.
        aggregate: see `script_of`.
        session: see `script_of`.
    """

    def __init__(
        self, store: Store, plan: Plan, previous: Record, layout: Callable[[Record], Layout],
        aggregate: Aggregate | None = None, session: str = "",
    ) -> None:  # fmt: skip
        self._store, self._plan, self._previous, self._session = store, plan, previous, session
        self._layout, self._aggregate = layout, aggregate
        self._updates: dict[str, Update] = {}
        self._retries = plan.federation.quorum.retries
        self.number, self.base = previous.round + 1, previous.weights
        self.votes = plan.federation.vote is not None
        cut = plan.federation.split
        self.aligns = cut is not None and cut.align == "intersection" and not previous.round

    def train(self) -> Phase:
        """Ask the selected learners for updates; close with the aggregate."""
        return Phase(
            name="train", round=self.number, base=self.base, answer="update", asks=self._selected,
            enough=partial(enough, self._plan.federation), close=self._aggregated, closing="aggregate",
            retries=self._retries, early=self._early, answered=self._offered("objects"),
        )  # fmt: skip

    def align(self) -> Phase:
        """Ask all parties of a split network for their common rows; close when they agree."""
        enrolled = self._enrolled()

        def close(roll: Roll, _early: Early | None) -> None:
            close_aligned(self._store, self._plan, self.base, roll, self._session)

        def answered(party: str) -> bool:
            try:
                found = read_aligned(self._store, self._plan, self.base, enrolled(), party, self._session)
                return found is not None
            except DroppedError as error:
                log.warning("the alignment of %s does not count: %s", party, error.what)
                return False

        return Phase(
            name=ALIGN, round=FIRST, base=self.base, answer=keys.ALIGNED, asks=self._all, close=close,
            retries=self._retries, seconds=ALIGN_SECONDS, answered=answered,
        )  # fmt: skip

    def exchange(self) -> Phase:
        """Ask all parties of a split network for their parts, trained together; close with the joined network."""
        enrolled = self._enrolled()

        def close(roll: Roll, _early: Early | None) -> Record:
            return close_cut(self._store, self._plan, self._previous, roll)

        return Phase(
            name="exchange", round=self.number, base=self.base, answer="update", asks=self._all, close=close,
            closing="join", retries=self._retries,
            answered=lambda party: is_joined(self._store, self._plan, self._previous, enrolled(), party),
        )  # fmt: skip

    def propose(self) -> Phase:
        """Ask the proposer for an update; close with the proposal, without a candidate when nothing arrived."""
        proposer = proposer_of(self._plan.federation.proposers, self.number)

        def asks(_attempt: int, away: Collection[str]) -> tuple[str, ...]:
            return () if proposer in away else (proposer,)

        def close(roll: Roll, _early: Early | None) -> Record:
            return proposal_of(self._store, self._plan, self._previous, roll)

        return Phase(
            name="propose", round=self.number, base=self.base, answer="update", asks=asks, close=close,
            answered=self._offered("proposals"),
        )  # fmt: skip

    def vote(self, proposed: Record) -> Phase:
        """Ask all learners for a ballot on a proposal or an aggregate; close with the tally."""
        candidate = replace(proposed, candidate=proposed.candidate or proposed.weights)

        def close(roll: Roll, _early: Early | None) -> Record:
            return close_vote(self._store, self._plan, self._previous, candidate, roll)

        return Phase(
            name="vote", round=self.number, base=self.base, answer="ballot", asks=self._everybody, close=close,
            closing="tally", retries=self._retries, candidate=candidate.candidate or "", owner=proposed.proposer,
            answered=self._voted(candidate.candidate or ""),
        )  # fmt: skip

    def reject(self, proposed: Record) -> Phase:
        """Ask nobody; close with the rejection of a round in which nothing was proposed."""

        def close(_roll: Roll, _early: Early | None) -> Record:
            log.warning("round %d: nothing to vote on: %s", proposed.round, proposed.dropped[0].why)
            return commit(self._store, proposed)

        return Phase(
            name="reject", round=self.number, base=self.base, answer="", asks=lambda *_: (), close=close,
            closing="tally",
        )  # fmt: skip

    def score_start(self) -> Phase:
        """Ask all learners to score the first weights, so that the first vote has something to compare with."""
        return Phase(
            name="vote", round=0, base=self.base, answer="ballot", asks=self._all, close=lambda *_: None,
            candidate=self.base,
        )  # fmt: skip

    def _offered(self, kind: keys.Kind) -> Callable[[str], bool]:
        """Return whether a learner has left a valid update, whose weights are there; the closing takes it as read."""
        enrolled = self._enrolled()

        def offered(learner: str) -> bool:
            layout = self._layout(self._previous)
            encoding = encoding_of(self._plan, layout, Path())
            size = (encoding.layout if encoding else layout).size
            update = find_offered(self._store, self._plan, self._previous, enrolled(), learner, size, kind)
            if update is not None:
                self._updates[learner] = update
            return update is not None

        return offered

    def _voted(self, candidate: str) -> Callable[[str], bool]:
        """Return whether a learner has left a valid ballot."""
        enrolled = self._enrolled()

        def voted(learner: str) -> bool:
            return is_cast(self._store, self._plan, enrolled(), self.number, self.base, candidate, learner)

        return voted

    def _enrolled(self) -> Callable[[], Enrolled]:
        """Return a function that reads who is enrolled, once in a phase, when the first answer comes."""
        return cache(partial(read_enrolled, self._store))

    def _selected(self, attempt: int, away: Collection[str]) -> tuple[str, ...]:
        return select(self._plan.federation, self.number, attempt, away)

    def _all(self, _attempt: int, _away: Collection[str]) -> tuple[str, ...]:
        return tuple(learner.name for learner in self._plan.federation.learners)

    def _everybody(self, attempt: int, away: Collection[str]) -> tuple[str, ...]:
        """Return all learners that are not away; all when the quorum needs them, and from the second attempt on."""
        names = self._all(attempt, away)
        there = tuple(name for name in names if name not in away)
        return names if attempt > 1 or len(there) < self._plan.federation.min_learners else there

    def _aggregated(self, roll: Roll, early: Early | None) -> Record:
        if self._aggregate is not None:
            return self._aggregate(self.number, self.base, roll)
        sums = early.forest if isinstance(early, EarlySums) else None
        combiner = in_constant_memory(sums, self._layout(self._previous))
        offered, self._updates = self._updates, {}  # another attempt reads them again
        return close_round(self._store, self._plan, self.number, self.base, roll, combiner, offered=offered)

    def _early(self, asked: tuple[str, ...], folder: Path) -> Early | None:
        if self._aggregate is not None:
            return None
        layout = self._layout(self._previous)
        return EarlySums.plant(self._store, self._plan, self._previous, layout, asked, folder)
