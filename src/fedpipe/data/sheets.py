"""Reads CSV and Parquet files as sheets: the cells of columns, by name, as they were written.

    sheet = read_sheet(Path("patients.csv"), known=["age", "sex"])
    sheet.names                       ("age", "sex", "diagnosis"); empty if the file has no header
    sheet.parse("age", "number")      array([63., nan, ...]); messages name file, column and row

The module `data/cells.py` decides what a cell means.
"""

from __future__ import annotations

import contextlib
import functools
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fedpipe.data.cells import Cells, printable, read_cells
from fedpipe.data.claims import check_claim
from fedpipe.data.delimited import read_rows
from fedpipe.data.schema import Kind
from fedpipe.errors import DataError, one_line

Array = npt.NDArray[Any]
_CSV = 3
"""Bytes of memory for a byte of CSV, at most."""


class Sheet(NamedTuple):
    """Holds the cells of a table, column by column.

    Args:
        where: the file, for messages.
        names: names of the columns, in the file's order; empty if the file has no header.
        columns: cells of each column: texts of a CSV file, values of a Parquet file.
        lines: line of each row in a CSV file.
    """

    where: str
    names: tuple[str, ...]
    columns: tuple[Sequence[Any], ...]
    lines: Sequence[int] | None = None

    @property
    def rows(self) -> int:
        """Returns the number of rows."""
        return len(self.columns[0])

    def cells(self, name: str) -> Sequence[Any]:
        """Returns the cells of a named column. Raises DataError if there is no such column."""
        if name not in self.names:
            remedy = f"Its columns are {', '.join(self.names)[:300]}." if self.names else "Add a header."
            raise DataError(f"there is no column {name!r}", where=self.where, remedy=remedy)
        return self.columns[self.names.index(name)]

    def parse(self, name: str, kind: Kind, *, fixed: bool = False) -> Array:
        """Parses a named column, as `parse_cells` does. Raises DataError."""
        return self.read(name, kind, fixed=fixed).values

    def read(self, name: str, kind: Kind, *, fixed: bool = False) -> Cells:
        """Parses a named column, as `read_cells` does. Raises DataError."""
        return read_cells(kind, self.cells(name), where=self.where, column=name, lines=self.lines, fixed=fixed)


def read_sheet(path: Path, *, known: Collection[str] = (), header: bool | None = None) -> Sheet:
    """Reads a CSV (.csv, .tsv) or Parquet file. Spaces around names of columns are removed, line breaks become spaces.

    Args:
        path: the file.
        known: names of columns, by which the header of a CSV file is recognised.
        header: whether the first row of a CSV file is the header; None: decide by its cells.

    Raises:
        DataError: it cannot be read, has no rows, or two columns have the same name.
    """
    try:
        check_content(path)
        sheet = _read_parquet(path) if path.suffix.lower() == ".parquet" else _read_csv(path, known, header)
    except FileNotFoundError as error:
        raise DataError("there is no such file", where=str(path), remedy="Check the path.") from error
    except OSError as error:
        raise DataError(f"the file cannot be read, because {error.strerror or error}", where=str(path),
                        remedy="Check the path and its permissions.") from error  # fmt: skip
    if twice := [name for name, count in Counter(sheet.names).items() if count > 1 and name]:
        what = f"the header has names more than once: {', '.join(map(repr, twice[:5]))}"
        raise DataError(what, where=str(path), remedy="Give each column a name of its own.")
    return sheet


def unsupported(path: Path, formats: Collection[str]) -> DataError:
    """Returns the error for a file in another format, with the way to a known one where it is clear."""
    if path.is_dir():
        return DataError("is a folder, not a file", where=str(path), remedy=f"Name the files in it: {path}/*.csv.")
    remedy = _UNPACKED.get(path.suffix.lower(), f"Use one of {', '.join(formats)}.")
    return DataError("the file has an unsupported format", where=str(path), remedy=remedy)


