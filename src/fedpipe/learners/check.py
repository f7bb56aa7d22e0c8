"""Check the user's model against the federation file, before a run and at its beginning."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

import msgspec
import numpy as np

from fedpipe.data.examples import FORMATS, Examples
from fedpipe.data.parts import load_examples
from fedpipe.errors import DataError, DroppedError, ModelError
from fedpipe.federation.federation import Federation
from fedpipe.federation.names import split_code
from fedpipe.federation.training import Privacy
from fedpipe.learners.adapters import framework_of
from fedpipe.learners.framework import Model, Shape
from fedpipe.learners.user_code import suggestion
from fedpipe.store import suffix_of
from fedpipe.store.objects import digest_of


def built_model(federation: Federation, code: str, privacy: Privacy | None = None) -> Model:
    """Return the model of a federation, built once in a process.

    Args:
        federation: with its run-time settings.
        code: the text of the user's file.
        privacy: makes a model that trains with differential privacy.

    Raises:
        ModelError: the model cannot be built.
        MissingExtraError: the framework is not installed.
    """
    data, function = code.encode(), split_code(federation.model)[1]
    return framework_of(federation).build(data, digest_of(data), function, federation.training, privacy)


def check_model(federation: Federation, code: str, examples: Examples | None) -> str:
    """Build the model, try it on examples, and check the settings that concern it.

    Args:
        federation: with its run-time settings.
        code: the text of the user's file.
        examples: a few, including the smallest and the largest label; None when there are none.

    Returns:
        A short description of the model.

    Raises:
        ModelError: the mistake in the model or the settings.
        MissingExtraError: the framework is not installed.
    """
    training = federation.training
    framework_of(federation).check(training)
    model = built_model(federation, code)
    private = any(federation.privacy_of(learner.name) for learner in federation.learners)
    model.check_training(training, private=private)
    check_classes(model.outline.output, federation.export.classes)
    if examples is not None:
        measured = model.check_examples(examples.x, examples.y, examples.weight)
        if federation.vote:
            check_criterion(federation.vote.criterion, measured)
        if stopping := training.early_stopping:
            check_criterion(stopping.metric.removeprefix("test_"), measured, where="training.early_stopping.metric")
    return model.outline.text


def check_classes(output: Shape, classes: Sequence[str]) -> None:
    """Check that each column of the first output has a class name. Raises ModelError."""
    if classes and (len(output) != 2 or output[1] != len(classes)):
        raise ModelError(
            f"there are {len(classes)} class names for outputs of shape {tuple(output)}",
            where="export.classes",
            remedy="Name each column of the first output once, in order.",
        )


def check_criterion(criterion: str, measured: Collection[str], *, where: str = "algorithm.vote.criterion") -> None:
    """Check that the metric by which learners vote or a session ends is measured. Raises ModelError."""
    if criterion not in measured:
        raise ModelError(
            f"{criterion!r} is neither the loss nor a compiled metric",
            where=where,
            remedy=suggestion(criterion, measured),
        )


def check_own_data(federation: Federation, code: str) -> None:
    """Check that learners' own data can be read, by fedpipe or by `load` of the user's file. Raises DataError."""
    if hasattr(built_model(federation, code).module, "load"):
        return
    for position, learner in enumerate(federation.learners):
        if learner.data and suffix_of(learner.data) not in FORMATS:
            raise DataError(
                f"{learner.data!r} has an unsupported format; fedpipe reads {', '.join(FORMATS)}",
                where=f"learners[{position}].data",
                remedy="Define load(uri) in model.py to read it.",
            )


def weight_shapes(federation: Federation, code: str) -> dict[str, tuple[int, ...]]:
    """Return names and shapes of the model's weights. Raises ModelError."""
    fresh = built_model(federation, code).initial_weights(federation.training.seed)
    return {name: value.shape for name, value in fresh.items()}


def check_private_model(federation: Federation, code: str, shapes: dict[str, tuple[int, ...]], examples: bytes) -> None:
    """Build the model for private training and, when there are examples, take one private step.

    Args:
        federation: with its run-time settings.
        code: the text of the user's file.
        shapes: names and shapes of the weights.
        examples: as `dump_examples` writes them, for another NumPy; empty when there are none.

    Raises:
        ModelError: the model cannot be trained privately; the message says why.
        MissingExtraError: TensorFlow Privacy is not installed.
    """
    zeros = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    step = msgspec.structs.replace(federation.training, local_epochs=0, local_steps=1)
    chosen = {privacy for learner in federation.learners if (privacy := federation.privacy_of(learner.name))}
    for privacy in sorted(chosen, key=repr):
        model = built_model(federation, code, privacy)
        model.predictor(zeros)  # names and shapes fit
        if not examples:
            continue
        given = load_examples(examples)
        part = given.rows(np.resize(np.arange(given.count), step.batch_size))
        try:
            model.train(zeros, part, step, seed=0, seconds=math.inf, optimizer=None)
        except DroppedError as error:
            cause = error.__cause__ or error
            raise ModelError(
                f"cannot be trained privately: {type(cause).__name__}: {' '.join(str(cause).split())[:300]}",
                where="model.py",
            ) from error
