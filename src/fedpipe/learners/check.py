"""Check the user's model against the federation file, before a run and at its beginning."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from pathlib import Path

import msgspec
import numpy as np

from fedpipe import weights
from fedpipe.data.examples import FORMATS, Examples
from fedpipe.data.parts import load_examples
from fedpipe.data.ports import ports_of
from fedpipe.data.schema import NUMERIC, Schema, columns_by_input
from fedpipe.data.sheets import unsupported
from fedpipe.data.trees import Tree
from fedpipe.errors import DataError, DroppedError, InputError, ModelError, WeightsError, one_line
from fedpipe.federation.algorithms import QuantileBound, SecureSums
from fedpipe.federation.federation import Federation
from fedpipe.federation.methods import FedNova
from fedpipe.federation.names import split_code
from fedpipe.federation.training import Privacy
from fedpipe.learners.adapters import framework_of
from fedpipe.learners.framework import Arrays, Model, Predict
from fedpipe.learners.parts import label_shape_of
from fedpipe.learners.sharing import shared_model
from fedpipe.learners.user_code import load_code
from fedpipe.rounds.plan import Port, Shape
from fedpipe.rounds.tallies import Head
from fedpipe.secure.vector import scale_of
from fedpipe.store import suffix_of
from fedpipe.store.objects import digest_of
from fedpipe.suggestion import suggestion


def built_model(
    federation: Federation,
    code: str,
    privacy: Privacy | None = None,
    inputs: tuple[Port, ...] = (),
    schema: Schema | None = None,
) -> Model:
    """Return the model of a federation, built once in a process.

    Args:
        federation: with its run-time settings.
        code: the text of the user's file.
        privacy: makes a model that trains with differential privacy.
        inputs: arrays of the features, for a model that does not say what it takes.
        schema: of the federation's table, if it has one.

    Raises:
        ModelError: the model cannot be built.
        MissingExtraError: the framework is not installed.
    """
    data, function = code.encode(), split_code(federation.model)[1]
    build = framework_of(federation).build
    model = build(data, digest_of(data), function, federation.training, privacy, inputs, schema)
    return shared_model(model, federation)


def check_model(federation: Federation, code: str, examples: Examples | None, schema: Schema | None = None) -> str:
    """Build the model, try it on examples, and check the settings that concern it; see `rehearse_training` for more.

    Args:
        federation: with its run-time settings.
        code: the text of the user's file.
        examples: a few, including the smallest and the largest label; None when there are none.
        schema: of the federation's table, if it has one.

    Returns:
        A short description of the model.

    Raises:
        ModelError: the mistake in the model or the settings.
        MissingExtraError: the framework is not installed.
    """
    training = federation.training
    framework_of(federation).check(training)
    model = built_model(federation, code, None, shared_ports(federation, examples), schema)
    private = any(federation.privacy_of(learner.name) for learner in federation.learners)
    model.check_training(training, private=private)
    _check_extrapolated(federation, model)
    if private and examples is not None and examples.weight is not None:
        raise ModelError(
            "a private training takes no sample weights",
            remedy="Return (x, y) from `load`, or remove the privacy section.",
        )
    if federation.exported and federation.exported.classes:
        check_classes(model.outline.outputs[0].shape, federation.exported.classes, model.heads)
    if examples is not None:
        measured = model.check_examples(examples.x, examples.y, examples.weight)
        if schema is not None:
            _check_missing(model, examples, schema)
        check_compared(federation, measured)
    return model.outline.text


def check_compared(federation: Federation, measured: Collection[str]) -> None:
    """Check that the metrics by which a federation compares models are measured. Raises InputError."""
    if federation.vote:
        check_criterion(federation.vote.criterion, measured)
    if stopping := federation.training.early_stopping:
        check_criterion(stopping.metric.removeprefix("test_"), measured, where="training.early_stopping.metric")
    if federation.exported and federation.exported.compares:
        check_criterion(federation.exported.compared, measured, where="export.metric")


def _check_extrapolated(federation: Federation, model: Model) -> None:
    """Check that FedNova, which moves beyond the mean, moves only trained weights. Raises ModelError."""
    if not isinstance(federation.method, FedNova):
        return
    odd = sorted(model.initial_weights(federation.training.seed).keys() - set(model.trainable))
    if odd:
        raise ModelError(
            f"{odd[0]!r} is not trained, and fednova would move it beyond the mean of the learners",
            where="share",
            remedy="Set it to trainable, so that such statistics stay at the learners.",
        )


def _check_missing(model: Model, examples: Examples, schema: Schema) -> None:
    """Check that the model takes missing numbers if the learners have some. Raises ModelError."""
    missing = [column for column in schema.columns if column.missing]
    if not missing or takes_missing(model.predictor(model.initial_weights(0)), examples.rows(slice(1)).x, schema):
        return
    first = next((column for column in missing if column.kind in NUMERIC), missing[0])
    raise ModelError(
        f"the column {first.name!r} has missing values, for which the model's output is not a number",
        where="model.py",
        remedy="Use table.encoded in build(table), which fills them in, or leave the column or the rows out.",
    )


def takes_missing(predict: Predict, row: Tree, schema: Schema, *, always: bool = False) -> bool:
    """Return whether the outputs are finite where values of a table are missing.

    Args:
        predict: the model's.
        row: the features of an example.
        schema: of the table.
        always: also tries columns of which no value was missing in the training.
    """
    trees = {name: array.copy() for name, array in (row.items() if isinstance(row, dict) else [("numbers", row)])}
    inputs = columns_by_input(schema.columns)
    if trees.keys() != inputs.keys():
        return False  # a model with inputs of its own
    for name, own in inputs.items():
        places = [place for place, column in enumerate(own) if always or column.missing]
        trees[name][:, places] = np.nan if name == "numbers" else ""
    found = predict(trees if isinstance(row, dict) else trees["numbers"])
    return all(np.isfinite(output).all() for output in found if output.dtype.kind == "f")


def shared_ports(federation: Federation, examples: Examples | None) -> tuple[Port, ...]:
    """Return the arrays of the features in the shards; nothing of learners' own data, which not everybody reads."""
    return ports_of(examples.x) if examples is not None and federation.sharded else ()


