"""Reads the features to predict for, from arrays, tables and pictures, in the form that a model takes."""

from __future__ import annotations

import math
import struct
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fedpipe.data.cells import fits, parse_cells, place_of
from fedpipe.data.claims import check_arrays
from fedpipe.data.schema import Kind
from fedpipe.data.sheets import Sheet, read_sheet, unsupported
from fedpipe.data.tables import columns_in
from fedpipe.errors import DataError, one_line
from fedpipe.federation.data import SHEETS
from fedpipe.registry.card import Card
from fedpipe.registry.columns import assemble, check_names, listing, parse_column, unknown_values
from fedpipe.registry.pictures import PICTURES, read_picture
from fedpipe.registry.prediction import TensorSpec

Array = npt.NDArray[Any]
_LABELS = ("label", "labels", "target", "class", "y")
"""Names of a table's label column, the likeliest first, if the model does not name it."""
_INDEXES = ("", "Unnamed: 0", "index")
"""Names of a column that only numbers the rows."""
SUPPORTED = (".npz", ".npy", *SHEETS, *PICTURES)
"""Suffixes of files with features."""


class Features(NamedTuple):
    """Holds features of shape (examples, ...), a dict of them for several inputs, and labels if the file has them.

    A label is the number of a class, -1 for an unknown name, or a quantity. Remarks are for the user.
    """

    x: Array | dict[str, Array]
    y: Array | None = None
    remarks: tuple[str, ...] = ()


def read_features(
    path: Path, inputs: Sequence[TensorSpec], card: Card | None = None, *, header: bool | None = None
) -> Features:
    """Reads features in the shape that a model takes.

    Args:
        path: .npz (`x` and `y`, its only array, or an array for each input), .npy, .csv, .tsv, .parquet or a picture.
            Columns of a table are found by name if the model's card has names, and otherwise taken in order. A picture
            is one example, in grey or in colour as the model takes it, scaled to its size.
        inputs: the model's inputs.
        card: the model's card.
        header: whether the first row of a CSV file is the header; None: decide by its cells.

    Raises:
        DataError: the file cannot be read, or does not fit the model.
    """
    card, suffix = card or Card(), path.suffix.lower()
    if suffix in SHEETS:
        known = [*(column.name for column in card.columns)]
        return _from_sheet(read_sheet(path, known=known, header=header), inputs, card)
    if suffix in PICTURES:
        if len(inputs) > 1:
            what = f"a picture is one input, but the model takes {listing([spec.name for spec in inputs])}"
            raise DataError(what, where=str(path), remedy="Use an .npz file with an array for each input.")
        return Features(read_picture(path, inputs[0], card.spread))
    if suffix in (".npz", ".npy"):
        return _from_arrays(_read_arrays(path), inputs, card, str(path))
    raise unsupported(path, SUPPORTED)


def _read_arrays(path: Path) -> dict[str, Array]:
    try:
        with path.open("rb") as raw:
            check_arrays(raw, str(path))
            loaded = np.load(raw, allow_pickle=False)
            return {"x": loaded} if isinstance(loaded, np.ndarray) else dict(loaded)
    except FileNotFoundError as error:
        raise DataError("there is no such file", where=str(path), remedy="Check the path.") from error
    except (OSError, ValueError, EOFError, KeyError, SyntaxError, MemoryError, zipfile.BadZipFile, zlib.error,
            struct.error, NotImplementedError) as error:  # fmt: skip
        if "Object arrays" in str(error):
            what, remedy = "the file holds Python objects", "Save numbers, or texts as arrays of strings."
            raise DataError(what, where=str(path), remedy=remedy) from error
        why = one_line(getattr(error, "strerror", None) or error) or type(error).__name__
        why = "it is not NumPy's format" if "allow_pickle" in why else why
        raise DataError(
            f"the file cannot be read, because {why}", where=str(path), remedy="Save it again with NumPy."
        ) from error


def _from_arrays(arrays: Mapping[str, Array], inputs: Sequence[TensorSpec], card: Card, where: str) -> Features:
    names = [spec.name for spec in inputs]
    columns = [column.name for column in card.columns]
    by_column = dict(columns_in(arrays)) if columns else {}
    if columns and set(columns) <= set(by_column):
        flat = {name: array for name, array in by_column.items() if array.ndim == 1}
        return _from_sheet(Sheet(where, tuple(flat), tuple(array.tolist() for array in flat.values())), inputs, card)
    y = arrays.get("y", arrays.get(card.label) if card.label else None)
    if y is not None and y.dtype.kind not in "biuf":
        y = _labels(y.tolist(), card) if y.ndim == 1 else None
    if set(names) <= set(arrays):
        return Features({name: arrays[name] for name in names} if len(names) > 1 else arrays[names[0]], y)
    if len(names) > 1:
        missing = next(name for name in names if name not in arrays)
        remedy = f"Name its arrays as the inputs of the model: {listing(names)}."
        raise DataError(f"there is no array {missing!r}", where=where, remedy=remedy)
    x = arrays.get("x", next(iter(arrays.values())) if len(arrays) == 1 else None)
    if x is None:
        remedy = f"Name one of its arrays 'x'; they are {', '.join(sorted(arrays))}."
        raise DataError("there is no array 'x'", where=where, remedy=remedy)
    return Features(x, y)


