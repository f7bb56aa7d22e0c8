"""Vote on a candidate as a learner, with its own vote part."""

from __future__ import annotations

import logging
from functools import partial

from msgspec import Struct

from fedpipe.learners.assembly import make_learner
from fedpipe.learners.vote import vote
from fedpipe.rounds.agreement import agreed_plan
from fedpipe.rounds.ballots import find_vote
from fedpipe.rounds.manifests import Ballot, Dropped, Scores
from fedpipe.rounds.plan import RunPlace
from fedpipe.rounds.roll import drop
from fedpipe.steps.contract import MetricsArtifact

log = logging.getLogger("fedpipe")


class Inputs(Struct, frozen=True, kw_only=True):
    """The learner, the round, and the candidate with its owner; in round 0 the base itself is scored."""

    place: RunPlace
    learner: str
    round: int
    base: str
    candidate: str = ""
    owner: str = ""


class Outputs(Struct, frozen=True, kw_only=True):
    """The vote: `yes`, `no` or `absent`; `none` when there is nothing to vote on."""

    ballot: str
    metrics: MetricsArtifact


def find(inputs: Inputs) -> Outputs | None:
    """Return the vote when it is already cast, or when there is nothing to vote on."""
    if inputs.round and not inputs.candidate:
        return Outputs(ballot="none", metrics=MetricsArtifact())
    store = inputs.place.open()
    found = find_vote(store, agreed_plan(store, inputs.place), inputs.learner, inputs.round, inputs.base)
    return _outputs(found) if found else None


def run(inputs: Inputs) -> Outputs:
    """Vote once; a learner that cannot vote is absent, and the step succeeds."""
    if found := find(inputs):
        return found
    store = inputs.place.open()
    plan = agreed_plan(store, inputs.place)

    make = partial(make_learner, store, plan, inputs.learner, inputs.round, trains=False)
    candidate = inputs.candidate or inputs.base
    result = vote(store, plan, inputs.learner, inputs.round, inputs.base, candidate, inputs.owner, make)
    return _outputs(result)


def give_up(inputs: Inputs, why: str) -> Outputs:
    """Note that the learner does not vote, because its process ended."""
    absent = Dropped(learner=inputs.learner, why=why)
    drop(inputs.place.open(), inputs.place.run, inputs.round, absent, name="absent")
    return _outputs(absent)


def _outputs(result: Ballot | Dropped) -> Outputs:
    if isinstance(result, Dropped):
        return Outputs(ballot="absent", metrics=MetricsArtifact(metadata={"absent": result.why}))
    answer = "none" if not result.round else "yes" if result.approve else "no"
    return Outputs(ballot=answer, metrics=MetricsArtifact(metadata={"ballot": answer, **flat(result.proposed)}))


def flat(scores: Scores) -> dict[str, float]:
    """Return metrics such as `vote_loss` and `test_accuracy`, as the UI shows them."""
    parts = {"vote": scores.vote, "test": scores.test}
    return {f"{part}_{name}": v for part, tested in parts.items() if tested for name, v in tested.metrics.items()}