_WRITERS = ("ModelCheckpoint", "TensorBoard", "CSVLogger", "BackupAndRestore", "RemoteMonitor", "SwapEMAWeights")
"""Callbacks that write files or send data, which a rehearsal does not."""
_ROWS = 32
"""Most examples of a rehearsal."""


def rehearse_training(federation: Federation, model: Model, examples: Examples) -> Arrays:
    """Do once what a run does in every round: train on a batch, measure, and pass weights and metrics around.

    Args:
        federation: with its run-time settings.
        model: the built model.
        examples: a few.

    Returns:
        The weights after the batch.

    Raises:
        ModelError: the first step that fails, with its cause.
        InputError: the changes do not fit in a secure sum; see `check_bound`.
    """
    settings = federation.training
    size = min(settings.batch_size, _ROWS)
    epochs = {"local_epochs": 0, "local_steps": 1} if settings.local_steps else {"local_epochs": 1}
    callbacks = {name: given for name, given in settings.callbacks.items() if name not in _WRITERS}
    training = msgspec.structs.replace(settings, batch_size=size, callbacks=callbacks, **epochs)
    part = examples.rows(np.resize(np.arange(examples.count), size))
    start = model.initial_weights(settings.seed)
    try:
        _check_same(start, weights.loads(weights.dumps(start)), "in the file that learners exchange")
        fitted = model.train(start, part, training, seed=0, seconds=math.inf, optimizer=None)
        weights.check_finite(fitted.weights)
    except DroppedError as error:
        raise ModelError(f"a batch cannot be trained: {error.what}", where="model.py", remedy=error.remedy) from error
    except WeightsError as error:
        raise ModelError(
            f"the weights cannot be exchanged, because {error.what}", where="model.py",
            remedy="Lower the learning rate if they are not finite; otherwise use common dtypes.",
        ) from error  # fmt: skip
    _check_same(start, fitted.weights, "after the training")
    measured = model.evaluate(fitted.weights, part, training)
    twice = [2 * np.asarray(state) for state in measured.states]
    found = model.metrics_of(twice, label_shape_of(part))
    if found.keys() != measured.metrics.keys():
        raise ModelError(
            f"the metrics of several learners are {sorted(found)}, but a learner's are {sorted(measured.metrics)}",
            where="model.py", remedy="Compile metrics whose variables are sums.",
        )  # fmt: skip
    if federation.secure:
        check_bound(federation.secure, start, fitted.weights)
    return fitted.weights