_UNPACKED = {
    **dict.fromkeys((".xlsx", ".xls", ".xlsm", ".ods"), "Save the sheet as CSV in UTF-8, which the program offers."),
    **dict.fromkeys((".gz", ".zip", ".bz2", ".xz", ".zst"), "Unpack it, and use the file in it."),
    ".txt": "Rename it to .csv if it is a table with separators.",
}


_CONTENTS = {
    b"PAR1": ("a Parquet file", "Rename it to .parquet."),
    b"PK\x03\x04": ("a zip file, as .xlsx, .ods and .npz are", "Save the sheet as CSV in UTF-8, or rename the file."),
    b"\xd0\xcf\x11\xe0": ("an Excel file", _UNPACKED[".xls"]),
    b"\x1f\x8b": ("a packed file", _UNPACKED[".gz"]),
    b"version https://git-lfs": ("a pointer of Git LFS", "Download the table with `git lfs pull`."),
    **dict.fromkeys((b'{"', b"[{", b"{\n", b"[\n"), ("a JSON file", "Save its rows as CSV.")),
    **dict.fromkeys((b"<!doctype html", b"<html"), ("a web page", "Download the table itself; it may need a login.")),
}
"""Contents of other formats, by their first bytes in small letters."""
_FORMATS = {b"PAR1": ".parquet", b"PK\x03\x04": ".npz"}
"""Formats that begin so."""


def check_content(path: Path) -> None:
    """Checks that a file is not of another format than its name says. Raises DataError and OSError."""
    with path.open("rb") as file:
        head = file.read(64)
    for mark, (what, remedy) in _CONTENTS.items():
        if head.lower().startswith(mark.lower()) and _FORMATS.get(mark) != path.suffix.lower():
            raise DataError(f"the file is {what}, whatever its name says", where=str(path), remedy=remedy)


def _read_csv(path: Path, known: Collection[str], header: bool | None) -> Sheet:
    check_claim(_CSV * path.stat().st_size, str(path))
    names, columns, lines = read_rows(path, known=known, header=header)
    return Sheet(str(path), tuple(names or ()), columns, lines)


def _read_parquet(path: Path) -> Sheet:
    from pyarrow import ArrowException, parquet  # takes 0.2 s, which CSV does not need

    try:
        with path.open("rb") as file:
            # With threads, Arrow may abort or hang at the end of Python (apache/arrow 34314 and 50482).
            held = parquet.ParquetFile(file)
            _check_parquet(held.metadata, str(path))
            texts = [field.name for field in held.schema_arrow if _is_text(field.type)]
            table = parquet.ParquetFile(file, read_dictionary=texts).read(use_threads=False)
            check_claim(sum(map(_text_size, table.columns)), str(path))
    except (ArrowException, ValueError, MemoryError) as error:
        what = f"the Parquet file cannot be read, because {one_line(error)}"
        raise DataError(what, where=str(path), remedy="Check how it was written.") from error
    columns = {
        name: column
        for name, column in zip(table.column_names, table.columns, strict=True)
        if not name.startswith("__index_level_")  # the index of a pandas table is not a column
    }
    if len(table.column_names) > len(set(table.column_names)):
        return Sheet(str(path), tuple(table.column_names), ())
    if not len(table) or not columns:
        raise DataError("the table is empty", where=str(path), remedy="Check how the file was written.")
    return Sheet(
        str(path), tuple(map(printable, columns)),
        tuple(_values(column, f"{path}: column {name!r}") for name, column in columns.items()),
    )  # fmt: skip


def _check_parquet(metadata: Any, where: str) -> None:
    """Checks that the memory suffices: a column of equal values takes a few bytes in the file."""
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    pages = sum(max(group.total_byte_size, 0) for group in groups)
    values = sum(
        max(group.column(k).num_values, group.num_rows, 0) for group in groups for k in range(group.num_columns)
    )
    check_claim(pages + 8 * values, where)


