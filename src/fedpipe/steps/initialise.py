"""Make the plan, the first global weights and round 0."""

from __future__ import annotations

import msgspec
from msgspec import Struct

from fedpipe.data.parts import get_parts
from fedpipe.learners.assembly import plan_model
from fedpipe.learners.check import check_model
from fedpipe.rounds.beginning import begin, find_begun, make_plan
from fedpipe.rounds.manifests import Record
from fedpipe.rounds.plan import Plan, RunPlace, Settings, Shards
from fedpipe.sessions.board import check_deadline
from fedpipe.steps.contract import ModelArtifact
from fedpipe.steps.shard import read
from fedpipe.store.objects import put_bytes
from fedpipe.weights import Array


class Inputs(Settings, frozen=True, kw_only=True):
    """The place and shards of the run, the federation and model.py as text, and the run-time settings."""

    place: RunPlace
    shards: Shards
    federation: str
    code: str


class Outputs(Struct, frozen=True, kw_only=True):
    """The place with the digest of this try's plan, and the first weights."""

    placed: RunPlace
    weights: str
    model: ModelArtifact


def find(inputs: Inputs) -> Outputs | None:
    """Return the first weights when the run resumes. Raises InputError when its rounds had other settings."""
    store, plan = inputs.place.open(), _plan(inputs)
    record = find_begun(store, plan)
    if record is None:
        return None
    put_bytes(store, inputs.code.encode())  # it may have been deleted since
    return _outputs(inputs.place, plan, record)


def _plan(inputs: Inputs) -> Plan:
    return make_plan(inputs.place.run, inputs.applied(read(inputs.federation)), inputs.code, inputs.shards)


def run(inputs: Inputs) -> Outputs:
    """Begin the run, unless it has begun."""
    store, plan = inputs.place.open(), _plan(inputs)

    def initial() -> dict[str, Array]:
        check_deadline(store, plan.federation.quorum.deadline)
        examples = get_parts(store, plan.test)["test"] if plan.test is not None else None
        check_model(plan.federation, inputs.code, examples)
        put_bytes(store, inputs.code.encode())
        return plan_model(store, plan).initial_weights(plan.federation.training.seed)

    return _outputs(inputs.place, plan, begin(store, plan, initial))


def _outputs(place: RunPlace, plan: Plan, record: Record) -> Outputs:
    place = msgspec.structs.replace(place, plan=plan.digest)
    metadata = {"digest": record.weights, "round": 0, "run": record.run, "federation": record.federation}
    return Outputs(placed=place, weights=record.weights, model=ModelArtifact(metadata=metadata))
