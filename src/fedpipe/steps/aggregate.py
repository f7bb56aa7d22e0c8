"""Combines a round's updates into the next global weights and commits the round, or leaves a candidate to vote on."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path
from typing import Any

from msgspec import Struct

from fedpipe.aggregation import RULES, Combined, Source, combine
from fedpipe.aggregation.server import make_server_step
from fedpipe.errors import RoundError, WeightsError
from fedpipe.federation import Averaging
from fedpipe.manifests import Dropped, Record, Update
from fedpipe.objects import put_file
from fedpipe.plan import Place, Plan, read_plan
from fedpipe.rounds import (
    begun_from,
    check_quorum,
    collect,
    commit,
    layout_of,
    mean_metrics,
    propose_candidate,
    read_candidate,
    read_record,
)
from fedpipe.steps.contract import Model
from fedpipe.store import Store

log = logging.getLogger("fedpipe")


class Inputs(Struct, frozen=True, kw_only=True):
    """The round, its base, and what the learners' steps gave (their order of arrival does not matter)."""

    place: Place
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
    record = close_round(store, read_plan(store, inputs.place.plan), inputs.round, inputs.base)
    metadata = {
        "digest": record.weights, "round": record.round, "run": record.run, "federation": record.federation,
        "learners": len(record.updates), "dropped": ", ".join(d.learner for d in record.dropped),
        "examples": sum(u.examples for u in record.updates), **record.metrics,
    }  # fmt: skip
    return Outputs(weights=record.weights, model=Model(metadata=metadata))


def close_round(store: Store, plan: Plan, number: int, base: str) -> Record:
    """Aggregates the valid updates of a round and commits the result; when learners vote, it is the candidate.

    Args:
        store: the federation's store.
        plan: the run's plan.
        number: the round, from 1.
        base: digest of the weights that the round began with.

    Raises:
        QuorumError: too few valid updates; nothing is committed.
        RoundError: the round before is not committed, or ended with other weights.
    """
    if found := read_record(store, plan.run, number):
        log.info("round %d is already committed", number)
        return commit(store, found)
    federation = plan.federation
    if federation.vote and (drafted := read_candidate(store, plan.run, number)):
        log.info("the candidate of round %d is already there", number)
        return drafted
    previous = begun_from(store, plan.run, number, base)
    names = tuple(learner.name for learner in federation.learners)
    updates, dropped = collect(
        store, federation=federation.name, run=plan.run, number=number, base=base, learners=names
    )
    check_quorum(number, len(updates), dropped, federation.min_learners)
    with tempfile.TemporaryDirectory() as folder:
        combined = _combined(store, plan, previous, updates, Path(folder))
        used = [u for u in updates if u.learner in combined.accepted]
        dropped = sorted([*dropped, *_refusals(combined)], key=lambda d: d.learner)
        check_quorum(number, len(used), dropped, federation.min_learners)
        put_file(store, *combined.weights)
        for path, digest in combined.state.values():
            put_file(store, path, digest)
    for drop in dropped:
        log.warning("round %d: %s is dropped: %s", number, drop.learner, drop.why)
    record = _record(plan, previous, combined, used, dropped)
    return propose_candidate(store, record) if federation.vote else commit(store, record)


def _combined(store: Store, plan: Plan, previous: Record, updates: list[Update], folder: Path) -> Combined:
    algorithm = plan.federation.algorithm
    assert isinstance(algorithm, Averaging)
    try:
        return combine(
            store,
            [
                Source(u.learner, u.weights, u.size, u.examples if algorithm.weighting == "examples" else 1)
                for u in updates
            ],
            layout=layout_of(store, previous),
            base=previous.weights,
            state=previous.state,
            rule=RULES[algorithm.rule],
            server=make_server_step(algorithm.server_optimizer),
            folder=folder,
        )
    except WeightsError as error:
        raise RoundError(f"round {previous.round + 1}: {error}", remedy="HEAD stays at the last good round.") from error


def _refusals(combined: Combined) -> list[Dropped]:
    return [Dropped(learner=name, why=why) for name, why in combined.refused.items()]


def _record(plan: Plan, previous: Record, combined: Combined, used: list[Update], dropped: list[Dropped]) -> Record:
    algorithm = plan.federation.algorithm
    assert isinstance(algorithm, Averaging)
    return Record(
        federation=plan.federation.name, run=plan.run, round=previous.round + 1, previous=previous.parent,
        plan=previous.plan, base=previous.weights, weights=combined.weights[1], layout=previous.layout,
        state={slot: digest for slot, (_, digest) in combined.state.items()}, rule=algorithm.rule,
        updates=tuple(used), dropped=tuple(dropped), metrics=mean_metrics(used),
    )  # fmt: skip
