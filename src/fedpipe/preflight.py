"""What is checked before anything runs: nothing is written, and every mistake has its remedy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt

from fedpipe.data import Examples
from fedpipe.errors import DataError
from fedpipe.federation import Federation
from fedpipe.objects import digest_of
from fedpipe.steps.shard import dealt

Array = npt.NDArray[Any]


class Finding(NamedTuple):
    """Something that was checked and is good."""

    subject: str
    what: str


def check_data(federation: Federation, uri: str) -> tuple[list[Finding], Examples | None]:
    """Deals the dataset on paper.

    Returns:
        What was found, and a few examples with the smallest and the largest label; none without a common dataset.

    Raises:
        DataError: the data cannot be dealt out as the federation says.
    """
    if not federation.sharded:
        return [Finding("data", "every learner brings its own")], None
    parts, test = dealt(federation, uri)
    findings = [Finding("data", f"{len(test.y) if test else 0} examples for the central test")]
    for name, part in parts.items():
        findings.append(Finding(name, ", ".join(f"{len(e.y)} {p}" for p, e in part.items())))
    whole = [e for part in parts.values() for e in part.values()] + ([test] if test else [])
    return findings, _extremes(whole)


def _extremes(sets: list[Examples]) -> Examples:
    """The examples with the smallest and the largest label."""
    picked = []
    for choose in (np.argmin, np.argmax):
        found = [(e, int(choose(e.y.reshape(len(e.y), -1)[:, 0]))) for e in sets if len(e.y)]
        values = [e.y.reshape(len(e.y), -1)[i, 0] for e, i in found]
        picked.append(found[int(choose(values))])
    return Examples(np.stack([e.x[i] for e, i in picked]), np.stack([e.y[i] for e, i in picked]))


def check_model(federation: Federation, code: str, examples: Examples | None) -> list[Finding]:
    """Builds the model, tries it on examples, and checks the training arguments against Keras.

    Raises:
        ModelError: what is wrong with model.py or the arguments.
        MissingExtraError: Keras is not installed.
    """
    from fedpipe.keras_model import cached_model, check_arguments

    check_arguments(federation.training)
    function = federation.model.rpartition(":")[2]
    data = code.encode()
    training = federation.training
    model = cached_model(data, digest_of(data), function, training.precision, training.seed)
    if training.learning_rate:
        model.set_learning_rate(training.learning_rate)
    if examples is not None:
        model.check_examples(*examples)
    if any(learner.data for learner in federation.learners):
        _check_own_data(federation, hasattr(model.module, "load"))
    shape = model.keras.input_shape
    return [Finding("model", f"{model.keras.count_params():,} parameters, input {shape}, loss {model.keras.loss}")]


def _check_own_data(federation: Federation, has_load: bool) -> None:
    for position, learner in enumerate(federation.learners):
        path = Path(urlsplit(learner.data).path)
        if learner.data and not has_load and path.suffix not in (".npz", ".parquet"):
            raise DataError(
                f"{learner.data!r} is neither .npz nor .parquet",
                where=f"learners[{position}].data",
                remedy="Define load(uri) in model.py to read it.",
            )


def check(
    federation: Federation, code: str, uri: str, try_model: Callable[..., list[Finding]] = check_model
) -> list[Finding]:
    """All checks that need no store.

    Args:
        federation: the federation with its run-time settings.
        code: the text of model.py.
        uri: of the dataset.
        try_model: `check_model`, here or in a worker.
    """
    findings, examples = check_data(federation, uri)
    return [*findings, *try_model(federation, code, examples)]
