"""Combines a round's updates into the next global weights and commits the round, or leaves a candidate to vote on."""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from fedpipe.rounds.closing import close_round
from fedpipe.rounds.manifests import Record
from fedpipe.rounds.plan import RunPlace, read_plan
from fedpipe.steps.contract import Model


class Inputs(Struct, frozen=True, kw_only=True):
    """The round, its base, and what the learners' steps gave (their order of arrival does not matter)."""

    place: RunPlace
    round: int
    base: str
    updates: list[Any] = []


class Outputs(Struct, frozen=True, kw_only=True):
    """Digest of the next global weights."""

    weights: str
    model: Model


def run(inputs: Inputs) -> Outputs:
    """Commits the round once; a repeated step finds it committed."""
    store = inputs.place.open()
    return outputs_of(close_round(store, read_plan(store, inputs.place.plan), inputs.round, inputs.base))


def outputs_of(record: Record) -> Outputs:
    """What the step gives once the round is aggregated."""
    return Outputs(weights=record.weights, model=Model(metadata=told(record)))


def told(record: Record) -> dict[str, Any]:
    """What the UI shows of an aggregated round."""
    return {
        "digest": record.weights, "round": record.round, "run": record.run, "federation": record.federation,
        "learners": len(record.updates), "dropped": ", ".join(d.learner for d in record.dropped),
        "examples": sum(u.examples for u in record.updates), **record.metrics,
    }  # fmt: skip
