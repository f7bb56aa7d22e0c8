"""Combine a round's updates into the next global weights, and commit the round or a candidate to vote on."""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from fedpipe.rounds.agreement import agreed_plan
from fedpipe.rounds.closing import Combiner, close_round
from fedpipe.rounds.history import read_candidate, read_record
from fedpipe.rounds.manifests import Record
from fedpipe.rounds.plan import Plan, RunPlace
from fedpipe.rounds.roll import Roll
from fedpipe.steps.contract import ModelArtifact


class Inputs(Struct, frozen=True, kw_only=True):
    """The round, its base, and the results of the learners' steps (their order of arrival does not matter)."""

    place: RunPlace
    round: int
    base: str
    updates: list[Any] = []


class Outputs(Struct, frozen=True, kw_only=True):
    """Digest of the next global weights."""

    weights: str
    model: ModelArtifact


def find(inputs: Inputs) -> Outputs | None:
    """Return the weights when the round is committed, or put to the vote."""
    store, run = inputs.place.open(), inputs.place.run
    record = read_record(store, run, inputs.round) or read_candidate(store, run, inputs.round)
    return _outputs(record) if record else None


def run(inputs: Inputs) -> Outputs:
    """Commit the round once; a repeated step finds it committed."""
    return _outputs(close(inputs.place, inputs.round, inputs.base))


def close(place: RunPlace, number: int, base: str, roll: Roll | None = None) -> Record:
    """Aggregate a round with the engine that the federation file names, and commit it."""
    store = place.open()
    plan = agreed_plan(store, place)
    return close_round(store, plan, number, base, roll, _combiner(plan))


def _combiner(plan: Plan) -> Combiner | None:
    if not plan.federation.aggregated_by_tff:
        return None
    from fedpipe.tff.aggregation import combine

    return combine


def _outputs(record: Record) -> Outputs:
    return Outputs(weights=record.weights, model=ModelArtifact(metadata=metadata_of(record)))


def metadata_of(record: Record) -> dict[str, Any]:
    """Return the metadata of an aggregated round for the UI."""
    not_chosen = {"not chosen": ", ".join(record.not_chosen)} if record.not_chosen else {}
    return {
        "digest": record.weights, "round": record.round, "run": record.run, "federation": record.federation,
        "learners": len(record.contributors), "dropped": ", ".join(d.learner for d in record.dropped),
        "examples": record.examples, **not_chosen, **record.metrics,
    }  # fmt: skip
