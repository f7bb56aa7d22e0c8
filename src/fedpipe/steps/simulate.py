"""Rehearse the federation's rounds on one machine, with TensorFlow Federated."""

from __future__ import annotations

import time

import msgspec
from msgspec import Struct

from fedpipe.errors import InputError, RoundError
from fedpipe.federation.algorithms import OWN_RULES, UNWEIGHTED, Averaging
from fedpipe.federation.federation import Federation
from fedpipe.federation.optimizers import Sgd
from fedpipe.federation.rules import Mean
from fedpipe.rounds.agreement import agreed_plan
from fedpipe.rounds.history import commit, read_record
from fedpipe.rounds.manifests import Record
from fedpipe.rounds.plan import Plan, RunPlace
from fedpipe.rounds.selection import took_part
from fedpipe.rounds.stopping import monitored, stalled
from fedpipe.rounds.timings import Timing, note
from fedpipe.sessions.board import Board
from fedpipe.sessions.coordinator import Moment
from fedpipe.steps.contract import Hands, ModelArtifact
from fedpipe.steps.coordinate import Outputs
from fedpipe.steps.shown import metrics_of_run, page_of_session
from fedpipe.store import Store, keys


class Inputs(Struct, frozen=True, kw_only=True):
    """The run with its first weights, and the user's files of `simulation.process` and `simulation.model` as text."""

    place: RunPlace
    base: str
    process: str = ""
    tff_model: str = ""


def find(inputs: Inputs) -> Outputs | None:
    """Return the last weights when the last round is committed."""
    store = inputs.place.open()
    plan = agreed_plan(store, inputs.place)
    record = read_record(store, plan.run, plan.federation.training.rounds)
    return _outputs(inputs.place, plan, commit(store, record, rehearsal=True)) if record else None


def run(inputs: Inputs, hands: Hands) -> Outputs:
    """Work through the rounds that are not committed; a repeated step resumes from the state in the store."""
    store = inputs.place.open()
    plan = agreed_plan(store, inputs.place)
    check_simulated(plan.federation)
    records = _committed(store, plan)
    while not _ends(store, plan, records):
        number, started, clock = len(records), time.time(), time.monotonic()
        hands.call(advance, inputs, number)
        record = read_record(store, plan.run, number)
        if record is None:
            raise RoundError(f"round {number} is not committed")
        records.append(record)
        seconds = time.monotonic() - clock
        note(store, plan.run, Timing(step="simulate", round=number, started=started, seconds=seconds))
        hands.notify(_moment(plan, records, seconds), _numbers(record))
    return _outputs(inputs.place, plan, commit(store, records[-1], rehearsal=True))


def advance(inputs: Inputs, number: int) -> None:
    """Simulate one round, in the environment of TensorFlow Federated."""
    from fedpipe.tff import simulation

    simulation.advance(inputs.place, inputs.process, inputs.tff_model, number)


def check_simulated(federation: Federation) -> None:
    """Check that this federation can be simulated. Raises InputError."""
    for path, given, remedy in (
        ("learners", federation.sites,
         "The data of a site stay there. Rehearse with learners whose data are here."),
        ("framework", federation.framework != "keras",
         "TensorFlow Federated trains Keras models only. To rehearse others on this machine, use `fedpipe run`."),
        ("algorithm", federation.proposers, "To rehearse collective learning on this machine, use `fedpipe run`."),
        ("algorithm", federation.split, "To rehearse split learning on this machine, use `fedpipe run`."),
        ("algorithm.vote", federation.vote, "Remove it. To rehearse votes on this machine, use `fedpipe run`."),
        ("simulation.algorithm", federation.simulation.algorithm == "fedsgd" and not _takes_weights(federation),
         "TFF's fedsgd weights clients by their examples. Choose fedavg, or another algorithm.rule."),
        ("algorithm.rule", _is_ours(federation),
         "TensorFlow Federated has no such rule. To rehearse it on this machine, use `fedpipe run`."),
        ("algorithm.server_optimizer.formulas", _has_formulas(federation),
         "TensorFlow Federated has other formulas. Write `formulas: tff`, or set simulation.server_optimizer."),
        ("algorithm.schedule", getattr(federation.algorithm, "schedule", None), _SCHEDULE),
        ("training.schedule", federation.training.schedule, _SCHEDULE),
        ("export.choose", federation.exported is not None and federation.exported.choose == "best",
         "A simulation keeps no tests of single learners. Set it to last."),
        ("export.publish_if", federation.exported is not None and federation.exported.publish_if,
         "A simulation keeps no tests of single learners. Remove it."),
        ("privacy", any(federation.privacy_of(k.name) for k in federation.learners),
         "A simulation is not charged to the learners' budgets. Simulate with data that need no privacy."),
        ("share", federation.share != "all", "Set it to all: simulated clients keep nothing between rounds."),
        ("training.method", federation.method,
         "Remove it. For FedProx, set simulation.algorithm to fedprox; rehearse others with `fedpipe run`."),
        ("training.exchange", federation.training.exchange, "Remove it, and rehearse it with `fedpipe run`."),
        ("training.clip_norm", federation.training.clip_norm, "Set it to 0, and clip in the optimizer of model.py."),
        ("training.accumulate", federation.training.accumulate > 1, "Set it to 1."),
    ):  # fmt: skip
        if given:
            raise InputError("cannot be simulated", where=path, remedy=remedy)