def _is_text(kind: Any) -> bool:
    from pyarrow import types

    return any(
        check(kind) for check in (types.is_string, types.is_large_string, types.is_binary, types.is_large_binary)
    )


def _text_size(column: Any) -> int:
    """Returns the bytes of all texts of a column, of which the file may hold each once."""
    from pyarrow import compute, types

    if not types.is_dictionary(column.type) or not _is_text(column.type.value_type):
        return 0
    size = 0
    for chunk in column.chunks:
        lengths = compute.binary_length(chunk.dictionary).fill_null(0).to_numpy(zero_copy_only=False)
        size += int(lengths[chunk.indices.drop_null().to_numpy(zero_copy_only=False)].astype(np.int64).sum())
    return size


def _values(column: Any, where: str) -> Sequence[Any]:
    from pyarrow import types

    if types.is_floating(column.type) or (types.is_integer(column.type) and not column.null_count):
        values: Array = column.to_numpy()
        return values  # type: ignore[return-value]
    return _Values(column, where)


def _in_years(column: Any, where: str) -> Any:
    """Returns times in microseconds, as Python has them. Raises DataError for years that Python does not have."""
    import pyarrow
    from pyarrow import compute, types

    kind = column.type
    if types.is_timestamp(kind) or types.is_date(kind):
        unit = getattr(kind, "unit", "ms" if types.is_date64(kind) else "day")
        whole = column.cast(pyarrow.int32() if types.is_date32(kind) else pyarrow.int64())
        low, high = _DAYS[0] * _PER_DAY[unit], (_DAYS[1] + 1) * _PER_DAY[unit] - 1
        strange = compute.or_(compute.less(whole, max(low, -(2**63))), compute.greater(whole, min(high, 2**63 - 1)))
        if (row := compute.index(strange, True).as_py()) >= 0:
            what, remedy = "the date is not between the years 1 and 9999", "Correct it, or leave the cell empty."
            raise DataError(what, where=f"{where}, row {row + 1}", remedy=remedy)
    if getattr(kind, "unit", "") == "ns":
        if types.is_timestamp(kind):
            return column.cast(pyarrow.timestamp("us", kind.tz), safe=False)
        return column.cast(pyarrow.time64("us") if types.is_time(kind) else pyarrow.duration("us"), safe=False)
    return column


_DAYS = ((date.min - date(1970, 1, 1)).days, (date.max - date(1970, 1, 1)).days)
"""The first and the last day that Python has."""
_PER_DAY = {"day": 1, "s": 86_400, "ms": 86_400 * 10**3, "us": 86_400 * 10**6, "ns": 86_400 * 10**9}


class _Values(Sequence[Any]):
    """Holds a column as Arrow does, in few bytes, and gives its cells as values of Python."""

    def __init__(self, column: Any, where: str) -> None:
        self._raw, self._where = column, where

    @functools.cached_property
    def _column(self) -> Any:
        return _in_years(self._raw, self._where)

    def __len__(self) -> int:
        return len(self._raw)

    def __iter__(self) -> Iterator[Any]:
        with self._reading():
            for chunk in self._column.chunks:
                yield from _cells_of(chunk)

    def __getitem__(self, index: Any) -> Any:
        with self._reading():
            return self._column[index].as_py()

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except (ValueError, OverflowError, NotImplementedError) as error:  # Arrow's errors are among them
            what = f"a cell cannot be read, because {one_line(error)}"
            raise DataError(what, where=self._where, remedy="Convert the column, and write the file again.") from error


def _cells_of(chunk: Any) -> Iterator[Any]:
    """Yields the values of a part of a column; equal texts are one object."""
    from pyarrow import types

    known = chunk.dictionary.to_pylist() if types.is_dictionary(chunk.type) else None
    for begin in range(0, len(chunk), _BLOCK):
        block = chunk.slice(begin, _BLOCK)
        if known is None:
            yield from block.to_pylist()
        else:
            yield from (None if place is None else known[place] for place in block.indices.to_pylist())


_BLOCK = 10_000
