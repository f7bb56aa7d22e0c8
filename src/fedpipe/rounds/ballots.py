"""Ballots of a round in the store: cast once, collected by the tally.

learners/<name>/runs/<run>/<round>/ballot   how a learner voted, and what it measured
learners/<name>/runs/<run>/<round>/absent   why a learner did not vote
"""

from __future__ import annotations

import logging

from fedpipe.errors import DroppedError
from fedpipe.identity.enrolment import Enrolled, read_enrolled
from fedpipe.identity.statements import check_signed
from fedpipe.rounds.claims import Claims
from fedpipe.rounds.history import read_record
from fedpipe.rounds.manifests import Ballot, Dropped, Scores
from fedpipe.rounds.plan import Plan
from fedpipe.rounds.received import Source, receive, usable
from fedpipe.rounds.roll import Roll, gather, is_of_try, publish_answer
from fedpipe.rounds.voting import check_ballot
from fedpipe.store import Store, keys

log = logging.getLogger("fedpipe")


def publish_ballot(store: Store, ballot: Ballot) -> Ballot:
    """Write a ballot unless there is one, and return the stored one."""
    return publish_answer(_source(store, ballot.learner, ballot.run, ballot.round), ballot)


def _source(store: Store, learner: str, run: str, number: int) -> Source:
    return Source(store, run, keys.ballot(learner, run, number), "ballot")


def find_ballot(store: Store, learner: str, run: str, number: int) -> Ballot | None:
    """Return a learner's ballot of a round, or None. Raises DroppedError."""
    return receive(_source(store, learner, run, number), Ballot)


def own_ballot(store: Store, learner: str, run: str, number: int) -> Ballot | None:
    """Return a learner's ballot of a round; None also if it cannot be used."""
    return usable(_source(store, learner, run, number), Ballot, learner=learner, run=run, round=number)


def find_vote(store: Store, plan: Plan, learner: str, number: int, base: str) -> Ballot | Dropped | None:
    """Return a learner's ballot, or its absence from a committed round; None when it still has to vote."""
    ballot = own_ballot(store, learner, plan.run, number)
    if ballot is not None and is_of_try(ballot, plan.definition.digest, base):
        return ballot
    record = read_record(store, plan.run, number) if number else None
    return next((item for item in record.absent if item.learner == learner), None) if record else None


def known_scores(
    store: Store, learner: str, run: str, number: int, base: str, plan: str | None = None
) -> Scores | None:
    """Return this learner's scores of a round's base, from its last ballot; None when that is of other weights."""
    for earlier in range(number - 1, -1, -1):
        ballot = own_ballot(store, learner, run, earlier)
        if ballot is not None and (None in (ballot.plan, plan) or ballot.plan == plan):
            return {ballot.base: ballot.current, ballot.candidate: ballot.proposed}.get(base)
    return None


def collect_ballots(
    store: Store, plan: Plan, *, number: int, base: str, candidate: str, roll: Roll
) -> tuple[list[Ballot], list[Dropped]]:
    """Return the valid ballots of a round, and the learners without one with the reason, both sorted by name."""
    enrolled = read_enrolled(store)

    def read(learner: str) -> Ballot | None:
        return _valid(store, plan, enrolled, number, base, candidate, learner)

    return gather(store, plan.run, number, roll, read, name="absent", otherwise="no ballot")


def is_cast(
    store: Store, plan: Plan, enrolled: Enrolled, number: int, base: str, candidate: str, learner: str
) -> bool:  # fmt: skip
    """Return whether a learner has left a valid ballot in a round."""
    try:
        return _valid(store, plan, enrolled, number, base, candidate, learner) is not None
    except DroppedError as error:
        log.warning("round %d: the ballot of %s does not count: %s", number, learner, error.what)
        return False


def _valid(
    store: Store, plan: Plan, enrolled: Enrolled, number: int, base: str, candidate: str, learner: str
) -> Ballot | None:
    """Return a learner's ballot if it belongs to the vote, is signed, and claims no more than it has.

    Raises:
        DroppedError: the reason why it does not count.
    """
    federation, vote = plan.federation, plan.federation.vote
    assert vote is not None
    ballot = find_ballot(store, learner, plan.run, number)
    if ballot is not None:
        check_ballot(
            ballot, vote=vote, federation=federation.name, run=plan.run, number=number, learner=learner, base=base,
            candidate=candidate,
        )  # fmt: skip
        if ballot.plan not in (None, plan.definition.digest):
            raise DroppedError("the ballot belongs to an earlier try of the run, with other settings")
        check_signed(ballot, enrolled)
        Claims.of(plan, enrolled).check_ballot(ballot)
    return ballot


def start_scores(store: Store, plan: Plan) -> dict[str, Scores]:
    """Return the learners' scores of the run's first weights; some may be missing."""
    found: dict[str, Scores] = {}
    definition = plan.definition.digest
    for learner in plan.federation.learners:
        ballot = own_ballot(store, learner.name, plan.run, 0)
        if ballot is not None and ballot.plan in (None, definition):
            found[learner.name] = ballot.current
    return found
