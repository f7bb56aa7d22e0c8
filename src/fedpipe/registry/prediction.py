"""Predicts with an ONNX model in onnxruntime, without TensorFlow."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from fedpipe.errors import DataError, InputError, MissingExtraError
from fedpipe.registry.card import Card, read_card

Array = npt.NDArray[Any]
_DTYPES: dict[str, np.dtype[Any]] = {
    "tensor(bool)": np.dtype("bool"), "tensor(float16)": np.dtype("float16"), "tensor(float)": np.dtype("float32"),
    "tensor(double)": np.dtype("float64"),
    **{f"tensor({sign}int{n})": np.dtype(f"{sign}int{n}") for sign in ("", "u") for n in (8, 16, 32, 64)},
}  # fmt: skip


class TensorSpec(NamedTuple):
    """Describes a tensor of a model: its name, dtype and shape, with None for a free dimension."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | None, ...]


class OnnxModel:
    """Runs a loaded model.

    Args:
        session: session of onnxruntime.
        where: the model's name in messages.

    Raises:
        InputError: a tensor is not an array of numbers.
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
        raise InputError(f"{value.name!r} is a {value.type}, not an array of numbers", where=where)
    shape = tuple(size if isinstance(size, int) and size >= 0 else None for size in value.shape)
    return TensorSpec(value.name, _DTYPES[value.type], shape)


def open_model(source: bytes | Path, *, threads: int = 0, accelerated: bool = False) -> OnnxModel:
    """Loads an ONNX model.

    Args:
        source: the model, or its file. Bytes must be self-contained: a reference to another file is refused.
        threads: threads of one run; 0: one per core.
        accelerated: use a GPU if onnxruntime has one.

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
    if isinstance(source, bytes):  # without a folder, references to other files fail
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", "/nonexistent")
    wanted = ["CUDAExecutionProvider"] * accelerated + ["CPUExecutionProvider"]
    providers = [name for name in wanted if name in onnxruntime.get_available_providers()]
    try:
        session = onnxruntime.InferenceSession(
            str(source) if isinstance(source, Path) else source, options, providers=providers
        )
    except Exception as error:
        raise InputError(f"is not an ONNX model: {' '.join(str(error).split())[:200]}", where=where) from error
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
    """Holds outputs of the model and, for a classifier, the classes with their probabilities and names."""

    outputs: Array
    classes: Array | None
    probabilities: Array | None
    names: tuple[str, ...] = ()

    def name(self, row: int) -> str:
        """Returns the name of a row's class, or its number if classes have no names."""
        assert self.classes is not None
        number = int(self.classes[row])
        return self.names[number] if self.names else str(number)


def predict(model: str | Path | Predictor, features: npt.ArrayLike) -> Prediction:
    """Predicts for a batch.

    Args:
        model: path of an .onnx file, or an opened model.
        features: shape (examples, ...), as in training.

    Returns:
        The first output; with its argmax and the values there if it has two or more columns that sum to 1.

    Raises:
        InputError: the file is not a model, or the model takes several inputs.
        DataError: the features do not have the model's shape.

    >>> import fedpipe, numpy
    >>> result = fedpipe.run("demo/federation.yaml")
    >>> fedpipe.predict(result.model, numpy.load("demo/digits.npz")["x"][:2]).outputs.shape
    (2, 10)
    """
    loaded = open_model(Path(model)) if isinstance(model, str | Path) else model
    wanted, x = loaded.inputs[0], np.asarray(features)
    if len(loaded.inputs) > 1:
        raise InputError(f"the model takes {len(loaded.inputs)} inputs, but `predict` supports only one")
    fits = len(wanted.shape) == x.ndim and all(
        w is None or w == s for w, s in zip(wanted.shape[1:], x.shape[1:], strict=True)
    )
    if not fits:
        raise DataError(f"the features have shape {x.shape}, but the model takes {('n', *wanted.shape[1:])}")
    outputs = loaded.run({wanted.name: x.astype(wanted.dtype, copy=False)})[0]
    if outputs.ndim == 2 and outputs.shape[1] > 1 and np.allclose(outputs.sum(axis=1), 1, atol=1e-3):
        classes = np.argmax(outputs, axis=1)
        names = loaded.card.classes if len(loaded.card.classes) == outputs.shape[1] else ()
        return Prediction(outputs, classes, outputs[np.arange(len(outputs)), classes], names)
    return Prediction(outputs, None, None)
