"""The agreement of a step with its run: the plan that it is given is that of round 0's record."""

from __future__ import annotations

from fedpipe.errors import RoundError
from fedpipe.rounds.history import read_record
from fedpipe.rounds.plan import Plan, RunPlace, read_plan
from fedpipe.store import Store


def agreed_plan(store: Store, place: RunPlace) -> Plan:
    """Return the plan of a step, compared with round 0's record, which must be committed.

    Raises:
        RoundError: the plan is of another run, or defines another training than the record.
        CorruptError: the plan or the record cannot be read.
    """
    plan = read_plan(store, place.plan)
    check_agreed(store, place, plan)
    return plan


def check_agreed(store: Store, place: RunPlace, plan: Plan) -> None:
    """Compare a plan with round 0's record. Raises RoundError as `agreed_plan`."""
    where = f"{store.uri}, run {place.run}"
    if (plan.run, plan.federation.name) != (place.run, place.federation):
        raise RoundError(
            f"the step's plan is of run {plan.run!r} of federation {plan.federation.name!r}",
            where=where,
            remedy="Compile the pipeline again. Do not trust one that was changed.",
        )
    record = read_record(store, place.run, 0)
    if record is None:
        raise RoundError("round 0 is not committed", where=where, remedy="Run the whole pipeline.")
    if record.plan != plan.definition.digest:
        raise RoundError(
            f"the step's plan defines another training ({plan.definition.digest}) than the record of round 0 "
            f"({record.plan})",
            where=where,
            remedy="Use the pipeline that began the run, or another run name.",
        )
