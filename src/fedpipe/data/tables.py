"""Reads tables for training: columns by name, each of a kind that is declared or guessed.

    table = read_table(Path("patients.csv"), {"age": "number", "sex": "category"}, labels="diagnosis")
    table.columns                     the columns, in the order of the file
    table.x                           {"numbers": float32 (n, k), "categories": strings (n, m), "texts": ...}
    table.y                           whole numbers, numbers, or names of classes

The module `data/cells.py` decides what a cell means. A missing number is NaN, a missing string is "".
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from msgspec.structs import replace

from fedpipe.data.cells import as_strings, fits, is_missing, parse_cells, printable
from fedpipe.data.claims import check_arrays
from fedpipe.data.schema import LONGEST_NAME, MOST_COLUMNS, NUMERIC, Column, Style, columns_by_input
from fedpipe.data.sheets import Sheet, check_content, read_sheet
from fedpipe.data.texts import Texts
from fedpipe.data.trees import Array, Tree
from fedpipe.errors import DataError, one_line
from fedpipe.federation.data import SHEETS, Kind
from fedpipe.suggestion import suggestion

TABLES = (*SHEETS, ".npz")
"""Suffixes of files that can be tables."""
_FEW, _MOST_CATEGORIES, _LONG = 20, 1000, 100
"""A column of strings has categories if it has few different ones, or at most a tenth of its rows and not too many."""


class Table(NamedTuple):
    """Holds features and labels as they are in a file, the columns of the features, and keys if they were asked for."""

    x: Tree
    y: Array
    columns: tuple[Column, ...]
    keys: Array | None = None


def read_table(
    path: Path, features: str | Mapping[str, Kind], labels: str, *, key: str = "", ignore: Collection[str] = (),
    narrowed: bool = False,
) -> Table:  # fmt: skip
    """Reads a table.

    Args:
        path: a file of TABLES.
        features: the kinds of columns by name, or `auto`: all columns, by guessed kinds.
        labels: the label's column.
        key: a column of keys, if needed.
        ignore: columns that `auto` leaves out.
        narrowed: whether some of these may be missing, because the owner has removed them.

    Raises:
        DataError: a column is missing or cannot be read; the message names file, column and row.
    """
    declared = () if isinstance(features, str) else tuple(features)
    return _table_of_sheet(read_columns(path, known=(*declared, labels)), features, labels, key, ignore, narrowed)


def table_of(loaded: Any, settings: Mapping[str, Any], where: str) -> Table | None:
    """Returns the table that `load` of the user's file returned: a DataFrame, columns by name, or a matrix and labels.

    Returns None for other results.

    Args:
        loaded: the result; the label is one of the columns, or the second of two.
        settings: as `Data.columns` has them.
        where: the origin, for messages.

    Raises:
        DataError: a column is missing or cannot be read.
    """
    name = settings["labels"]
    columns, label = loaded if isinstance(loaded, tuple | list) and len(loaded) == 2 else (loaded, None)
    if hasattr(columns, "columns") and hasattr(columns, "to_numpy"):  # of pandas
        columns = {str(column): columns[column].to_numpy() for column in columns.columns}
    if isinstance(columns, np.ndarray) and columns.ndim == 2 and label is not None:
        columns = {"x": columns}
    if not isinstance(columns, Mapping) or set(columns) <= {"train", "vote", "test"}:
        return None
    arrays = {str(column): np.asarray(values) for column, values in columns.items()}
    if label is not None:
        arrays[name] = np.asarray(label)
    sheet = sheet_of(arrays, where)
    return _table_of_sheet(sheet, settings["features"], name, "", settings["ignore"], settings["narrowed"])


def _table_of_sheet(
    sheet: Sheet, features: str | Mapping[str, Kind], labels: str, key: str, ignore: Collection[str], narrowed: bool
) -> Table:
    declared = () if isinstance(features, str) else tuple(features)
    if not sheet.names:
        remedy = f"Add a first line with the names, {labels!r} among them."
        raise DataError("the table has no header", where=sheet.where, remedy=remedy)
    check_named(sheet, [labels], "data.labels")
    check_named(sheet, [key] if key else [], "data.shards.column")
    y = label_values(sheet, labels)
    if isinstance(features, str):
        check_named(sheet, () if narrowed else ignore, "data.ignore")
        used = [name for name in sheet.names if name not in (labels, key, *ignore)]
        kinds = {name: guess_kind(sheet, name) for name in used}
    else:
        check_named(sheet, declared, "data.features")
        kinds = {name: features[name] for name in sheet.names if name in features}
        if labels in kinds:
            raise DataError(f"the label {labels!r} is among the features", where="data.features", remedy="Remove it.")
    if not 1 <= len(kinds) <= MOST_COLUMNS:
        raise DataError(
            f"there are {len(kinds)} columns of features, but a table has 1 to {MOST_COLUMNS:,}",
            where=sheet.where,
            remedy="Name some in data.features.",
        )
    if too_long := next((name for name in kinds if len(name) > LONGEST_NAME), None):
        what = f"the name of the column {too_long[:40]!r}... has {len(too_long)} characters"
        raise DataError(what, where=sheet.where, remedy=f"Shorten it to {LONGEST_NAME}, or add it to data.ignore.")
    styles: dict[str, Style] = {}

    def values(column: Column) -> Array:
        read = sheet.read(column.name, column.kind)
        styles[column.name] = read.style
        return read.values

    columns = tuple(Column(name=name, kind=kind) for name, kind in kinds.items())
    x = tree_of_columns(columns, values, sheet.where)
    columns = tuple(replace(column, style=styles[column.name]) for column in columns)
    return Table(x, y, columns, keys_of(sheet, key) if key else None)


def read_columns(path: Path, *, known: Collection[str] = ()) -> Sheet:
    """Reads a file of TABLES as a sheet. Raises DataError."""
    if path.suffix.lower() != ".npz":
        return read_sheet(path, known=known)
    return sheet_of(read_arrays(path), str(path))


def read_arrays(path: Path) -> dict[str, Array]:
    """Reads the arrays of an .npz file by name. Raises DataError."""
    try:
        return read_npz(path)
    except FileNotFoundError as error:
        raise DataError("there is no such file", where=str(path), remedy="Check the path.") from error
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, MemoryError) as error:
        what = f"the file cannot be read, because {one_line(error)}"
        raise DataError(what, where=str(path), remedy="Write it again.") from error


def sheet_of(arrays: Mapping[str, Array], where: str) -> Sheet:
    """Returns columns of equal length as a sheet; a matrix `x` has the columns `x[0]`, `x[1]`, ... Raises DataError."""
    arrays = dict(columns_in(arrays))
    for name, array in arrays.items():
        if array.ndim != 1:
            raise DataError(
                f"the array {name!r} has shape {array.shape}, but a column has one value per row",
                where=where,
                remedy=f"Set data.features to {name!r}, or save each column as an array of its own.",
            )
    counts = {len(array) for array in arrays.values()}
    if len(counts) > 1:
        lengths = ", ".join(f"{name!r} has {len(array)}" for name, array in list(arrays.items())[:5])
        remedy = "Give all columns the same number of rows."
        raise DataError(f"the columns differ in length: {lengths}", where=where, remedy=remedy)
    if not counts or counts == {0}:
        raise DataError("the table is empty", where=where, remedy="Check how the file was written.")
    return Sheet(where, tuple(map(printable, arrays)), tuple(arrays.values()))  # type: ignore[arg-type]


def columns_in(arrays: Mapping[str, Array]) -> Iterator[tuple[str, Array]]:
    """Yields arrays by name, and for a matrix its columns: those of `x` are `x[0]`, `x[1]`, ..."""
    for name, array in arrays.items():
        if array.ndim == 2 and array.dtype.kind in "biufU" and array.shape[1] <= MOST_COLUMNS:
            yield from ((f"{name}[{place}]", array[:, place]) for place in range(array.shape[1]))
        else:
            yield name, array


def read_npz(path: Path, wanted: Collection[str] | None = None) -> dict[str, Array]:
    """Reads the arrays of an .npz file by name, all or the wanted ones.

    Raises:
        DataError: an array holds Python objects, or the arrays need more memory than there is.
        ValueError, OSError, KeyError, EOFError, zipfile.BadZipFile: the file is not an .npz file.
    """
    check_content(path)
    with path.open("rb") as raw:
        if not raw.peek(2).startswith((b"PK", b"\x93NUMPY")):
            raise ValueError("it is not NumPy's format")
        check_arrays(raw, str(path))
        file = np.load(raw, allow_pickle=False)
        if isinstance(file, np.ndarray):
            raise ValueError("it is one array without a name, as in an .npy file")
        return {name: _npz_array(file, name, str(path)) for name in file.files if wanted is None or name in wanted}


def _npz_array(file: Any, name: str, where: str) -> Array:
    try:
        return np.asarray(file[name])
    except ValueError as error:
        if "pickle" not in str(error):
            raise
        remedy = "Save it as numbers or as text, for example with .astype(str)."
        raise DataError(
            f"the array {name!r} holds Python objects, which cannot be read", where=where, remedy=remedy
        ) from error


def check_named(sheet: Sheet, names: Collection[str], option: str) -> None:
    """Checks that a sheet has these columns. Raises DataError with the closest name."""
    for name in names:
        if name not in sheet.names:
            raise missing_column(name, sheet.names, sheet.where, option)


def missing_column(name: str, names: Sequence[str], where: str, option: str) -> DataError:
    """Returns the error that there is no such column, with the closest name."""
    remedy = suggestion(name, names, listed="Columns")
    return DataError(f"there is no column {name!r}, which {option} names", where=where, remedy=remedy)


def guess_kind(sheet: Sheet, name: str) -> Kind:
    """Guesses the kind of a column: numbers, booleans, dates, few different strings, or texts.

    Codes such as `007` are strings. A column without values counts as numbers.

    Raises:
        DataError: its cells are lists, tables or other objects.
    """
    cells = sheet.cells(name)
    if isinstance(cells, np.ndarray) and cells.dtype.kind in "iuf":
        return "number"
    types = {str} if isinstance(cells, Texts) else {type(cell) for cell in cells if not is_missing(cell)}
    if next(_texts(cells), None) is None:
        return "number"
    if odd := next((kind for kind in types if not issubclass(kind, _SCALARS)), None):
        row = next(row for row, cell in enumerate(cells) if type(cell) is odd)
        raise DataError(
            f"the column {name!r} holds values of type {odd.__name__}, first in row {row + 1}",
            where=sheet.where,
            remedy="Give each value a column of its own, or add the column to data.ignore.",
        )
    if types <= {bool, np.bool_} and types:
        return "boolean"
    if any(issubclass(kind, date | np.datetime64) for kind in types):
        return "date"
    if not any(issubclass(kind, str | bytes) for kind in types):
        return "number"
    if all(text.lower() in ("true", "false", "yes", "no") for text in _texts(cells)):
        return "boolean"
    if fits("number", cells) and not any(map(_CODE, map(str, cells))):
        return "number"
    if fits("date", cells):
        return "date"
    different, present = set[str](), 0
    for text in _texts(cells):
        different.add(text)
        present += 1
        if len(text) > _LONG or len(different) > max(_FEW, _MOST_CATEGORIES):
            return "text"
    return "category" if len(different) <= max(_FEW, present / 10) else "text"


def _texts(cells: Iterable[Any]) -> Iterator[str]:
    """Yields the cells that are not missing, as texts without spaces at their ends."""
    return (str(cell).strip() for cell in cells if not is_missing(cell))


_CODE = re.compile(r"\s*0\d").match
_SCALARS = (bool, int, float, Decimal, date, str, bytes, np.generic)


def label_values(sheet: Sheet, name: str) -> Array:
    """Returns labels: int64, float64, or strings for names of classes; `true` and `false` are such names.

    Raises:
        DataError: a label is missing, infinite or an object; the message names its row.
    """
    cells = sheet.cells(name)
    for row, cell in enumerate(cells):
        infinite = isinstance(cell, float | np.floating) and np.isinf(cell)
        if infinite or is_missing(cell):
            line = f" (line {sheet.lines[row]})" if sheet.lines is not None else ""
            raise DataError(
                "the label is infinite" if infinite else "the label is missing",
                where=f"{sheet.where}: column {name!r}, row {row + 1}{line}",
                remedy="Remove the row, or correct its label.",
            )
    if all(isinstance(cell, bool | np.bool_) for cell in cells):
        return as_strings(["true" if cell else "false" for cell in cells])
    if all(isinstance(cell, str) and cell.strip().lower() in ("true", "false") for cell in cells):
        return as_strings([cell.strip().lower() for cell in cells])
    if not fits("number", cells):
        names = sheet.parse(name, "category")
        if (longest := max(map(len, names))) > 200:
            what = f"the labels are texts of up to {longest} characters, not names of classes"
            raise DataError(what, where=f"{sheet.where}: column {name!r}", remedy="Name another column in data.labels.")
        return names
    numbers = sheet.parse(name, "number")
    whole = all(isinstance(c, int | np.integer) or (isinstance(c, str) and _WHOLE.fullmatch(c.strip())) for c in cells)
    return numbers.astype(np.int64) if whole and np.abs(numbers).max() < 2**53 else numbers


_WHOLE = re.compile(r"[+-]?\d+")


def keys_of(sheet: Sheet, name: str) -> Array:
    """Returns the keys by which examples are sharded, as strings. Raises DataError for a missing one."""
    keys = sheet.parse(name, "category")
    if (missing := np.flatnonzero(keys == "")).size:
        raise DataError(
            "the key is missing",
            where=f"{sheet.where}: column {name!r}, row {missing[0] + 1}",
            remedy="Fill it in, or remove the row: each example must belong to a learner.",
        )
    return keys.astype(str)


def tree_of_columns(columns: Sequence[Column], values: Callable[[Column], Array], where: str = "") -> Tree:
    """Returns the inputs of a model: the matrix of the numbers if there are no others, or up to three by name.

    Args:
        columns: the columns.
        values: returns the values of a column, of which no more than one is in memory at a time.
        where: the origin of the values, for messages.

    Raises:
        DataError: a number is too large for a model.
    """
    found: dict[str, Array] = {}
    for name, own in columns_by_input(columns).items():
        for position, column in enumerate(own):
            cells = values(column)
            if not position:
                found[name] = np.empty((len(cells), len(own)), np.float32 if name == "numbers" else object)
            found[name][:, position] = _float32(cells, column, where) if name == "numbers" else cells
    return found["numbers"] if list(found) == ["numbers"] else found


def _float32(values: Array, column: Column, where: str) -> Array:
    with np.errstate(over="ignore"):
        numbers: Array = values.astype(np.float32)
    if np.isinf(numbers).any():
        row = int(np.argmax(np.isinf(numbers)))
        place = f"{where}: column {column.name!r}, row {row + 1}".removeprefix(": ")
        what, remedy = f"{values[row]:g} is too large for a model", "Scale the column, for example to thousands."
        raise DataError(what, where=place, remedy=remedy)
    return numbers


def arranged(x: Tree, held: Sequence[Column], columns: Sequence[Column], where: str) -> Tree:
    """Returns the features of a table with these columns, in their order and of their kinds.

    Args:
        x: the features.
        held: their columns.
        columns: the wanted columns.
        where: the origin of the features, for messages.

    Raises:
        DataError: a column is missing, or of a kind that cannot be converted.
    """
    found = values_of_columns(x, held)
    for column in columns:
        if column.name not in found:
            raise missing_column(column.name, list(found), where, "the shared model")

    def values(column: Column) -> Array:
        own, value = found[column.name]
        return _converted(value, own, column.kind, where)

    return tree_of_columns(columns, values, where)


def values_of_columns(x: Tree, columns: Sequence[Column]) -> dict[str, tuple[Column, Array]]:
    """Returns each column of a table's features with its values, by its name."""
    trees: Mapping[str, Array] = x if isinstance(x, dict) else {"numbers": x}
    inputs = columns_by_input(columns)
    return {column.name: (column, trees[n][:, k]) for n, own in inputs.items() for k, column in enumerate(own)}


def _converted(values: Array, column: Column, kind: Kind, where: str) -> Array:
    """Returns a column as another kind: numbers become strings, and strings become numbers if they can be read so."""
    if (column.kind in NUMERIC) == (kind in NUMERIC):
        return values
    return parse_cells(kind, values, where=where, column=column.name)
