"""Voting as pure functions: choose the proposer, check ballots, count them.

The rules are those of Fetch.ai's colearn. Up to its version 0.2.7 all n learners vote (`all_vote`); from 0.2.8 on, the
proposer's ballot is void (`others_vote`).
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from fedpipe.errors import DroppedError
from fedpipe.federation.algorithms import Vote
from fedpipe.rounds.manifests import Ballot, Outcome, Scores, Tested
from fedpipe.rounds.received import check_printable


def proposer_of(order: Sequence[str], number: int) -> str:
    """Return the proposer of a round, from 1 on, in turn; empty when nobody proposes, as in averaging.

    A proposer that is dropped has had its turn: the next round is the next learner's.

    >>> [proposer_of(("a", "b", "c"), number) for number in range(1, 6)]
    ['a', 'b', 'c', 'a', 'b']
    """
    return order[(number - 1) % len(order)] if order else ""


def electorate(vote: Vote, learners: Sequence[str], proposer: str = "") -> tuple[str, ...]:
    """Return the learners whose ballots count: all n, or the n - 1 that did not propose."""
    return tuple(name for name in learners if vote.rule == "all_vote" or name != proposer)


def score_of(vote: Vote, tested: Tested | None) -> float | None:
    """Return the criterion; None when it was not measured or was not finite."""
    return None if tested is None else tested.metrics.get(vote.criterion)


def approves(vote: Vote, current: Scores, proposed: Scores) -> bool:
    """Return whether the proposed vote score is strictly better; a score that is not finite is worse than any other.

    >>> low, high = (Scores(vote=Tested(examples=9, metrics={"loss": x})) for x in (0.5, 0.7))
    >>> approves(Vote(), high, low), approves(Vote(), low, high), approves(Vote(), low, low)
    (True, False, False)
    """
    old, new = score_of(vote, current.vote), score_of(vote, proposed.vote)
    if new is None:
        return False
    return old is None or (new < old if vote.minimised else new > old)


def bar(vote: Vote, voters: int) -> Fraction:
    """Return the required approvals: voters x threshold, exact in the decimals of the federation file.

    >>> bar(Vote(threshold=0.5), 5), bar(Vote(threshold=0.55), 100)
    (Fraction(5, 2), Fraction(55, 1))
    """
    return voters * Fraction(repr(vote.threshold))


def tally(vote: Vote, learners: Sequence[str], ballots: Sequence[Ballot], proposer: str = "") -> Outcome:
    """Count the ballots: accepted when approvals >= voters x threshold.

    Absent voters stay in n and so count as a no (`against`), or are left out of n (`left_out`). When that leaves
    nobody, n is the whole electorate again: a model that nobody measured is accepted only at the threshold 0.

    Args:
        vote: the rule.
        learners: all n.
        ballots: the ballots cast, at most one for each learner.
        proposer: the learner that proposed, whose ballot is void under `others_vote`; empty for an aggregate.
    """
    voters = electorate(vote, learners, proposer)
    cast = [ballot for ballot in ballots if ballot.learner in voters]
    count = len(cast) if vote.absent == "left_out" and cast else len(voters)
    approvals = sum(ballot.approve for ballot in cast)
    return Outcome(approvals=approvals, voters=count, accepted=approvals >= bar(vote, count))


def check_ballot(
    ballot: Ballot, *, vote: Vote, federation: str, run: str, number: int, learner: str, base: str, candidate: str
) -> None:
    """Check that a ballot belongs to this vote and follows from its own scores.

    Raises:
        DroppedError: the reason why the ballot does not count.
    """
    expected = {
        "federation": federation, "run": run, "round": number, "learner": learner, "base": base, "candidate": candidate,
    }  # fmt: skip
    for name, value in expected.items():
        if getattr(ballot, name) != value:
            raise DroppedError(f"the ballot's {name} is {getattr(ballot, name)}, the round's is {value}")
    tested = (part for scores in (ballot.current, ballot.proposed) for part in (scores.vote, scores.test) if part)
    check_printable("ballot", (name for part in tested for name in part.metrics))
    if number and ballot.approve != approves(vote, ballot.current, ballot.proposed):
        raise DroppedError("the ballot contradicts its own scores")
