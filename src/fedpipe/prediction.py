"""Predictions of an ONNX model with onnxruntime: no TensorFlow."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fedpipe.errors import DataError, InputError, MissingExtraError

Array = npt.NDArray[Any]
_DTYPES = {
    "tensor(float)": np.float32, "tensor(double)": np.float64, "tensor(float16)": np.float16,
    "tensor(int64)": np.int64, "tensor(int32)": np.int32, "tensor(uint8)": np.uint8, "tensor(bool)": np.bool_,
}  # fmt: skip


class ModelInput(NamedTuple):
    """An input's name, shape (None where it is free) and dtype."""

    name: str
    shape: tuple[int | None, ...]
    dtype: np.dtype[Any]


class OnnxModel:
    """A loaded model."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self.inputs = [
            ModelInput(
                i.name,
                tuple(s if isinstance(s, int) else None for s in i.shape),
                np.dtype(_DTYPES.get(i.type, np.float32)),
            )
            for i in session.get_inputs()
        ]

    def run(self, feed: dict[str, Array]) -> list[Array]:
        """All outputs for these inputs, cast to the model's dtypes."""
        cast = {i.name: np.asarray(feed[i.name]).astype(i.dtype, copy=False) for i in self.inputs}
        return list(self._session.run(None, cast))


def open_model(source: bytes | Path) -> OnnxModel:
    """Loads an ONNX model on the CPU.

    Raises:
        MissingExtraError: onnxruntime is not installed.
        InputError: the file is not there or is no ONNX model.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingExtraError("onnxruntime", "serve") from error
    onnxruntime.set_default_logger_severity(3)
    where = str(source) if isinstance(source, Path) else "the model"
    if isinstance(source, Path) and not source.is_file():
        raise InputError("there is no such file", where=where)
    try:
        session = onnxruntime.InferenceSession(
            str(source) if isinstance(source, Path) else source, providers=["CPUExecutionProvider"]
        )
    except Exception as error:
        raise InputError(f"is not an ONNX model: {' '.join(str(error).split())[:200]}", where=where) from error
    return OnnxModel(session)


class Prediction(NamedTuple):
    """Outputs of the model and, for a classifier, the classes with their probabilities."""

    outputs: Array
    classes: Array | None
    probabilities: Array | None


def predict(model: str | Path, features: npt.ArrayLike) -> Prediction:
    """Predictions for a batch.

    Args:
        model: path of an .onnx file.
        features: shape (examples, ...), as the model was trained on.

    Returns:
        The first output; its argmax and the value there when it has two or more columns that sum to 1.

    Raises:
        InputError: the file is no model, or the shape does not fit.
    """
    loaded = open_model(Path(model))
    wanted, x = loaded.inputs[0], np.asarray(features)
    fits = len(wanted.shape) == x.ndim and all(
        w is None or w == s for w, s in zip(wanted.shape[1:], x.shape[1:], strict=True)
    )
    if not fits:
        raise DataError(f"the features have shape {x.shape}, the model takes {('n', *wanted.shape[1:])}")
    outputs = loaded.run({wanted.name: x})[0]
    if outputs.ndim == 2 and outputs.shape[1] > 1 and np.allclose(outputs.sum(axis=1), 1, atol=1e-3):
        classes = np.argmax(outputs, axis=1)
        return Prediction(outputs, classes, outputs[np.arange(len(outputs)), classes])
    return Prediction(outputs, None, None)


def read_features(path: Path) -> tuple[Array, Array | None]:
    """Features, and labels where the file has them, of an .npz file (`x` and `y`, or its only array) or an .npy file.

    Raises:
        DataError: the file cannot be read, or has no features.
    """
    try:
        with path.open("rb") as raw:
            loaded = np.load(raw, allow_pickle=False)
            arrays = {"x": loaded} if isinstance(loaded, np.ndarray) else dict(loaded)
    except FileNotFoundError as error:
        raise DataError("there is no such file", where=str(path)) from error
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"cannot be read: {str(error)[:200]}", where=str(path), remedy="Use an .npz file.") from error
    x = arrays.get("x", next(iter(arrays.values())) if len(arrays) == 1 else None)
    if x is None:
        raise DataError(f"there is no array 'x' among {sorted(arrays)}", where=str(path))
    return x, arrays.get("y")