def check_bound(secure: SecureSums, start: Arrays, trained: Arrays) -> None:
    """Check that a secure sum can hold most of what one batch changes.

    Args:
        secure: the settings of secure sums.
        start: the weights before the batch.
        trained: the weights after it.

    Raises:
        InputError: most of the changes would be clipped, and more values than a round may clip.
    """
    names = [tensor.name for tensor in weights.layout_of(start).tensors if tensor.dtype in weights.FLOATS]
    factor = scale_of(start, trained, names, secure.norm)
    follows = isinstance(secure.bound, QuantileBound)
    bound = secure.bound.initial if isinstance(secure.bound, QuantileBound) else secure.bound
    values = changed = clipped = 0
    largest = 0.0
    for name in names:
        change = factor * np.abs(trained[name].astype(np.float64) - start[name].astype(np.float64))
        values += change.size
        changed += int(np.count_nonzero(change))
        clipped += int(np.count_nonzero(change > bound))
        largest = max(largest, float(change.max(initial=0.0)))
    if clipped > max(changed / 2, secure.most_clipped * values):
        raise InputError(
            f"{bound:g} clips {clipped} of the {changed} values that one batch changes, by up to {largest:.2g}",
            where=f"algorithm.secure.bound{'.initial' if follows else ''}",
            remedy=f"Write a number above {largest:.2g}: a round changes more than one batch does.",
        )


def warm(federation: Federation, code: str, examples: Examples, schema: Schema | None = None) -> None:
    """Build and trace the model in this process, so that the first training of a run finds it.

    Args:
        federation: with its run-time settings.
        code: the text of the user's file.
        examples: a few.
        schema: of the federation's table, if it has one.

    Raises:
        ModelError: the model cannot be trained; see `rehearse_training`.
    """
    model = built_model(federation, code, None, shared_ports(federation, examples), schema)
    rehearse_training(federation, model, examples)


def _check_same(expected: Arrays, found: Arrays, when: str) -> None:
    for name, value in expected.items():
        other = found.get(name)
        if other is None or (other.shape, other.dtype) != (value.shape, value.dtype):
            changed = "missing" if other is None else f"{other.dtype} {other.shape}, not {value.dtype} {value.shape}"
            raise ModelError(f"the weights {name!r} are {changed} {when}", where="model.py")


def check_classes(output: Shape, classes: Sequence[str], heads: Sequence[Head] = ()) -> None:
    """Check that each class of the first output has a name. Raises ModelError.

    Args:
        output: the shape of the first output.
        classes: names; none are needed.
        heads: the outputs of the model.
    """
    if classes and heads and heads[0].task == "regression":
        raise ModelError(
            "the model predicts numbers, not classes", where="export.classes", remedy="Remove the class names."
        )
    binary = len(classes) == 2 and len(output) == 2 and output[1] == 1  # the share of the second class
    if classes and not binary and (len(output) != 2 or output[1] != len(classes)):
        raise ModelError(
            f"there are {len(classes)} class names for outputs of shape {tuple(output)}",
            where="export.classes",
            remedy="Name each column of the first output once, in order, or two classes for one output.",
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
    data = code.encode()
    if hasattr(load_code(data, digest_of(data)), "load"):
        return
    for position, learner in enumerate(federation.learners):
        if learner.data and suffix_of(learner.data) not in FORMATS:
            flaw = unsupported(Path(learner.data), FORMATS)
            where = f"learners[{position}].data: {flaw.where}"
            raise DataError(flaw.what, where=where, remedy=f"{flaw.remedy} Or define load(uri) in model.py to read it.")


def weight_shapes(federation: Federation, code: str, schema: Schema | None = None) -> dict[str, tuple[int, ...]]:
    """Return names and shapes of the model's weights. Raises ModelError."""
    fresh = built_model(federation, code, None, (), schema).initial_weights(federation.training.seed)
    return {name: value.shape for name, value in fresh.items()}


def check_private_model(
    federation: Federation, code: str, shapes: dict[str, tuple[int, ...]], examples: bytes, schema: Schema | None = None
) -> None:
    """Build the model for private training and, when there are examples, take one private step.

    Args:
        federation: with its run-time settings.
        code: the text of the user's file.
        shapes: names and shapes of the weights.
        examples: as `dump_examples` writes them, for another NumPy; empty when there are none.
        schema: of the federation's table, if it has one.

    Raises:
        ModelError: the model cannot be trained privately; the message says why.
        MissingExtraError: TensorFlow Privacy is not installed.
    """
    zeros = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    step = msgspec.structs.replace(federation.training, local_epochs=0, local_steps=1)
    chosen = {privacy for learner in federation.learners if (privacy := federation.privacy_of(learner.name))}
    for privacy in sorted(chosen, key=repr):
        model = built_model(federation, code, privacy, (), schema)
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
                f"cannot be trained privately: {type(cause).__name__}: {one_line(cause, 300)}",
                where="model.py",
            ) from error
