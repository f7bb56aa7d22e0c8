"""Coordinate a session: ask the learners round after round, combine their updates and commit the result."""

from __future__ import annotations

import contextlib
import time
from functools import partial
from typing import Any

from msgspec import Struct

from fedpipe.rounds.agreement import check_agreed
from fedpipe.rounds.beginning import find_begun
from fedpipe.rounds.history import commit, read_record
from fedpipe.rounds.manifests import Record
from fedpipe.rounds.plan import Plan, RunPlace, read_plan
from fedpipe.sessions.coordinator import Coordinator, Moment
from fedpipe.sessions.current import Opened, announced
from fedpipe.sessions.pacing import drive
from fedpipe.sessions.pulse import beating
from fedpipe.sessions.scripts import describing, scoring, script_of
from fedpipe.steps import aggregate, tally
from fedpipe.steps.contract import Hands, Html, MetricsArtifact, ModelArtifact
from fedpipe.steps.early import Early
from fedpipe.steps.initialise import begin_run
from fedpipe.steps.shown import metrics_of_run, page_of_session


class Inputs(Early, frozen=True, kw_only=True):
    """The session: rounds [first, last] of the run, to its end when last is 0, of this KFP job.

    The place is absent in a step that has started early; its federation is named then.
    """

    place: RunPlace
    federation_name: str = ""
    first: int = 1
    last: int = 0


class Outputs(Struct, frozen=True, kw_only=True):
    """Digest of the global weights after the session, how many rounds are committed, and what the UI shows."""

    weights: str
    rounds: int
    model: ModelArtifact
    metrics: MetricsArtifact
    page: Html


def find(inputs: Inputs) -> Outputs | None:
    """Return the weights when the last round is committed and tested; complete a commit that has not moved HEAD."""
    store = inputs.place.open()
    plan = read_plan(store, inputs.place.plan)
    record = read_record(store, plan.run, inputs.last or plan.federation.training.rounds)
    if record is None or (not inputs.last and scoring(store, plan, record).asks(1, ())):
        return None
    return _outputs(inputs.place, plan, commit(store, record))


def run(inputs: Inputs, hands: Hands) -> Outputs:
    """Work until the session has ended; a repeated step resumes from the state in the store."""
    store = inputs.place.open()
    plan = read_plan(store, inputs.place.plan)

    def listen(moment: Moment) -> None:
        hands.notify(moment, metadata_of(plan, moment.record) if moment.record else {})

    # The coordinator itself adds updates up as they arrive; TensorFlow Federated aggregates in its own environment.
    elsewhere = partial(hands.call, aggregate.close, inputs.place) if plan.federation.aggregated_by_tff else None
    opened = Opened(
        run=plan.run, plan=inputs.place.plan, first=inputs.first, last=inputs.last, job=inputs.job, since=time.time()
    )
    session = opened.session
    opening = None
    if plan.federation.data.is_table and find_begun(store, plan) is None:
        opening = describing(plan, lambda absent: hands.call(begin_run, inputs.place, absent))
    else:
        check_agreed(store, inputs.place, plan)
    coordinator = Coordinator(
        store, plan, session, last=inputs.last, listener=listen, script=script_of(store, plan, elsewhere, session),
        opening=opening, final=None if inputs.last else partial(scoring, store, plan),
    )  # fmt: skip
    named = announced(store, opened) if plan.federation.sites else contextlib.nullcontext()
    with beating(inputs.place.open, plan.run, session), named:
        return _outputs(inputs.place, plan, drive(coordinator.run(), hands.sleep))


def metadata_of(plan: Plan, record: Record) -> dict[str, Any]:
    """Return the metadata of a round for the UI."""
    vote = plan.federation.vote
    return tally.metadata_of(record, vote) if vote else aggregate.metadata_of(record)


def _outputs(place: RunPlace, plan: Plan, record: Record) -> Outputs:
    return Outputs(
        weights=record.weights, rounds=record.round, model=ModelArtifact(metadata=metadata_of(plan, record)),
        metrics=metrics_of_run(plan.federation, record), page=page_of_session(place),
    )  # fmt: skip