def _from_sheet(sheet: Sheet, inputs: Sequence[TensorSpec], card: Card) -> Features:
    if not card.columns:
        return _in_order(sheet, inputs, card)
    remarks: list[str] = []
    if not sheet.names:
        names = tuple(column.name for column in card.columns)
        if len(sheet.columns) != len(names):
            what = f"a row has {len(sheet.columns)} cells, but the model takes {len(names)} columns"
            raise DataError(what, where=sheet.where, remedy=f"Add a header with {listing(names)}.")
        sheet = sheet._replace(names=names)
        remarks.append(f"{sheet.where} has no header: its columns are taken in the order {listing(names)}")
    label = _label_of(sheet, card)
    extra = [name for name in check_names(card.columns, sheet.names, sheet.where) if name != label]
    if extra := [name for name in extra if name not in _INDEXES]:
        remarks.append(f"the model does not take {listing(extra)} of {sheet.where}")
    values = {
        column.name: parse_column(column, sheet.cells(column.name), sheet.where, sheet.lines) for column in card.columns
    }
    remarks += [f"all values of {column.name!r} in {sheet.where} are missing" for column in card.columns
                if _all_missing(values[column.name])]  # fmt: skip
    remarks += filter(None, (unknown_values(column, values[column.name], sheet.where) for column in card.columns))
    x = assemble(card.columns, values, inputs)
    y = None if label is None else _labels(sheet.cells(label), card)
    return Features(x if len(x) > 1 else next(iter(x.values())), y, tuple(remarks))


def _all_missing(values: Array) -> bool:
    return bool((values == "").all() if values.dtype == object else np.isnan(values).all())


def _in_order(sheet: Sheet, inputs: Sequence[TensorSpec], card: Card) -> Features:
    """Takes columns in their order, or for several inputs those with the names of the inputs."""
    label = _label_of(sheet, card)
    wanted, shape = inputs[0], [size or 1 for size in inputs[0].shape[1:]]
    features = [name for name in sheet.names if name not in _INDEXES]
    if len(inputs) == 1 and len(features) == math.prod(shape):
        label = None  # it is a feature that looks like a label, such as x, y, z
    y = None if label is None else _labels(sheet.cells(label), card)
    if len(inputs) > 1:
        return Features({spec.name: _named_input(sheet, spec, card) for spec in inputs}, y)
    places = [place for place, name in enumerate(sheet.names or [None] * len(sheet.columns))
              if name is None or (name not in _INDEXES and name != label)]  # fmt: skip
    if len(places) != math.prod(shape):
        found = f" ({listing([sheet.names[place] for place in places])})" if sheet.names else ""
        raise DataError(
            f"a row has {len(places)} features{found}, but the model takes {math.prod(shape)}", where=sheet.where,
            remedy="Give the columns of the training, in their order.",
        )  # fmt: skip
    names = sheet.names or tuple(str(place + 1) for place in range(len(sheet.columns)))
    x = np.stack([_parsed(sheet, place, names[place], wanted, card) for place in places], axis=1)
    remark = f"the model does not name its columns: those of {sheet.where} are taken in their order"
    return Features(x.reshape(-1, *shape), y, (remark,) if sheet.names else ())


def _named_input(sheet: Sheet, spec: TensorSpec, card: Card) -> Array:
    if any(size not in (1, None) for size in spec.shape[1:]) or len(spec.shape) > 2:
        what = f"the model takes several inputs, and {spec.name!r} is more than one column"
        raise DataError(what, where=sheet.where, remedy="Use an .npz file with an array for each input.")
    sheet.cells(spec.name)
    values = _parsed(sheet, sheet.names.index(spec.name), spec.name, spec, card)
    return values.reshape(-1, 1) if len(spec.shape) == 2 else values


def _parsed(sheet: Sheet, place: int, name: str, spec: TensorSpec, card: Card) -> Array:
    kind: Kind = "text" if spec.dtype == object else "boolean" if spec.dtype.kind == "b" else "number"
    values = parse_cells(kind, sheet.columns[place], where=sheet.where, column=name, lines=sheet.lines, fixed=True)
    if kind != "text" and card.finite and np.isnan(values).any():
        row = int(np.isnan(values).argmax())
        remedy = "Fill the cell, or remove the row: the model takes no missing values."
        raise DataError(
            f"{sheet.columns[place][row]!r} is not a number",
            where=place_of(sheet.where, name, row, sheet.lines),
            remedy=remedy,
        )
    return values.astype(bool) if kind == "boolean" else values


def _label_of(sheet: Sheet, card: Card) -> str | None:
    taken = {column.name for column in card.columns}
    if card.label:
        return card.label if card.label in sheet.names and card.label not in taken else None
    by_lower = {name.lower(): name for name in reversed(sheet.names) if name not in taken}
    return next((by_lower[name] for name in _LABELS if name in by_lower), None)


def _labels(cells: Sequence[Any], card: Card) -> Array | None:
    """Returns the labels of a table; None if they are missing, or neither numbers nor names of classes."""
    if card.classes:
        texts = parse_cells("category", cells, where="")
        classes = {name: number for number, name in enumerate(card.classes)}
        if set(classes) <= {"true", "false"}:  # which training writes in lower case
            texts = np.char.lower(texts.astype(str))
        if not set(classes).isdisjoint(texts.tolist()):
            return np.array([classes.get(text, -1) for text in texts], np.int64)
    if not fits("number", cells):
        return None
    y = parse_cells("number", cells, where="")
    if np.isnan(y).all():
        return None
    return y.astype(np.int64) if np.array_equal(y, np.rint(y)) else y
