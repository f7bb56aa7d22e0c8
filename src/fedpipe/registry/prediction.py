"""Predicts with an ONNX model in onnxruntime, without TensorFlow."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from fedpipe.data.schema import NUMERIC
from fedpipe.data.trees import strings_of
from fedpipe.errors import DataError, InputError, MissingExtraError
from fedpipe.registry.card import Card, read_card

Array = npt.NDArray[Any]
_DTYPES: dict[str, np.dtype[Any]] = {
    "tensor(bool)": np.dtype("bool"), "tensor(float16)": np.dtype("float16"), "tensor(float)": np.dtype("float32"),
    "tensor(double)": np.dtype("float64"), "tensor(string)": np.dtype(object),
    **{f"tensor({sign}int{n})": np.dtype(f"{sign}int{n}") for sign in ("", "u") for n in (8, 16, 32, 64)},
}  # fmt: skip


_ERROR_CODE = re.compile(r"^\[ONNXRuntimeError\] : \d+ : \w+ : (Load model from .*? failed: ?)?")


_MOST_EXACT = 2**53
"""From here on, a float64 stands for several whole numbers."""


class TensorSpec(NamedTuple):
    """Describes a tensor of a model: its name, dtype and shape.

    A free dimension is None, and the dtype of strings is object.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | None, ...]


class OnnxModel:
    """Runs a loaded model.

    Args:
        session: session of onnxruntime.
        where: the model's name in messages.

    Raises:
        InputError: a tensor is not an array of numbers or strings.
    """

    def __init__(self, session: Any, where: str) -> None:
        self._session = session
        self.inputs = [_spec(value, where) for value in session.get_inputs()]
        self.outputs = [_spec(value, where) for value in session.get_outputs()]
        self.card = read_card(session.get_modelmeta().custom_metadata_map, where=where)
        self.provider = session.get_providers()[0]

    def run(self, feed: dict[str, Array], options: Any = None) -> list[Array]:
        """Returns all outputs for inputs of the model's dtypes."""
        return list(self._session.run(None, feed, options))


def _spec(value: Any, where: str) -> TensorSpec:
    if value.type not in _DTYPES:
        raise InputError(f"{value.name!r} is a {value.type}, not an array of numbers or strings", where=where)
    shape = tuple(size if isinstance(size, int) and size >= 0 else None for size in value.shape)
    return TensorSpec(value.name, _DTYPES[value.type], shape)


def open_model(
    source: bytes | Path, *, threads: int = 0, accelerated: bool = False, spinning: bool = True
) -> OnnxModel:  # fmt: skip
    """Loads an ONNX model.

    Args:
        source: the model, or its file. Bytes must be self-contained: a reference to another file is refused.
        threads: threads of one run; 0: one per core.
        accelerated: use a GPU if onnxruntime has one.
        spinning: threads of a run wait for the next one awake for a while; see `fedpipe.serving.runtime.QUICK`.

    Raises:
        MissingExtraError: onnxruntime is not installed.
        InputError: the file does not exist, or is not an ONNX model that can be used.
        CorruptError: its card is malformed.
    """
    onnxruntime = runtime()
    where = str(source) if isinstance(source, Path) else "the model"
    if isinstance(source, Path) and not source.is_file():
        raise InputError("there is no such file", where=where, remedy="Check the path.")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    if not spinning:
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if isinstance(source, bytes):  # without a folder, references to other files fail
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", "/nonexistent")
    wanted = ["CUDAExecutionProvider"] * accelerated + ["CPUExecutionProvider"]
    providers = [name for name in wanted if name in onnxruntime.get_available_providers()]
    try:
        session = onnxruntime.InferenceSession(
            str(source) if isinstance(source, Path) else source, options, providers=providers
        )
    except Exception as error:
        why = _ERROR_CODE.sub("", " ".join(str(error).split()))[:200]
        remedy = "Check the path, or export the model again."
        raise InputError(f"is not an ONNX model, because {why}", where=where, remedy=remedy) from error
    return OnnxModel(session, where)


def runtime() -> Any:
    """Imports onnxruntime and silences its log. Raises MissingExtraError."""
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingExtraError("onnxruntime", "serve") from error
    onnxruntime.set_default_logger_severity(4)
    return onnxruntime


