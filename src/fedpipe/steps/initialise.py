"""Makes the plan, the first global weights and round 0."""

from __future__ import annotations

import logging
import re
import tempfile
from collections.abc import Callable
from pathlib import Path

import msgspec
from msgspec import Struct

from fedpipe import weights
from fedpipe.data.parts import get_parts
from fedpipe.errors import InputError, ModelError
from fedpipe.federation.federation import Federation
from fedpipe.rounds.history import commit, read_head, read_record
from fedpipe.rounds.manifests import Head, Record
from fedpipe.rounds.plan import Plan, RunPlace, Settings, differences, read_plan
from fedpipe.sessions.board import check_deadline
from fedpipe.steps.contract import Model
from fedpipe.steps.shard import Shards, read
from fedpipe.store import Store
from fedpipe.store.objects import digest_of, fetch_file, put_bytes, put_file
from fedpipe.weights import Array, Layout

log = logging.getLogger("fedpipe")


class Inputs(Struct, frozen=True, kw_only=True):
    """The place and shards of the run, the federation and model.py as text, and the run-time settings."""

    place: RunPlace
    shards: Shards
    federation: str
    code: str
    rounds: int = 0
    learning_rate: float = 0.0
    local_epochs: int = 0
    batch_size: int = 0
    min_learners: int = 0
    deadline: float = 0.0
    patience: int = 0
    max_seconds: float = 0.0


class Outputs(Struct, frozen=True, kw_only=True):
    """The place with the plan's digest, and the first weights."""

    placed: RunPlace
    weights: str
    model: Model


def find(inputs: Inputs) -> Outputs | None:
    """The first weights when the run has begun. Raises InputError when it began with other settings."""
    store = inputs.place.open()
    record = read_record(store, inputs.place.run, 0)
    if record is None:
        return None
    return _outputs(inputs.place, begin(store, _plan(inputs), dict))


def _plan(inputs: Inputs) -> Plan:
    settings = Settings(**{name: getattr(inputs, name) for name in Settings.__struct_fields__})
    return make_plan(inputs.place.run, settings.applied(read(inputs.federation)), inputs.code, inputs.shards)


def run(inputs: Inputs) -> Outputs:
    """Begins the run, or finds that it has begun."""
    store, plan = inputs.place.open(), _plan(inputs)
    if read_record(store, plan.run, 0) is None:
        check_deadline(store, plan.federation.quorum.deadline)

    def initial() -> dict[str, Array]:
        from fedpipe.learners.keras.arguments import check_arguments, check_criterion, check_preprocessing
        from fedpipe.learners.keras.learner import plan_model
        from fedpipe.learners.keras.model import check_classes, check_private

        check_arguments(plan.federation.training)
        put_bytes(store, inputs.code.encode())
        model = plan_model(store, plan)
        check_preprocessing(plan.federation.training, model.module)
        check_classes(model.keras, plan.federation.export.classes)
        if plan.test is not None:
            measured = model.check_examples(*get_parts(store, plan.test)["test"])
            if plan.federation.vote:
                check_criterion(plan.federation.vote.criterion, measured)
            if stopping := plan.federation.training.early_stopping:
                check_criterion(stopping.metric.removeprefix("test_"), measured, where="training.early_stopping.metric")
        if any(plan.federation.privacy_of(learner.name) for learner in plan.federation.learners):
            check_private(model.keras)
        model.reset(plan.federation.training.seed)
        return model.weights()

    return _outputs(inputs.place, begin(store, plan, initial))


def _outputs(place: RunPlace, record: Record) -> Outputs:
    place = msgspec.structs.replace(place, plan=record.plan)
    metadata = {"digest": record.weights, "round": 0, "run": record.run, "federation": record.federation}
    return Outputs(placed=place, weights=record.weights, model=Model(metadata=metadata))


def make_plan(run: str, federation: Federation, code: str, shards: Shards) -> Plan:
    """The plan of a run; it names no store, no folder and no shape of steps: it is the same however it runs."""
    file, _, function = federation.model.partition(":")
    local = msgspec.structs.replace(
        federation,
        store="store",
        model=f"{Path(file).name}:{function or 'build'}",
        data=msgspec.structs.replace(federation.data, uri=re.sub(r".*/", "", federation.data.uri)),
        training=msgspec.structs.replace(federation.training, rounds_per_step="all"),
    )
    return Plan(
        run=run, federation=local, code=digest_of(code.encode()), function=function or "build",
        shards=shards.learners, test=shards.test or None,
    )  # fmt: skip


def begin(store: Store, plan: Plan, initial: Callable[[], dict[str, Array]]) -> Record:
    """Commits round 0 with fresh weights or those of HEAD.

    Args:
        store: the federation's store.
        plan: the run's plan.
        initial: makes fresh weights; their layout must be HEAD's when the run goes on from there.

    Raises:
        InputError: the run's name was used with another plan; the message says what changed.
        ModelError: HEAD's weights do not fit the model.
    """
    if found := read_record(store, plan.run, 0):
        _check_same(store, plan, found)
        return commit(store, found)
    digest = plan.put(store)
    fresh = initial()
    layout = weights.layout_of(fresh)
    current = read_head(store)
    head = current[0] if current else None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights"
        if head is not None and plan.federation.training.start == "head":
            _check_fits(store, head, layout, path)
            first = head.weights
            log.info("run %s goes on from round %d of run %s", plan.run, head.round, head.run)
        else:
            first = weights.save(fresh, path)
            put_file(store, path, first)
    record = Record(
        federation=plan.federation.name, run=plan.run, round=0, previous=head.ref if head else None, plan=digest,
        base=head.weights if head else None, weights=first, layout=digest_of(weights.head_bytes(layout)),
    )  # fmt: skip
    return commit(store, record)


def _check_same(store: Store, plan: Plan, found: Record) -> None:
    if found.plan == plan.digest:
        return
    changed = differences(read_plan(store, found.plan), plan)
    raise InputError(
        f"run {plan.run!r} was made with other settings ({'; '.join(changed[:5])})",
        remedy="Choose another run name: it goes on from HEAD. Or restore the settings to resume this one.",
    )


def _check_fits(store: Store, head: Head, layout: Layout, path: Path) -> None:
    fetch_file(store, head.weights, path)
    with path.open("rb") as file:
        difference = layout.difference(weights.read_layout(weights.fetch_from(file), path.stat().st_size))
    if difference:
        raise ModelError(
            f"the weights at HEAD do not fit the model: {difference}",
            remedy="Restore the model, set training.start to fresh, or rename the federation.",
        )
