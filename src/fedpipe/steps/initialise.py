"""Make the plan, the first global weights and round 0."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Struct, field

from fedpipe.data.disclosure import digest_of_schema, settle_schema
from fedpipe.learners.assembly import plan_model
from fedpipe.learners.check import check_model
from fedpipe.learners.reading import central_test
from fedpipe.rounds.beginning import begin, make_plan
from fedpipe.rounds.history import read_record
from fedpipe.rounds.manifests import Record
from fedpipe.rounds.plan import Plan, RunPlace, Settings, Shards
from fedpipe.sessions.board import check_deadline
from fedpipe.steps.contract import ModelArtifact
from fedpipe.steps.shard import read
from fedpipe.store.objects import put_bytes
from fedpipe.weights import Array


class Inputs(Settings, frozen=True, kw_only=True):
    """The place and shards of the run, the federation and model.py as text, and the run-time settings.

    `described` are the results of the describe steps, which only come before this one.
    """

    place: RunPlace
    shards: Shards
    federation: str
    code: str
    described: list[Any] = field(default_factory=list)


class Outputs(Struct, frozen=True, kw_only=True):
    """The place with the plan's digest, and the first weights."""

    placed: RunPlace
    weights: str
    model: ModelArtifact


def find(inputs: Inputs) -> Outputs | None:
    """Return the first weights when the run has begun. Raises InputError when it began with other settings."""
    store = inputs.place.open()
    record = read_record(store, inputs.place.run, 0)
    if record is None:
        return None
    return _outputs(inputs.place, begin(store, _plan(inputs), dict))


def _plan(inputs: Inputs) -> Plan:
    return make_plan(inputs.place.run, inputs.applied(read(inputs.federation)), inputs.code, inputs.shards)


def run(inputs: Inputs) -> Outputs:
    """Begin the run, unless it has begun."""
    store, plan = inputs.place.open(), _plan(inputs)
    if read_record(store, plan.run, 0) is None:
        check_deadline(store, plan.federation.quorum.deadline)

    schema = settle_schema(store, plan.federation, plan.run)

    def initial() -> dict[str, Array]:
        check_model(plan.federation, inputs.code, central_test(store, plan, schema), schema)
        put_bytes(store, inputs.code.encode())
        return plan_model(store, plan, schema=schema).initial_weights(plan.federation.training.seed)

    return _outputs(inputs.place, begin(store, plan, initial, digest_of_schema(schema)))


def _outputs(place: RunPlace, record: Record) -> Outputs:
    place = msgspec.structs.replace(place, plan=record.plan)
    metadata = {"digest": record.weights, "round": 0, "run": record.run, "federation": record.federation}
    return Outputs(placed=place, weights=record.weights, model=ModelArtifact(metadata=metadata))