class Predictor(Protocol):
    """Predicts: a loaded model, or one behind a server."""

    inputs: list[TensorSpec]
    outputs: list[TensorSpec]
    card: Card

    def run(self, feed: dict[str, Array]) -> list[Array]:
        """Returns all outputs for inputs of the model's dtypes."""


class Prediction(NamedTuple):
    """Holds outputs of the model and, for a classifier, the classes with their probabilities and names.

    Args:
        outputs: the first output.
        classes: the class of each example; None if the model is not a classifier.
        probabilities: the probability of that class.
        names: names of the classes, if they have names.
        by_name: all outputs by their names.
    """

    outputs: Array
    classes: Array | None
    probabilities: Array | None
    names: tuple[str, ...] = ()
    by_name: Mapping[str, Array] = {}

    def name(self, row: int) -> str:
        """Returns the name of a row's class, or its number if classes have no names."""
        assert self.classes is not None
        number = int(self.classes[row])
        return self.names[number] if self.names else str(number)


def predict(model: str | Path | Predictor, features: npt.ArrayLike | Mapping[str, npt.ArrayLike]) -> Prediction:
    """Predicts for a batch.

    Args:
        model: path of an .onnx file, or an opened model.
        features: shape (examples, ...), as in training; for a model with several inputs an array for each, by name. A
            model for tables takes a DataFrame or columns by name too: numbers, booleans, dates, strings.

    Returns:
        All outputs. The first one has classes if two or more columns sum to 1: the largest. A single column of a model
        with two classes has them too: whether it is above 0.5.

    Raises:
        InputError: the file is not a model, or an input is missing.
        DataError: the features do not have the model's shape or type, or a value is not allowed.

    >>> import fedpipe, numpy
    >>> result = fedpipe.run("demo/federation.yaml")
    >>> fedpipe.predict(result.model, numpy.load("demo/digits.npz")["x"][:2]).outputs.shape
    (2, 10)
    """
    loaded = open_model(Path(model)) if isinstance(model, str | Path) else model
    given = _by_input(loaded.inputs, features, loaded.card)
    feed = {spec.name: fitted(spec, given[spec.name], loaded.card) for spec in loaded.inputs}
    if len({len(array) for array in feed.values() if array.ndim}) > 1:
        counts = ", ".join(f"{name!r} {len(array)}" for name, array in feed.items())
        raise DataError(
            f"the inputs differ in their number of examples: {counts}", remedy="Give one value per example."
        )
    found = loaded.run(feed)
    by_name = {spec.name: array for spec, array in zip(loaded.outputs, found, strict=True)}
    classes, probabilities, names = classify(found[0], loaded.card)
    return Prediction(found[0], classes, probabilities, names, by_name)


def _by_input(inputs: list[TensorSpec], features: Any, card: Card) -> Mapping[str, npt.ArrayLike]:
    names = [spec.name for spec in inputs]
    if hasattr(features, "columns") and hasattr(features, "to_numpy"):  # of pandas
        features = {str(name): features[name] for name in features.columns} if card.columns else features.to_numpy()
    if card.columns and isinstance(features, Mapping):
        from fedpipe.registry.columns import features_by_name, names_columns  # imports this module

        if names_columns(card.columns, list(features), names):
            return features_by_name(card.columns, features, inputs)
    if not isinstance(features, Mapping):
        if len(inputs) > 1:
            what = f"the model takes {len(inputs)} inputs: {', '.join(map(repr, names))}"
            raise InputError(what, remedy="Give an array for each of them, by name.")
        return {names[0]: features}
    for missing in (name for name in names if name not in features):
        remedy = f"The model takes {', '.join(map(repr, names))}."
        raise InputError(f"the input {missing!r} is missing", remedy=remedy)
    for extra in (name for name in features if name not in names):
        remedy = f"The model takes {', '.join(map(repr, names))}."
        raise InputError(f"the model has no input {extra!r}", remedy=remedy)
    return features


