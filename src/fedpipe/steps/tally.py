"""Count the ballots of a round: the candidate becomes the shared model, or nothing changes."""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from fedpipe.federation.algorithms import Vote
from fedpipe.rounds.agreement import agreed_plan
from fedpipe.rounds.manifests import Record
from fedpipe.rounds.plan import RunPlace
from fedpipe.sessions.scripts import tally_round
from fedpipe.steps.contract import ModelArtifact


class Inputs(Struct, frozen=True, kw_only=True):
    """The round, its base, and the results of the vote steps (their order of arrival does not matter)."""

    place: RunPlace
    round: int
    base: str
    ballots: list[Any] = []


class Outputs(Struct, frozen=True, kw_only=True):
    """Digest of the global weights after the vote."""

    weights: str
    model: ModelArtifact


def run(inputs: Inputs) -> Outputs:
    """Commit the round once; a repeated step finds it committed."""
    store = inputs.place.open()
    plan = agreed_plan(store, inputs.place)
    record = tally_round(store, plan, inputs.round, inputs.base)
    assert plan.federation.vote is not None
    return Outputs(weights=record.weights, model=ModelArtifact(metadata=metadata_of(record, plan.federation.vote)))


def metadata_of(record: Record, vote: Vote) -> dict[str, Any]:
    """Return the metadata for the UI of a round that was put to the vote."""
    spent = record.spent_by(record.proposer)
    privacy = {"epsilon": spent.epsilon, "target_epsilon": spent.target_epsilon} if spent else {}
    votes = {"approvals": record.outcome.approvals, "voters": record.outcome.voters} if record.outcome else {}
    return {
        "criterion": vote.criterion, "rule": vote.rule,
        "digest": record.weights, "round": record.round, "run": record.run, "federation": record.federation,
        "proposer": record.proposer, "accepted": record.accepted, **votes, **privacy,
        "absent": ", ".join(item.learner for item in record.absent),
        "dropped": "; ".join(f"{item.learner}: {item.why}" for item in record.dropped),
        **record.metrics,
    }  # fmt: skip
