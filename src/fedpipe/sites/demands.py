"""Demands: what a plan asks of one learner, read from its federation and from nothing else."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from msgspec import Struct

from fedpipe.federation.algorithms import Averaging
from fedpipe.federation.federation import Federation
from fedpipe.federation.methods import Ditto
from fedpipe.federation.mistakes import quantity
from fedpipe.federation.names import tag_of
from fedpipe.federation.placement import Placement, StepKind
from fedpipe.federation.preprocessing import parse
from fedpipe.federation.training import Privacy

HARMLESS_CALLBACKS = frozenset(
    {"EarlyStopping", "LearningRateScheduler", "ProgbarLogger", "ReduceLROnPlateau", "SwapEMAWeights", "TerminateOnNaN"}
)
"""Keras callbacks that write no file and open no connection."""
HARMLESS_ARGUMENTS = frozenset(
    {"class_weight", "shuffle", "validation_batch_size", "validation_freq", "validation_split", "validation_steps"}
)
"""Arguments of `Model.fit` that add neither data nor work."""
_FILE = re.compile(r"[/\\~$%]|\.[A-Za-z]\w{0,9}\Z")
"""Texts that may name a file or a host."""


_STEPS: tuple[StepKind, ...] = ("train", "learn")
"""Kinds of the steps that train; a site does their work."""


class Demands(Struct, frozen=True, kw_only=True):
    """The work and the protection of a plan, for a learner in one round.

    `epochs` counts passes over the train part, with repetitions of the preprocessing and of personal models. `steps` is
    0 where epochs count. `learners` is the fewest that form a round. `columns` are those that the plan names, with
    their kinds; empty kinds are not declared. `cores` and `memory` are limits or requests that the file sets.
    `norm` is the largest L2 norm of an update; 0: any. `hazards` are callbacks and arguments that no site runs.
    """

    algorithm: str
    epochs: int
    steps: int
    batch_size: int
    learners: int
    secure: bool
    norm: float
    privacy: Privacy | None
    criterion: str
    rare: int
    columns: dict[str, str]
    cores: str
    memory: str
    gpus: int
    tensorboard: bool
    hazards: tuple[str, ...]


def demands_of(federation: Federation, learner: str) -> Demands:
    """Return what a federation, in which `mistakes` finds nothing, asks of one of its learners."""
    training = federation.training
    own, kinds = federation.learner(learner).placement, federation.placement
    placements = [own.over(kinds.get(step, Placement())) for step in _STEPS]
    repeats, batch = _preprocessed(training.preprocessing)
    times = repeats * (2 if isinstance(training.method, Ditto) else 1)
    vote, data = federation.vote, federation.data
    return Demands(
        algorithm=tag_of(federation.algorithm),
        epochs=0 if training.local_steps else training.local_epochs * times,
        steps=training.local_steps * times,
        batch_size=max(batch or training.batch_size, 1) * training.accumulate,
        learners=_fewest(federation),
        secure=federation.secure is not None,
        norm=federation.secure.norm if federation.secure else 0.0,
        privacy=federation.privacy_of(learner),
        criterion=vote.criterion if vote else "",
        rare=data.statistics.rare if data.is_table else 0,
        columns=_columns(federation, learner),
        cores=max((one.cpu or one.cpu_request or "0" for one in placements), key=quantity),
        memory=max((one.memory or one.memory_request or "0" for one in placements), key=quantity),
        gpus=max(one.accelerator.count if one.accelerator else 0 for one in placements),
        tensorboard=training.tensorboard and federation.secure is None and federation.privacy_of(learner) is None,
        hazards=tuple(_hazards(federation)),
    )


def _preprocessed(expression: str) -> tuple[int, int]:
    """Return how often the preprocessing repeats the examples, and its batch size; 1 and 0 without one."""
    steps = parse(expression) if expression else ()
    repeats = math.prod(step.arguments["count"] for step in steps if step.name == "repeat")
    return repeats, next((step.arguments["batch_size"] for step in steps if step.name == "batch"), 0)


def _fewest(federation: Federation) -> int:
    if isinstance(federation.algorithm, Averaging):
        return federation.min_updates
    return federation.min_learners


def _columns(federation: Federation, learner: str) -> dict[str, str]:
    data, cut = federation.data, federation.split
    if cut is not None:  # in a sheet, all columns but these are features
        labels = data.labels if learner == cut.label_party else ""
        return {name: "" for name in (labels, cut.ids) if name}
    named = {name: str(kind) for name, kind in data.kinds.items()}
    if isinstance(data.features, str) and data.features and not data.is_table:
        named[data.features] = ""
    return named | ({data.labels: ""} if data.labels else {})


def _hazards(federation: Federation) -> Iterator[str]:
    training, custom = federation.training, federation.framework == "custom"
    for name in sorted(set(training.callbacks) - HARMLESS_CALLBACKS):
        yield f"the plan uses the callback {name!r}; a site allows {', '.join(sorted(HARMLESS_CALLBACKS))}"
    for name in sorted(set(training.fit) - HARMLESS_ARGUMENTS) if not custom else ():
        yield f"the plan gives `fit` the argument {name!r}; a site allows {', '.join(sorted(HARMLESS_ARGUMENTS))}"
    for section in ("fit", "evaluate", "callbacks"):
        for path, text in _texts(getattr(training, section), f"training.{section}"):
            if _FILE.search(text):
                yield f"the plan has {text[:80]!r} in {path}, which may name a file; a site allows no such text"


def _texts(value: Any, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _texts(inner, f"{path}.{key}")
    elif isinstance(value, list | tuple):
        for number, inner in enumerate(value):
            yield from _texts(inner, f"{path}[{number}]")
