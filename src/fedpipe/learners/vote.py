"""Vote on a candidate as a learner."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from fedpipe import weights
from fedpipe.errors import CorruptError, NotFoundError
from fedpipe.identity.statements import signed_by
from fedpipe.learners.downloads import fetched
from fedpipe.learners.dropping import LOCAL, left_out
from fedpipe.learners.framework import Arrays
from fedpipe.learners.learner import Learner, Verdict, log
from fedpipe.rounds.ballots import find_vote, known_scores, publish_ballot
from fedpipe.rounds.floors import released_here
from fedpipe.rounds.manifests import Ballot, Dropped, Scores
from fedpipe.rounds.plan import Plan
from fedpipe.rounds.roll import ANY_ROLL, Roll
from fedpipe.rounds.updates import fetch_weights
from fedpipe.store import Store


def vote(
    store: Store, plan: Plan, name: str, number: int, base: str, candidate: str, owner: str,
    make_learner: Callable[[], Learner], *, roll: Roll = ANY_ROLL,
) -> Ballot | Dropped:  # fmt: skip
    """Vote on a candidate: measure it, compare it with the base, publish the ballot.

    A ballot that is already cast is not repeated, and the base is measured only when no earlier ballot has its scores.
    A learner that cannot vote leaves the reason and is absent. Only a failing store or a corrupt base is an error.

    Args:
        store: the federation's store.
        plan: the run's plan.
        name: the learner.
        number: the round; in round 0 the base is scored, and there is nothing to vote on.
        base: digest of the weights that the round began with.
        candidate: digest of the proposed weights.
        owner: the learner that proposed them; empty for aggregated weights.
        make_learner: makes the learner, with its data, when there is work to do.
        roll: the roll of the vote's attempt.
    """
    if found := find_vote(store, plan, name, number, base):
        log.info("round %d: the vote of %s is already cast", number, name)
        return found
    with tempfile.TemporaryDirectory() as folder:
        try:
            current = fetched(store, base, Path(folder) / "base")
        except LOCAL as error:
            return left_out(store, plan, name, number, error, roll.note("absent"), "does not vote")
        try:
            ballot = _cast(store, plan, name, number, base, current, candidate, owner, make_learner(), Path(folder))
            return publish_ballot(store, signed_by(released_here(ballot), name))
        except (Exception, SystemExit) as error:
            return left_out(store, plan, name, number, error, roll.note("absent"), "does not vote")


def _cast(
    store: Store, plan: Plan, name: str, number: int, base: str, current: Arrays, candidate: str, owner: str,
    learner: Learner, folder: Path,
) -> Ballot:  # fmt: skip
    definition = plan.definition.digest
    whole = plan.federation.share == "all"  # otherwise the base was measured with earlier local weights
    scores = known_scores(store, name, plan.run, number, base, definition) if whole else None
    known = learner.accept_weights(current, scores)
    verdict, unfit = Verdict(known, approve=False), ""
    try:
        if number:
            layout, path = weights.layout_of(current), folder / "candidate"
            fetch_weights(store, candidate, layout, path, owner, "proposals", plan.run)
            verdict = learner.test_weights(weights.load(folder / "candidate"))
    except (CorruptError, NotFoundError) as error:  # otherwise one bad proposal would leave every vote below the quorum
        verdict, unfit = Verdict(Scores(), approve=False), error.what[:500]
        log.warning("round %d: %s votes no: %s", number, name, unfit)
    return Ballot(
        format=plan.format,
        federation=plan.federation.name, run=plan.run, round=number, learner=name, base=base, candidate=candidate,
        approve=verdict.approve, current=known, proposed=verdict.scores, why=unfit, plan=definition,
    )  # fmt: skip
