"""Train from the shared weights as a learner, and publish the update."""

from __future__ import annotations

from functools import partial

from msgspec import Struct

from fedpipe.learners.assembly import make_learner
from fedpipe.learners.contribute import contribute
from fedpipe.rounds.agreement import agreed_plan
from fedpipe.rounds.manifests import Dropped, Update
from fedpipe.rounds.plan import RunPlace
from fedpipe.rounds.roll import drop
from fedpipe.rounds.selection import select
from fedpipe.rounds.updates import find_part
from fedpipe.steps.contract import MetricsArtifact
from fedpipe.store.objects import digest_of, encode


class Inputs(Struct, frozen=True, kw_only=True):
    """The learner, the round, and the global weights to train from."""

    place: RunPlace
    learner: str
    round: int
    base: str


class Outputs(Struct, frozen=True, kw_only=True):
    """The digest of the update's manifest, or `dropped`; and the digest of its weights, or nothing."""

    update: str
    weights: str
    metrics: MetricsArtifact


def find(inputs: Inputs) -> Outputs | None:
    """Return the update when it is already published, or the reason when a committed round has none."""
    store = inputs.place.open()
    found = find_part(store, agreed_plan(store, inputs.place), inputs.learner, inputs.round, inputs.base)
    return _outputs(found) if found else None


def run(inputs: Inputs) -> Outputs:
    """Train and publish; a learner that cannot take part is dropped, and the step succeeds."""
    store = inputs.place.open()
    plan = agreed_plan(store, inputs.place)
    if inputs.learner not in select(plan.federation, inputs.round):
        return _outputs(Dropped(learner=inputs.learner, why="not asked in this round"))
    make = partial(make_learner, store, plan, inputs.learner, inputs.round)
    return _outputs(contribute(store, plan, inputs.learner, inputs.round, inputs.base, make))


def give_up(inputs: Inputs, why: str) -> Outputs:
    """Drop the learner, whose process ended while it trained."""
    dropped = Dropped(learner=inputs.learner, why=why)
    drop(inputs.place.open(), inputs.place.run, inputs.round, dropped)
    return _outputs(dropped)


def _outputs(result: Update | Dropped) -> Outputs:
    if isinstance(result, Dropped):
        why = f"{result.code}: {result.why}" if result.code else result.why
        return Outputs(update="dropped", weights="", metrics=MetricsArtifact(metadata={"dropped": why}))
    spent = {"epsilon": result.spent.epsilon} if result.spent else {}
    metadata = {"examples": result.examples, **result.metrics, **spent, "digest": result.weights}
    return Outputs(update=digest_of(encode(result)), weights=result.weights, metrics=MetricsArtifact(metadata=metadata))
