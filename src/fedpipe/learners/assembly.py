"""Assembles a learner: its model, its data, and its event files."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from msgspec import UnsetType
from msgspec.structs import replace

from fedpipe.data.disclosure import schema_of
from fedpipe.data.examples import Examples
from fedpipe.data.schema import Schema
from fedpipe.federation.training import Privacy
from fedpipe.learners.adapters import framework_of
from fedpipe.learners.downloads import fetched
from fedpipe.learners.events import event_file
from fedpipe.learners.framework import Arrays, Model
from fedpipe.learners.learner import ModelLearner
from fedpipe.learners.parts import Part, size_of
from fedpipe.learners.personal import keeps, last_kept
from fedpipe.learners.reading import kept_parts, learner_parts
from fedpipe.learners.sharing import shared_model
from fedpipe.rounds.floors import check_floors, read_floors
from fedpipe.rounds.history import read_record
from fedpipe.rounds.manifests import Record
from fedpipe.rounds.plan import Plan, RunPlace
from fedpipe.store import Store, keys
from fedpipe.store.objects import get_bytes


def plan_model(store: Store, plan: Plan, privacy: Privacy | None = None, *, schema: Schema | None = None) -> Model:
    """Return the plan's model, built once in a process.

    Args:
        store: the federation's store.
        plan: the run's plan.
        privacy: makes a model that trains with differential privacy.
        schema: of the run's table; by default the one that round 0 names.

    Raises:
        ModelError, CorruptError: the model cannot be built.
    """
    code, training = get_bytes(store, plan.code), plan.federation.training
    schema = schema or schema_of(store, plan)
    build = framework_of(plan.federation).build
    model = build(code, plan.code, plan.function, training, privacy, plan.inputs, schema)
    return shared_model(model, plan.federation)


def make_learner(
    store: Store, plan: Plan, name: str, number: int, *, trains: bool = True, place: RunPlace | None = None
) -> ModelLearner:
    """Make a learner with its model and its data.

    Args:
        store: the federation's store.
        plan: the run's plan.
        name: the learner.
        number: the round in which it works.
        trains: whether it trains; event files for TensorBoard are written then, and privacy is applied.
        place: of a session, whose learners keep their data from round to round.

    Raises:
        DataError, ModelError, CorruptError, DroppedError: why this learner cannot take part.
    """
    check_floors(plan, name)
    privacy = plan.federation.privacy_of(name)
    if not trains and not place:  # in a session, votes are cast in the environment of its training
        privacy = None
    model = plan_model(store, plan, privacy)
    parts = kept_parts(place, name, model.module) if place else learner_parts(store, plan, name, model.module)
    if privacy is None and plan.federation.learner(name).brings_data:
        _check_fit(model, parts, (store.uri, plan.run, plan.code, name))
    leaves = read_floors().leaves
    shows = privacy is None and plan.federation.secure is None and (leaves is None or leaves.tensorboard)
    wanted = trains and shows and plan.federation.training.tensorboard
    previous = read_record(store, plan.run, max(number - 1, 0)) if keeps(model, plan.federation) else None
    federation = replace(plan.federation, training=plan.federation.training.at(number))
    return ModelLearner(
        model, federation, parts, label=f"round {number} {name}", privacy=privacy,
        kept=last_kept(store, model, plan.federation, name, previous), control=_control(store, previous),
        on_epochs=_writer(store, keys.events(plan.run, number, name)) if wanted else None,
    )  # fmt: skip


def _control(store: Store, previous: Record | None) -> Arrays | None:
    """Return SCAFFOLD's control variate after a round; None before the first."""
    if previous is None or isinstance(previous.control, UnsetType):
        return None
    with tempfile.TemporaryDirectory() as folder:
        return fetched(store, previous.control, Path(folder) / "control")


_FITTING: set[tuple[str, ...]] = set()
"""Learners of this process whose own data fit their model."""


def _check_fit(model: Model, parts: Mapping[str, Part], mark: tuple[str, ...]) -> None:
    """Try the model on a few of a learner's own examples, once: its mistakes have better messages than a training's."""
    part = parts.get("train")
    if mark in _FITTING or not isinstance(part, Examples) or not size_of(part):
        return
    model.check_examples(part.x, part.y, part.weight)
    _FITTING.add(mark)


def _writer(store: Store, key: str) -> Callable[[list[dict[str, float]]], None]:
    def write(epochs: list[dict[str, float]]) -> None:
        points = [(step, {f"epoch_{k}": v for k, v in metrics.items()}) for step, metrics in enumerate(epochs)]
        store.replace(key, event_file(points))

    return write


def warm_private_training() -> None:
    """Import what private training needs, which takes seconds. Raises MissingExtraError."""
    from fedpipe.learners.keras.private import warm_up

    warm_up()
