"""A learner's part of a round."""

from __future__ import annotations

from msgspec import Struct

from fedpipe.learner import Learner, contribute
from fedpipe.objects import digest_of, encode
from fedpipe.plan import Place, read_plan
from fedpipe.rounds import Dropped, Update, find_update
from fedpipe.steps.contract import Metrics


class Inputs(Struct, frozen=True, kw_only=True):
    """Who trains, in which round, from which global weights."""

    place: Place
    learner: str
    round: int
    base: str


class Outputs(Struct, frozen=True, kw_only=True):
    """The digest of the update's manifest, or `dropped`."""

    update: str
    metrics: Metrics


def find(inputs: Inputs) -> Outputs | None:
    """The update when it is already published."""
    found = find_update(inputs.place.open(), inputs.learner, inputs.place.run, inputs.round)
    return _outputs(found) if found else None


def run(inputs: Inputs) -> Outputs:
    """Trains and publishes; a learner that cannot take part is dropped, and the step succeeds."""
    store = inputs.place.open()
    plan = read_plan(store, inputs.place.plan)

    def make_learner() -> Learner:
        from fedpipe.keras_learner import make_keras_learner

        label = f"round {inputs.round} {inputs.learner}"
        folder = f"learners/{inputs.learner}/runs/{plan.run}/{inputs.round}/tensorboard"
        return make_keras_learner(store, plan, inputs.learner, label, folder)

    result = contribute(store, plan, inputs.learner, inputs.round, inputs.base, make_learner)
    return _outputs(result)


def _outputs(result: Update | Dropped) -> Outputs:
    if isinstance(result, Dropped):
        return Outputs(update="dropped", metrics=Metrics(metadata={"dropped": result.why}))
    metadata = {"examples": result.examples, **result.metrics, "digest": result.weights}
    return Outputs(update=digest_of(encode(result)), metrics=Metrics(metadata=metadata))