def fitted(spec: TensorSpec, values: npt.ArrayLike, card: Card) -> Array:
    """Returns values in the dtype of an input.

    Args:
        spec: the input.
        values: shape (examples, ...).
        card: says whether NaN is allowed.

    Raises:
        DataError: shape or type differ, or a value cannot be represented.
    """
    try:
        given = np.asarray(values)
    except ValueError:  # rows of different lengths
        raise DataError("the features differ in length", remedy="Give each example the same shape.") from None
    fits = len(spec.shape) == given.ndim and all(
        w is None or w == s for w, s in zip(spec.shape[1:], given.shape[1:], strict=True)
    )
    if not fits:
        what = f"the features have shape {given.shape}, but the model takes {('n', *spec.shape[1:])}"
        raise DataError(what, remedy="Give an array of this shape, with n examples.")
    if spec.dtype == object:
        return _strings(spec, given)
    array = _numbers(spec, given)
    if (row := first_unusable(array, card)) is not None:
        what = f"input {spec.name!r}, example {row}: a value is NaN or infinite"
        raise DataError(what, remedy="Correct the value, or remove the example.")
    return array


_TOGETHER = 2**18
"""Values that are checked together."""


def first_unusable(array: Array, card: Card) -> int | None:
    """Returns the first example with infinity, or with NaN where it does not stand for a missing cell; None without."""
    if array.dtype.kind != "f" or not card.finite:
        return None
    if array.ndim and len(array) > _TOGETHER and array.size > _TOGETHER:  # so that little memory is needed
        step = max(1, _TOGETHER * len(array) // array.size)
        found = ((start, first_unusable(array[start : start + step], card)) for start in range(0, len(array), step))
        return next((start + row for start, row in found if row is not None), None)
    bad = ~np.isfinite(array)
    numeric = [column.missing for column in card.columns if column.kind in NUMERIC]
    if any(numeric) and array.shape[1:] == (len(numeric),):
        bad &= np.isinf(array) | ~np.array(numeric)
    if not bad.any():
        return None
    return int(bad.reshape(len(array), -1).any(axis=1).argmax()) if array.ndim else 0


def _strings(spec: TensorSpec, given: Array) -> Array:
    if given.dtype.kind not in "OUS":
        what = f"input {spec.name!r} takes strings, but the features have the type {given.dtype}"
        raise DataError(what, remedy="Give an array of strings.")
    strings = strings_of(given)
    for value in strings.reshape(-1):
        if not isinstance(value, str):
            what = f"input {spec.name!r} takes strings, but the features have a value of type {type(value).__name__}"
            raise DataError(what, remedy="Give an array of strings, with an empty string for a missing one.")
    return strings


def _numbers(spec: TensorSpec, given: Array) -> Array:
    if given.dtype.kind not in "biuf":
        what = f"input {spec.name!r} takes numbers ({spec.dtype}), but the features have the type {given.dtype}"
        raise DataError(what, remedy="Give an array of numbers.")
    with np.errstate(invalid="ignore", over="ignore"):
        array = given.astype(spec.dtype, copy=False)
        changed = np.isinf(array) & np.isfinite(given) if spec.dtype.kind == "f" else array != given
        if spec.dtype.kind in "iu" and given.dtype.kind == "f":
            changed |= np.abs(given) > _MOST_EXACT
    if changed.any():
        value = given[changed][0]
        what = f"input {spec.name!r} takes {spec.dtype}, which cannot hold the value {value:g}"
        raise DataError(what, remedy="Correct the value, or scale the features as in training.")
    return array


def classify(scores: Array, card: Card) -> tuple[Array | None, Array | None, tuple[str, ...]]:
    """Returns classes, their probabilities and names; None, None and () for scores that are not probabilities."""
    if scores.dtype.kind != "f" or scores.ndim not in (1, 2) or not len(scores):
        return None, None, ()
    columns = scores.shape[1] if scores.ndim == 2 else 1
    if columns > 1 and np.allclose(scores.sum(axis=1), 1, atol=1e-3):
        classes = np.argmax(scores, axis=1)
        names = card.classes if len(card.classes) == columns else ()
        return classes, scores[np.arange(len(scores)), classes], names
    binary = len(card.classes) == 2 or set(card.labels) == {"0", "1"}
    if columns == 1 and binary and (scores >= 0).all() and (scores <= 1).all():
        share = scores.reshape(-1)
        classes = (share > 0.5).astype(np.int64)
        return classes, np.where(classes == 1, share, 1 - share), card.classes if len(card.classes) == 2 else ()
    return None, None, ()
