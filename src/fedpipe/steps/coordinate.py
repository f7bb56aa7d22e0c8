"""The coordinator of a session: asks the learners round after round, combines what they offer and commits it."""

from __future__ import annotations

from functools import partial
from typing import Any

from msgspec import Struct

from fedpipe.rounds.history import commit, read_record
from fedpipe.rounds.manifests import Record
from fedpipe.rounds.plan import Plan, RunPlace, read_plan
from fedpipe.sessions.coordinator import Coordinator, Moment
from fedpipe.sessions.pacing import drive
from fedpipe.sessions.scripts import script_of
from fedpipe.steps import aggregate, tally
from fedpipe.steps.contract import Hands, Model


class Inputs(Struct, frozen=True, kw_only=True):
    """Which session: rounds [first, last] of the run, to its end when last is 0, of this KFP job."""

    place: RunPlace
    first: int = 1
    last: int = 0
    job: str = ""


class Outputs(Struct, frozen=True, kw_only=True):
    """Digest of the global weights after the session, and how many rounds are committed."""

    weights: str
    rounds: int
    model: Model


def find(inputs: Inputs) -> Outputs | None:
    """The weights when the session's last round is committed; its commit may have been cut off before HEAD moved."""
    store = inputs.place.open()
    plan = read_plan(store, inputs.place.plan)
    record = read_record(store, plan.run, inputs.last or plan.federation.training.rounds)
    return _outputs(plan, commit(store, record)) if record else None


def run(inputs: Inputs, hands: Hands) -> Outputs:
    """Work until the session has ended; a repeated step resumes where the store says it was."""
    store = inputs.place.open()
    plan = read_plan(store, inputs.place.plan)

    def listen(moment: Moment) -> None:
        hands.tell(moment, told(plan, moment.record) if moment.record else {})

    # The coordinator itself adds updates up as they arrive; TensorFlow Federated aggregates in its own environment.
    elsewhere = partial(hands.call, aggregate.close, inputs.place) if plan.federation.aggregated_by_tff else None
    session = f"{inputs.job}-{inputs.first}"
    coordinator = Coordinator(
        store, plan, session, last=inputs.last, listener=listen, script=script_of(store, plan, elsewhere)
    )
    return _outputs(plan, drive(coordinator.run(), hands.sleep))


def told(plan: Plan, record: Record) -> dict[str, Any]:
    """What the UI shows of a round."""
    return tally.told(record, plan.federation.vote) if plan.federation.vote else aggregate.told(record)


def _outputs(plan: Plan, record: Record) -> Outputs:
    return Outputs(weights=record.weights, rounds=record.round, model=Model(metadata=told(plan, record)))
