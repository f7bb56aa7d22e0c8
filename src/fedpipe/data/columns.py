"""Reads the rows of a party of a split network: features, labels and ids, as far as it holds them."""

from __future__ import annotations

import tempfile
import unicodedata
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fedpipe.data.cells import as_strings, parse_cells
from fedpipe.data.examples import DEFAULT_FEATURES, check_values, complete, local_file, stacked
from fedpipe.data.sheets import Sheet, unsupported
from fedpipe.data.tables import check_named, label_values, read_columns, read_npz
from fedpipe.data.trees import are_strings
from fedpipe.errors import DataError, one_line
from fedpipe.federation.data import SHEETS

Array = npt.NDArray[Any]


class Columns(NamedTuple):
    """The rows of a party.

    Args:
        x: features, (rows, ...); None at a party without.
        y: labels, (rows, ...); None at a party without.
        ids: texts, (rows,); None if the federation names none.
    """

    x: Array | None
    y: Array | None
    ids: Array | None

    @property
    def rows(self) -> int:
        """The number of rows."""
        return next(len(array) for array in self if array is not None)


class Wanted(NamedTuple):
    """The arrays or columns that a party must have; empty for one that it does not hold.

    In a sheet without a column of the name of the features, all columns but labels and ids are features.

    Args:
        features: of the network.
        labels: of the label party.
        ids: of all parties.
        others: labels that another party holds, and that must not be among the features.
    """

    features: str
    labels: str
    ids: str
    others: str = ""

    @property
    def own(self) -> tuple[str, str, str]:
        """Features, labels and ids."""
        return self.features, self.labels, self.ids


def read_columns_of(uri: str, wanted: Wanted) -> Columns:
    """Read a party's file: .npz, .csv, .tsv or .parquet. Raises DataError."""
    with tempfile.TemporaryDirectory() as folder:
        path = local_file(uri, Path(folder))
        try:
            if path.suffix.lower() == ".npz":
                arrays = read_npz(path, tuple(filter(None, wanted.own)))
            elif path.suffix.lower() in SHEETS:
                arrays = _columns(path, wanted)
            else:
                raise unsupported(path, (".npz", *SHEETS))
        except FileNotFoundError as error:
            raise DataError("there is no such file", where=uri, remedy="Check the path.") from error
        except (OSError, ValueError, TypeError, KeyError, EOFError, zipfile.BadZipFile, MemoryError) as error:
            what = f"the file cannot be read, because {one_line(error)}"
            raise DataError(what, where=uri, remedy="Check how it was written.") from error
    return columns_of(arrays, wanted, uri)


def _columns(path: Path, wanted: Wanted) -> dict[str, Array]:
    sheet = read_columns(path, known=tuple(filter(None, (wanted.labels, wanted.ids))))
    found: dict[str, Array] = {}
    if wanted.labels:
        check_named(sheet, [wanted.labels], "data.labels")
        found[wanted.labels] = label_values(sheet, wanted.labels)
    if wanted.ids:
        check_named(sheet, [wanted.ids], "algorithm.ids")
        found[wanted.ids] = sheet.parse(wanted.ids, "category")
    if wanted.features in sheet.names:
        found[wanted.features] = stacked(sheet.cells(wanted.features), wanted.features, str(path))
    elif wanted.features:
        if wanted.features != DEFAULT_FEATURES:
            check_named(sheet, [wanted.features], "data.features")
        others = [name for name in sheet.names if name not in (wanted.labels, wanted.ids)]
        if not others:
            raise DataError("there is no column of features", where=str(path), remedy="Check algorithm.ids.")
        if wanted.others and wanted.others in others:
            raise DataError(
                f"the column {wanted.others!r} has the labels, which only the label party holds", where=str(path),
                remedy="Remove it. If it is a feature, give it another name than data.labels.",
            )  # fmt: skip
        found[wanted.features] = np.stack([_numbers(sheet, name) for name in others], axis=1)
    return found


def _numbers(sheet: Sheet, name: str) -> Array:
    """Return a column of features. Raises DataError."""
    remedy = "Encode categories and dates, and fill in missing values first."
    return complete(sheet.parse(name, "number", fixed=True), name, sheet.where, remedy)


def columns_of(arrays: Mapping[str, Any], wanted: Wanted, where: str) -> Columns:
    """Check arrays, and return those that a party must have. Raises DataError."""
    remedies = (
        "Set data.features to one of the file's arrays.",
        "Set data.labels to one of the file's arrays, or algorithm.label_party to the party that has them.",
        "Set algorithm.ids to one of the file's arrays.",
    )
    found: list[Array | None] = []
    for name, remedy in zip(wanted.own, remedies, strict=True):
        if name and name not in arrays:
            raise DataError(f"there is no array {name!r}", where=where, remedy=remedy)
        found.append(_as_array(arrays[name], name, where) if name else None)
    x, y, ids = found
    lengths = {
        name: len(array) for name, array in zip(wanted.own, found, strict=True) if array is not None and array.ndim
    }
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{count} in {name!r}" for name, count in lengths.items())
        raise DataError(f"the numbers of rows differ: {told}", where=where, remedy="Write one row for each id.")
    for what, array in (("features", x), ("labels", y)):
        if array is not None:
            if array.dtype.kind in "US" or are_strings(array):
                raise DataError(f"the {what} are text", where=where, remedy="Write numbers.")
            check_values(array, what, where, missing=False)
    if not any(lengths.values()):
        raise DataError("the file has no rows", where=where, remedy="Check how it was written.")
    return Columns(None if x is None else x.astype(np.float32), y, None if ids is None else _checked(ids, where))


def _as_array(values: Any, name: str, where: str) -> Array:
    try:
        return np.asarray(values)
    except (ValueError, TypeError) as error:  # such as rows of different lengths
        what = f"{name!r} cannot become an array, because {one_line(error)}"
        raise DataError(what, where=where, remedy="Give each row the same number of values.") from error


def _checked(ids: Array, where: str) -> Array:
    """Return ids as texts, each once; 1, 1.0 and " 1" are the same id. Raises DataError."""
    cells: list[Any] = ids.tolist()
    if ids.ndim != 1 or ids.dtype.kind not in "iufOUS":
        raise _unusable(where)
    if ids.dtype.kind == "f":  # whole numbers of which some are missing
        known = ids[~np.isnan(ids)]
        if not (np.abs(known) <= 2**53).all() or (known % 1).any():
            raise _unusable(where)
        cells = [None if cell != cell else int(cell) for cell in cells]
    texts = parse_cells("category", cells, where=where, column="ids")
    texts = as_strings([unicodedata.normalize("NFC", text) for text in texts])
    if missing := np.flatnonzero(texts == "").size:
        what = "1 row has no id" if missing == 1 else f"{missing} rows have no id"
        raise DataError(what, where=where, remedy="Write an id in each row.")
    if duplicates := len(texts) - len(set(texts.tolist())):
        what = "1 id is a duplicate" if duplicates == 1 else f"{duplicates} ids are duplicates"
        raise DataError(what, where=where, remedy="Keep one row for each id.")
    return texts


def _unusable(where: str) -> DataError:
    return DataError(
        "the ids are not whole numbers or text, one a row", where=where, remedy="Write one id a row, as text."
    )
