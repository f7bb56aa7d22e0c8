"""Predicts with an ONNX file, or with a model on a server, for the examples in a file."""

from __future__ import annotations

import csv
import html
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fedpipe.errors import InputError
from fedpipe.registry.features import read_features
from fedpipe.registry.joined import JoinedModel
from fedpipe.registry.prediction import Prediction, Predictor, open_model
from fedpipe.registry.prediction import predict as predict_batch

Array = npt.NDArray[Any]


class Answers(NamedTuple):
    """A prediction for each example of a file, the labels where the file has them, and remarks about the file."""

    prediction: Prediction
    labels: Array | None
    remarks: tuple[str, ...] = ()

    @property
    def labelled(self) -> Array:
        """Whether each example has the label of a class: neither NaN nor the number of an unknown class."""
        classes = self.prediction.classes
        if classes is None or self.labels is None or self.labels.shape != classes.shape:
            return np.zeros(len(self.prediction.outputs), bool)
        return np.asarray(self.labels >= 0)

    @property
    def accuracy(self) -> float | None:
        """The share of labelled examples whose class is their label; None without classes or labels."""
        known, classes = self.labelled, self.prediction.classes
        if classes is None or self.labels is None or not known.any():
            return None
        return float(np.mean(classes[known] == self.labels[known]))

    def label(self, row: int) -> str:
        """Returns the label of an example by its name, if classes have names; "" if it is missing."""
        assert self.labels is not None
        label, names = self.labels[row], self.prediction.names
        if np.ndim(label) == 0 and label != label:
            return ""
        if names and np.ndim(label) == 0:
            return names[int(label)] if 0 <= label < len(names) else ""
        return str(label)

    def _repr_html_(self) -> str:
        from fedpipe.commands.shown import number, table

        columns, count = columns_of(self), len(self.prediction.outputs)
        cells = [[f"{cell:.6g}" if isinstance(cell, float) else cell for cell in column[:_SHOWN]]
                 for column in columns.values()]  # fmt: skip
        notes = [*self.remarks, f"{min(count, _SHOWN)} of {count} shown"]
        if self.accuracy is not None:
            notes.append(f"accuracy {number(self.accuracy)} over {self.labelled.sum()} examples")
        listed = "".join(f"<li>{html.escape(note)}</li>" for note in notes)
        return f"<div>{table(zip(*cells, strict=True), list(columns))}<ul>{listed}</ul></div>"


_SHOWN = 10
"""Examples that a notebook shows."""


def predict_file(
    model: str | Path, data: str | Path, *, header: bool | None = None, parts: Mapping[str, str | Path] | None = None
) -> Answers:
    """Predicts for the examples in a file.

    Args:
        model: path of an .onnx file, or the URL of a server or of a model on it.
        data: an .npz, .npy, .csv, .tsv, .parquet, .png or .jpg file.
        header: whether the first row of a CSV file is the header; None: decide by its cells.
        parts: of a cut network whose top is `model`: files or URLs by party (docs/split-learning.md).

    Raises:
        InputError: the model cannot be opened, or the data does not fit it.

    >>> import fedpipe
    >>> result = fedpipe.run("demo/federation.yaml")
    >>> fedpipe.predict_file(result.model, "demo/digits.npz").accuracy > 0.9
    True
    """
    opened = _opened(model)
    if parts:
        opened = JoinedModel(opened, {party: _opened(part) for party, part in parts.items()})
    features, labels, remarks = read_features(Path(data), opened.inputs, opened.card, header=header)
    return Answers(predict_batch(opened, features), labels, remarks)


def _opened(model: str | Path) -> Predictor:
    if not str(model).startswith(("http://", "https://")):
        return open_model(Path(model))
    from fedpipe.serving.client import RemoteModel

    return RemoteModel(str(model))


def columns_of(answers: Answers) -> dict[str, list[Any]]:
    """Returns predictions as the columns of a table, in the order of the examples.

    A classifier has the class, its probability and that of every class. Other outputs have columns of their own names,
    with a position if they are more than one. The last column has the labels.
    """
    prediction, columns = answers.prediction, dict[str, list[Any]]()
    count, outputs = len(prediction.outputs), dict(prediction.by_name)
    if prediction.classes is not None and prediction.probabilities is not None:
        columns["prediction"] = [prediction.name(row) for row in range(count)]
        columns["probability"] = prediction.probabilities.tolist()
        shares = outputs.pop(next(iter(outputs))).reshape(count, -1)
        shares = np.concatenate([1 - shares, shares], axis=1) if shares.shape[1] == 1 else shares
        for column in range(shares.shape[1]):
            columns[f"probability of {prediction.names[column] if prediction.names else column}"] = shares[
                :, column
            ].tolist()
    for name, array in outputs.items():
        flat = array.reshape(len(array), -1)
        for column in range(flat.shape[1]):
            title = name if flat.shape[1] == 1 else f"{name}[{column}]"
            columns[f"output {title}" if title in (*columns, "label") else title] = flat[:, column].tolist()
    if answers.labels is not None and len(answers.labels) == count and answers.labels.ndim == 1:
        columns["label"] = [answers.label(row) for row in range(count)]
    return columns


def check_output(path: Path) -> None:
    """Checks, before anything is predicted, that predictions can be written to a file. Raises InputError."""
    if path.suffix.lower() not in _WRITERS:
        remedy = f"Use {', '.join(_WRITERS)}."
        raise InputError("predictions cannot be written in this format", where=str(path), remedy=remedy)
    if not path.parent.is_dir():
        raise InputError("there is no such folder", where=str(path.parent), remedy="Create it, or choose another.")


def write_outputs(answers: Answers, path: str | Path) -> None:
    """Writes predictions to a file, one row per example in the order of the data.

    Args:
        answers: the predictions.
        path: .csv, .parquet and .json have the columns of `columns_of`; .npz has the arrays of all outputs.

    Raises:
        InputError: the file cannot be written, or has another format.
    """
    path = Path(path)
    check_output(path)
    try:
        _WRITERS[path.suffix.lower()](answers, path)
    except OSError as error:
        remedy = "Choose a folder that exists and is writable."
        raise InputError(f"cannot be written: {error.strerror or error}", where=str(path), remedy=remedy) from error


def _write_arrays(answers: Answers, path: Path) -> None:
    prediction = answers.prediction
    arrays: dict[str, Any] = {"outputs": prediction.outputs}
    if len(prediction.by_name) > 1:
        arrays = dict(prediction.by_name)
    if prediction.classes is not None:
        arrays["classes"] = prediction.classes
    plain = {name: array.astype(str) if array.dtype == object else array for name, array in arrays.items()}
    with path.open("wb") as file:
        np.savez_compressed(file, **plain)


def _write_csv(answers: Answers, path: Path) -> None:
    columns = columns_of(answers)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))


def _write_json(answers: Answers, path: Path) -> None:
    columns = columns_of(answers)
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    path.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def _write_parquet(answers: Answers, path: Path) -> None:
    from pyarrow import parquet, table  # takes 0.2 s, which the other formats do not need

    parquet.write_table(table(columns_of(answers)), path)


_WRITERS: dict[str, Callable[[Answers, Path], None]] = {
    ".csv": _write_csv, ".parquet": _write_parquet, ".json": _write_json, ".npz": _write_arrays,
}  # fmt: skip