_SCHEDULE = "The rate is constant in a simulation. Remove it, or rehearse with `fedpipe run`."


def _is_ours(federation: Federation) -> bool:
    """Return whether the rule, or a step before it, is one that TensorFlow Federated lacks."""
    algorithm = federation.algorithm
    if not isinstance(algorithm, Averaging):
        return False
    return bool(algorithm.before) or (isinstance(algorithm.rule, OWN_RULES) and not isinstance(algorithm.rule, Mean))


def _has_formulas(federation: Federation) -> bool:
    """Return whether the server's optimizer has other formulas than in a simulation."""
    algorithm = federation.algorithm
    if not isinstance(algorithm, Averaging) or algorithm.engine == "tff" or federation.simulation.server_optimizer:
        return False
    optimizer = algorithm.server_optimizer
    return optimizer.nesterov if isinstance(optimizer, Sgd) else optimizer.formulas != "tff"


def _takes_weights(federation: Federation) -> bool:
    algorithm = federation.algorithm
    return not (isinstance(algorithm, Averaging) and isinstance(algorithm.rule, UNWEIGHTED))


def _committed(store: Store, plan: Plan) -> list[Record]:
    records: list[Record] = []
    while record := read_record(store, plan.run, len(records)):
        records.append(record)
    if not records:
        raise RoundError(f"run {plan.run!r} has not begun: round 0 is not committed")
    return records


def _ends(store: Store, plan: Plan, records: list[Record]) -> bool:
    training = plan.federation.training
    if records[-1].round >= training.rounds or store.size(keys.stop(plan.run)) is not None:
        return True
    stopping = training.early_stopping
    return stopping is not None and stalled(monitored(records, stopping.metric), stopping)


def _moment(plan: Plan, records: list[Record], seconds: float) -> Moment:
    record, federation = records[-1], plan.federation
    board = Board(
        format=plan.format,
        federation=federation.name, run=plan.run, session="simulation", round=record.round, phase="train",
        base=records[-2].weights, asked=took_part(federation, record),
    )  # fmt: skip
    return Moment("closed", board, record=record, seconds=seconds, last=federation.training.rounds)


def _numbers(record: Record) -> dict[str, float]:
    """Return the numbers for a line of progress, without TFF's counts and the measurements of its parts."""
    return {name: value for name, value in record.metrics.items() if not name.startswith("num_") and "/" not in name}


def _outputs(place: RunPlace, plan: Plan, record: Record) -> Outputs:
    metadata = {"digest": record.weights, "round": record.round, "run": record.run, "federation": record.federation}
    numbers = _numbers(record)
    return Outputs(
        weights=record.weights, rounds=record.round, model=ModelArtifact(metadata={**metadata, **numbers}),
        metrics=metrics_of_run(plan.federation, msgspec.structs.replace(record, metrics=numbers)),
        page=page_of_session(place),
    )  # fmt: skip
