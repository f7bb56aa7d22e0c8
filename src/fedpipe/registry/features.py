"""Reads the features to predict for, from arrays, tables and pictures, in the form that a model takes."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fedpipe.errors import DataError
from fedpipe.registry.card import Spread
from fedpipe.registry.prediction import TensorSpec

Array = npt.NDArray[Any]
_LABELS = ("y", "label", "labels", "target", "class")
"""Names of a table's label column."""
_MOST_PIXELS = 50_000_000


class Features(NamedTuple):
    """Holds features of shape (examples, ...), and labels if the file has them."""

    x: Array
    y: Array | None = None


def read_features(path: Path, wanted: TensorSpec, spread: Spread | None = None) -> Features:
    """Reads features in the shape that a model takes.

    Args:
        path: .npz (`x` and `y`, or its only array), .npy, .csv or .png. A .csv has a row per example, with or without a
            header; a column named y or label holds labels. A .png is one example, in grey or in colour as the model
            takes it, scaled to its size. White becomes the largest value of the training data, black the smallest.
        wanted: the model's input.
        spread: spread of the values in training, for pictures.

    Raises:
        DataError: the file cannot be read, or does not fit the model.
    """
    readers: dict[str, Callable[[], Features]] = {
        ".npz": lambda: _read_arrays(path),
        ".npy": lambda: _read_arrays(path),
        ".csv": lambda: _read_table(path, wanted),
        ".png": lambda: Features(_read_picture(path, wanted, spread)),
    }
    if path.suffix.lower() not in readers:
        raise DataError("the file has an unsupported format", where=str(path), remedy=f"Use {', '.join(readers)}.")
    try:
        return readers[path.suffix.lower()]()
    except FileNotFoundError as error:
        raise DataError("there is no such file", where=str(path), remedy="Check the path.") from error
    except (OSError, ValueError, EOFError, csv.Error) as error:
        raise DataError(f"the file cannot be read: {str(error)[:200]}", where=str(path)) from error


def _read_arrays(path: Path) -> Features:
    with path.open("rb") as raw:
        loaded = np.load(raw, allow_pickle=False)
        arrays = {"x": loaded} if isinstance(loaded, np.ndarray) else dict(loaded)
    x = arrays.get("x", next(iter(arrays.values())) if len(arrays) == 1 else None)
    if x is None:
        remedy = f"Name one of its arrays 'x'; they are {', '.join(sorted(arrays))}."
        raise DataError("there is no array 'x'", where=str(path), remedy=remedy)
    return Features(x, arrays.get("y"))


def _read_table(path: Path, wanted: TensorSpec) -> Features:
    with path.open(newline="") as file:
        rows = [row for row in csv.reader(file) if row]
    if not rows:
        raise DataError("the table is empty", where=str(path))
    header = rows.pop(0) if not all(_is_number(cell) for cell in rows[0]) else [""] * len(rows[0])
    for number, row in enumerate(rows, 1):
        if len(row) != len(header):
            raise DataError(f"row {number} has {len(row)} cells, not {len(header)}", where=str(path))
        if bad := next((cell for cell in row if not _is_number(cell)), None):
            raise DataError(f"row {number}: {bad[:50]!r} is not a number", where=str(path))
    table = np.array(rows, np.float64).reshape(len(rows), len(header))
    labels = [position for position, name in enumerate(header) if name.strip().lower() in _LABELS]
    x = np.delete(table, labels[:1], axis=1)
    shape = [size or 1 for size in wanted.shape[1:]]
    if x.shape[1] != math.prod(shape):
        raise DataError(f"a row has {x.shape[1]} features, but the model takes {math.prod(shape)}", where=str(path))
    y = table[:, labels[0]] if labels else None
    whole = y is not None and np.array_equal(y, np.rint(y))
    return Features(x.reshape(-1, *shape), y.astype(np.int64) if y is not None and whole else y)


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _read_picture(path: Path, wanted: TensorSpec, spread: Spread | None) -> Array:
    from PIL import Image

    height, width, channels = _picture_shape(wanted, path)
    try:
        with Image.open(path, formats=["PNG"]) as image:
            if image.width * image.height > _MOST_PIXELS:
                raise DataError(
                    f"the picture is too large: {image.width} x {image.height} pixels",
                    where=str(path),
                    remedy=f"Scale it down to at most {_MOST_PIXELS} pixels.",
                )
            scaled = image.convert("L" if channels == 1 else "RGB").resize((width, height), Image.Resampling.BOX)
    except Image.DecompressionBombError as error:
        remedy = f"Scale it down to at most {_MOST_PIXELS} pixels."
        raise DataError("the picture has too many pixels", where=str(path), remedy=remedy) from error
    pixels = np.asarray(scaled).reshape(1, *[size or 1 for size in wanted.shape[1:]])
    if wanted.dtype.kind != "f":
        return pixels
    low, high = (spread.minimum, spread.maximum) if spread else (0.0, 1.0)
    return low + (high - low) * pixels.astype(np.float64) / 255


def _picture_shape(wanted: TensorSpec, path: Path) -> tuple[int, int, int]:
    shape = wanted.shape[1:]
    if len(shape) == 2:
        shape = (*shape, 1)
    if len(shape) != 3 or shape[2] not in (1, 3) or not (shape[0] and shape[1]):
        remedy = f"Use features of shape {('n', *wanted.shape[1:])}."
        raise DataError("the model does not take pictures", where=str(path), remedy=remedy)
    return shape[0], shape[1], shape[2]
