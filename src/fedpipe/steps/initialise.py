"""Make the plan, the first global weights and round 0."""

from __future__ import annotations

import functools
import logging
from collections.abc import Collection
from typing import Any

import msgspec
from msgspec import Struct, field

from fedpipe.data.disclosure import put_schema, schema_of_head, settle_schema
from fedpipe.data.examples import Examples
from fedpipe.data.parts import get_parts, get_shard_parts
from fedpipe.data.ports import ports_of
from fedpipe.data.schema import Schema
from fedpipe.data.settling import settled
from fedpipe.errors import CorruptError, StoreError, StoreUnavailableError
from fedpipe.learners.assembly import plan_model
from fedpipe.learners.cut import first_index
from fedpipe.registry.rehearsal import rehearse
from fedpipe.rounds.beginning import begin, find_begun, make_plan, protocol_of
from fedpipe.rounds.history import read_record
from fedpipe.rounds.manifests import Record
from fedpipe.rounds.plan import Plan, RunPlace, Settings, Shards, read_plan
from fedpipe.sessions.board import check_deadline
from fedpipe.sessions.presence import protocols
from fedpipe.steps.contract import ModelArtifact
from fedpipe.steps.shard import read
from fedpipe.store import Store
from fedpipe.store.objects import LOST, get_bytes, put_bytes
from fedpipe.weights import Array

log = logging.getLogger("fedpipe")


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
    """The place with the digest of this try's plan, and the first weights."""

    placed: RunPlace
    weights: str
    model: ModelArtifact


def find(inputs: Inputs) -> Outputs | None:
    """Return the first weights when the run resumes. Raises InputError when its rounds had other settings."""
    store = inputs.place.open()
    if read_record(store, inputs.place.run, 0) is None:
        return None  # `run` reads the examples
    plan = _plan(inputs, _examples(store, inputs.shards))
    record = find_begun(store, plan)
    if record is None:
        return None
    put_bytes(store, inputs.code.encode())  # it may have been deleted since
    return _outputs(inputs.place, plan, record)


def _plan(inputs: Inputs, examples: Examples | None) -> Plan:
    ports = ports_of(examples.x) if examples is not None else ()
    federation = read(inputs.federation).reaching(inputs.place.store)
    store, run = inputs.place.open(), inputs.place.run
    protocol = protocol_of(store, run, protocols(store, federation.sites))
    return make_plan(run, inputs.applied(federation), inputs.code, inputs.shards, ports, protocol=protocol)


def _examples(store: Store, shards: Shards) -> Examples | None:
    """Return examples of the central test set, or of a shard; None when all learners have their own data."""
    if shards.test:
        return get_parts(store, shards.test)["test"]
    for name, digest in sorted(shards.learners.items()):
        try:
            return get_shard_parts(store, name, digest)["train"]
        except StoreUnavailableError:
            raise
        except (CorruptError, StoreError, KeyError) as error:
            log.warning("the shard of %s cannot be read: %s", name, error)  # its learner drops out by itself
    if shards.learners:
        raise CorruptError("no learner's shard can be read", where=store.uri, remedy=LOST)
    return None


def run(inputs: Inputs) -> Outputs:
    """Begin the run, unless it has begun. The coordinator of a session with a table begins it, after the statistics."""
    store = inputs.place.open()
    examples = _examples(store, inputs.shards)
    plan = _plan(inputs, examples)
    check_deadline(store, plan.federation.quorum.deadline)
    put_bytes(store, inputs.code.encode())
    place = msgspec.structs.replace(inputs.place, plan=plan.put(store))
    waits = read(inputs.federation).described_in_session and not inputs.described
    if waits and schema_of_head(store, plan.federation) is None:
        metadata = {"run": plan.run, "federation": plan.federation.name}
        return Outputs(placed=place, weights="", model=ModelArtifact(metadata=metadata))
    return _outputs(place, plan, begin_run(place, examples=examples))


def begin_run(place: RunPlace, absent: Collection[str] = (), examples: Examples | None = None) -> Record:
    """Begin the run of a stored plan: settle the schema of a table, rehearse the model, and commit round 0.

    Args:
        place: of the run, with its plan.
        absent: learners whose statistics do not count.
        examples: some of the run, if they are known already.
    """
    store = place.open()
    plan = read_plan(store, place.plan)
    examples = examples or _examples(store, Shards(learners=plan.shards, test=plan.test or ""))

    @functools.cache
    def schema() -> Schema | None:
        return settle_schema(store, plan.federation, plan.run, plan.shards, absent, plan.sizes)

    def initial() -> dict[str, Array]:
        known = settled(examples, schema(), plan.federation.class_names) if examples is not None else None
        federation, code = plan.federation, get_bytes(store, plan.code).decode()
        elsewhere = federation.environment_of("export") != federation.environment_of("initialise")
        rehearse(federation, code, known, schema(), elsewhere=elsewhere)
        first = plan_model(store, plan, schema=schema()).initial_weights(plan.federation.training.seed)
        return first_index(first, plan.federation) if plan.federation.split else first

    return begin(store, plan, initial, lambda: put_schema(store, schema()))


def _outputs(place: RunPlace, plan: Plan, record: Record) -> Outputs:
    place = msgspec.structs.replace(place, plan=plan.digest)
    metadata = {"digest": record.weights, "round": 0, "run": record.run, "federation": record.federation}
    return Outputs(placed=place, weights=record.weights, model=ModelArtifact(metadata=metadata))
