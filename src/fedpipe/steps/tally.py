"""Counts the ballots of a round: the candidate becomes the shared model, or nothing changes."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from fedpipe.ballots import collect_ballots, fetch_candidate
from fedpipe.errors import CorruptError, DroppedError, NotFoundError, RoundError
from fedpipe.manifests import Dropped, Record, Update
from fedpipe.objects import put_file
from fedpipe.plan import Place, Plan, read_plan
from fedpipe.rounds import (
    begun_from,
    check_quorum,
    check_update,
    commit,
    find_dropped,
    find_update,
    layout_of,
    read_candidate,
    read_record,
)
from fedpipe.steps.contract import Model
from fedpipe.store import Store
from fedpipe.voting import proposer_of, tally

log = logging.getLogger("fedpipe")


class Inputs(Struct, frozen=True, kw_only=True):
    """The round, its base, and what the vote steps gave (their order of arrival does not matter)."""

    place: Place
    round: int
    base: str
    ballots: list[Any] = []


class Outputs(Struct, frozen=True, kw_only=True):
    """Digest of the global weights after the vote."""

    weights: str
    model: Model


def run(inputs: Inputs) -> Outputs:
    """Commits the round once; a repeated step finds it committed."""
    store = inputs.place.open()
    plan = read_plan(store, inputs.place.plan)
    record = close_vote(store, plan, inputs.round, inputs.base)
    assert plan.federation.vote is not None
    vote = plan.federation.vote
    metadata = {"criterion": vote.criterion, "rule": vote.rule, **_metadata(record)}
    return Outputs(weights=record.weights, model=Model(metadata=metadata))


def _metadata(record: Record) -> dict[str, Any]:
    spent = record.spent_by(record.proposer)
    privacy = {"epsilon": spent.epsilon, "target_epsilon": spent.target_epsilon} if spent else {}
    votes = {"approvals": record.outcome.approvals, "voters": record.outcome.voters} if record.outcome else {}
    return {
        "digest": record.weights, "round": record.round, "run": record.run, "federation": record.federation,
        "proposer": record.proposer, "accepted": record.accepted, **votes, **privacy,
        "absent": ", ".join(item.learner for item in record.absent),
        "dropped": "; ".join(f"{item.learner}: {item.why}" for item in record.dropped),
        **record.metrics,
    }  # fmt: skip


def close_vote(store: Store, plan: Plan, number: int, base: str) -> Record:
    """Decides a round by its ballots and commits it.

    Args:
        store: the federation's store.
        plan: the run's plan.
        number: the round, from 1.
        base: digest of the weights that the round began with.

    Raises:
        QuorumError: too few learners voted; nothing is committed.
        RoundError: the round before is not committed, or ended with other weights.
    """
    if found := read_record(store, plan.run, number):
        log.info("round %d is already committed", number)
        return commit(store, found)
    previous = begun_from(store, plan.run, number, base)
    proposed = _proposed(store, plan, previous) if plan.federation.proposers else _aggregated(store, plan, number)
    if proposed.candidate is None:
        log.warning("round %d: nothing to vote on: %s", number, proposed.dropped[0].why)
        return commit(store, proposed)
    record = _decided(store, plan, previous, proposed)
    log.info("round %d: %s", number, "accepted" if record.accepted else "rejected")
    return commit(store, record)


def _aggregated(store: Store, plan: Plan, number: int) -> Record:
    """The aggregate step's record, as it is when the vote accepts it."""
    record = read_candidate(store, plan.run, number)
    if record is None:
        raise RoundError(f"round {number} has nothing to vote on: its updates are not aggregated")
    return replace(record, candidate=record.weights)


def _proposed(store: Store, plan: Plan, previous: Record) -> Record:
    """The round with its proposer's update, as it is when the vote accepts it; without a proposal it is rejected."""
    number = previous.round + 1
    proposer = proposer_of(plan.federation.proposers, number)
    record = Record(
        federation=plan.federation.name, run=plan.run, round=number, previous=previous.parent, plan=previous.plan,
        base=previous.weights, weights=previous.weights, layout=previous.layout, rule="collective", accepted=False,
        proposer=proposer,
    )  # fmt: skip
    try:
        update = find_update(store, proposer, plan.run, number)
        if update is None:
            found = find_dropped(store, proposer, plan.run, number)
            return replace(record, dropped=(found or Dropped(learner=proposer, why="no proposal"),))
        check_update(
            update, federation=plan.federation.name, run=plan.run, number=number, learner=proposer,
            base=previous.weights,
        )  # fmt: skip
    except (DroppedError, CorruptError) as error:
        return replace(record, dropped=(Dropped(learner=proposer, why=error.what[:500]),))
    return replace(
        record,
        updates=(update,),
        metrics=update.metrics,
        candidate=update.weights,
        weights=update.weights,
        accepted=True,
    )


def _decided(store: Store, plan: Plan, previous: Record, proposed: Record) -> Record:
    federation, number = plan.federation, proposed.round
    assert federation.vote is not None
    assert proposed.candidate is not None
    ballots, absent = collect_ballots(store, plan, number=number, base=previous.weights, candidate=proposed.candidate)
    for item in absent:
        log.warning("round %d: %s does not vote: %s", number, item.learner, item.why)
    check_quorum(number, len(ballots), absent, federation.min_learners)
    names = [learner.name for learner in federation.learners]
    outcome = tally(federation.vote, names, ballots, proposed.proposer)
    record = replace(proposed, ballots=tuple(ballots), absent=tuple(absent), outcome=outcome)
    rejected = replace(record, accepted=False, weights=previous.weights, state=previous.state)
    if not outcome.accepted:
        return rejected
    try:
        if proposed.proposer:
            _adopt(store, proposed.updates[0], weights_of=previous)
    except (CorruptError, NotFoundError) as error:
        refused = Dropped(learner=proposed.proposer, why=error.what[:500])
        log.warning("round %d: the proposal cannot be taken: %s", number, refused.why)
        return replace(rejected, dropped=(refused,))
    return record


def _adopt(store: Store, update: Update, *, weights_of: Record) -> None:
    """Makes a learner's proposal a global object, once it is known to be sound: whatever it is, voters only saw it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights"
        fetch_candidate(store, update.weights, update.learner, layout_of(store, weights_of), path)
        put_file(store, path, update.weights)
