"""Predicts with an ONNX file, or with a model on a server, for the examples in a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fedpipe.errors import InputError
from fedpipe.registry.features import read_features
from fedpipe.registry.prediction import Prediction, Predictor, open_model
from fedpipe.registry.prediction import predict as predict_batch

Array = npt.NDArray[Any]


class Answers(NamedTuple):
    """A prediction for each example of a file, and the labels where the file has them."""

    prediction: Prediction
    labels: Array | None

    @property
    def accuracy(self) -> float | None:
        """The share of examples whose class is their label; None without classes or labels."""
        classes = self.prediction.classes
        if classes is None or self.labels is None or self.labels.shape != classes.shape:
            return None
        return float(np.mean(classes == self.labels))


def predict_file(model: str | Path, data: str | Path) -> Answers:
    """Predicts for the examples in a file.

    Args:
        model: path of an .onnx file, or the URL of a server or of a model on it.
        data: an .npz, .npy, .csv or .png file.

    Raises:
        InputError: the model cannot be opened, or the data does not fit it.

    >>> import fedpipe
    >>> result = fedpipe.run("demo/federation.yaml")
    >>> fedpipe.predict_file(result.model, "demo/digits.npz").accuracy > 0.9
    True
    """
    opened = _opened(model)
    features, labels = read_features(Path(data), opened.inputs[0], opened.card.spread)
    return Answers(predict_batch(opened, features), labels)


def _opened(model: str | Path) -> Predictor:
    if not str(model).startswith(("http://", "https://")):
        return open_model(Path(model))
    from fedpipe.serving.client import RemoteModel

    return RemoteModel(str(model))


def write_outputs(prediction: Prediction, path: str | Path) -> None:
    """Writes all outputs, and the classes of a classifier, to an .npz file. Raises InputError."""
    arrays: dict[str, Any] = {"outputs": prediction.outputs}
    if prediction.classes is not None:
        arrays["classes"] = prediction.classes
    try:
        with Path(path).open("wb") as file:
            np.savez_compressed(file, **arrays)
    except OSError as error:
        raise InputError(f"cannot be written: {error.strerror}", where=str(path)) from error
