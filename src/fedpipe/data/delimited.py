"""Reads the text of CSV files: encodings, separators, comments, quotes, and the question whether there is a header.

Text is UTF-8, with or without a byte-order mark, or UTF-16 with one. The separator is a comma, semicolon, tab or bar:
one that splits every line into the same number of cells. Lines at the top that begin with # are comments. The last one
may be the header, as NumPy writes it.

The first row is the header if it has all known names. It is the header too if a cell can only be a name: one that is
neither missing, a number, a date, true nor false. A first row that counts from 0 or 1 to ten and more may be a header
or an example, so the user must decide.
"""

from __future__ import annotations

import codecs
import csv
import io
import itertools
import re
from array import array
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from fedpipe.data.cells import fits, is_missing, printable
from fedpipe.data.styles import is_value
from fedpipe.data.texts import Texts
from fedpipe.errors import DataError

_SEPARATORS = ("\t", ";", "|")
_LONG_COUNT = 10
"""Numbers of a first row that count up like the names of pixels; fewer are an example."""
_MOST_CELL = 2**24
_SAMPLED_LINES = 50
_BLOCK = 200_000
"""Cells that are split and packed at a time."""
_NAMED_SEPARATOR = re.compile(r"sep=([,;|\t])")
_MARKS = {codecs.BOM_UTF8: "utf-8", codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be"}


class Row(NamedTuple):
    """Holds a row: its cells, and the line in the file at which it begins."""

    line: int
    cells: list[str]


class Rows(NamedTuple):
    """Holds a CSV file: names of the columns, None without a header; the cells by column; and the line of each row."""

    header: list[str] | None
    columns: tuple[Texts, ...]
    lines: array[int]


def read_rows(path: Path, *, known: Collection[str] = (), header: bool | None = None) -> Rows:
    """Reads a CSV file, and holds about as many bytes as the file has.

    Args:
        path: the file.
        known: names of columns that a header would have.
        header: whether the first row is the header; None: decide by its cells.

    Raises:
        DataError: it is not text, has no rows, or rows differ in length; the message names the line.
    """
    with path.open("rb") as raw:
        mark = next((mark for mark in _MARKS if raw.peek(4).startswith(mark)), b"")
        raw.seek(len(mark))
        encoding = _MARKS.get(mark, "utf-8")
        try:
            with io.TextIOWrapper(raw, encoding, newline="") as lines:
                return _read(lines, path, known, header)
        except UnicodeDecodeError:
            raise _not_text(path, encoding, len(mark)) from None


def _not_text(path: Path, encoding: str, begin: int) -> DataError:
    """Returns the error for the first byte that is not text."""
    decoder, line, data, what = codecs.getincrementaldecoder(encoding)(), 1, b"-", "the file has changed"
    with path.open("rb") as raw:
        raw.seek(begin)
        while data:
            data = raw.read(2**20)
            try:
                line += decoder.decode(data, final=not data).count("\n")
            except UnicodeDecodeError as error:
                line += error.object[: error.start].decode(encoding).count("\n")
                byte = error.object[error.start]
                what = f"line {line} is not text in {encoding.upper()}, because of the byte 0x{byte:02x}"
                break
    remedy = "Save the file as UTF-8, for example with: iconv -f LATIN1 -t UTF-8 OLD > NEW."
    return DataError(what, where=str(path), remedy=remedy)


def _read(file: Iterable[str], path: Path, known: Collection[str], header: bool | None) -> Rows:
    comments, rows = _parse(_checked_lines(file, path), path)
    first = list(itertools.islice(rows, 2))
    if not first:
        raise DataError("the table is empty", where=str(path), remedy="Check the path, or how the file was written.")
    names = _header(comments, first, known, header, path)
    columns, lines = _stacked(names, itertools.chain(first, rows), path)
    if not columns:
        what = f"the table has a header, {', '.join(names or ())[:100]}, but no rows"
        raise DataError(what, where=str(path), remedy="Add rows below the header.")
    named = names is not None and len(names) == len(columns) and names[-1]
    if len(columns) > 1 and not named and not any(cell.strip() for cell in columns[-1]):
        columns.pop()  # each line ends with a separator
    names = _without_last_name(names, len(columns))
    if names is not None and len(names) != len(columns):
        raise _wrong_length(1, Row(lines[0], [""] * len(columns)), names, len(columns), path)
    return Rows(names, tuple(columns), lines)


def _checked_lines(file: Iterable[str], path: Path) -> Iterator[str]:
    for number, line in enumerate(file, 1):
        if "\0" in line:
            what = f"line {number} contains a zero byte, so the file is not a table"
            raise DataError(what, where=str(path), remedy="Save the file as CSV in UTF-8.")
        yield line


def _stacked(names: list[str] | None, rows: Iterator[Row], path: Path) -> tuple[list[Texts], array[int]]:
    """Returns the cells by column, and the line of each row. Raises DataError for a row of another length."""
    columns, lines = list[Texts](), array("Q")
    first = next(rows, None)
    if first is None:
        return columns, lines
    width, rows = len(first.cells), itertools.chain([first], rows)
    columns = [Texts() for _ in first.cells]
    while block := list(itertools.islice(rows, max(1, _BLOCK // width))):
        for number, row in enumerate(block, len(lines) + 1):
            if len(row.cells) != width:
                names = _without_last_name(names, width)
                if names is not None and len(names) != width:
                    number, row = 1, first
                raise _wrong_length(number, row, names, width, path)
        for column, cells in zip(columns, zip(*(row.cells for row in block), strict=True), strict=True):
            column.extend(cells)
        lines.extend(row.line for row in block)
    return columns, lines


def _without_last_name(names: list[str] | None, width: int) -> list[str] | None:
    """Removes an empty last name, because the header ends with a separator."""
    return names[:-1] if names is not None and len(names) == width + 1 and not names[-1] else names


def _wrong_length(number: int, row: Row, names: list[str] | None, width: int, path: Path) -> DataError:
    expected = width if names is None else len(names)
    what = f"row {number} (line {row.line}) has {len(row.cells)} cells, not {expected}"
    what += " as the header has" if names is not None else " as the first row has"
    return DataError(what, where=str(path), remedy="Correct the row, and quote cells that contain a separator.")


def _parse(lines: Iterator[str], path: Path) -> tuple[list[Row], Iterator[Row]]:
    """Returns comments at the top and all other rows, both split into cells."""
    skipped, first = list[str](), list[str]()
    for line in lines:
        if not line.startswith("#") and line.strip():
            first.append(line)
            break
        skipped.append(line)
    named = _NAMED_SEPARATOR.fullmatch(first[0].strip()) if first else None
    if named:  # as Excel writes it
        skipped.append(first.pop())
    first += itertools.islice(lines, _SAMPLED_LINES)
    separator = named[1] if named else _separator(first)
    comments = [
        Row(number, next(csv.reader([line.lstrip("# \t")], delimiter=separator)))
        for number, line in enumerate(skipped, 1)
        if line.startswith("#") and line.strip("# \t\r\n")
    ]
    return comments, _records(itertools.chain(first, lines), separator, len(skipped), path)


def _separator(lines: list[str]) -> str:
    for separator in _SEPARATORS:
        sample: list[list[str]] = []
        try:
            sample.extend(row for row in csv.reader(lines, delimiter=separator, strict=True) if row)
        except csv.Error:
            if len(lines) <= _SAMPLED_LINES:  # otherwise it may be a cell that the sample cuts
                continue
        if sample and len(sample[0]) > 1 and all(len(row) == len(sample[0]) for row in sample):
            return separator
    return ","


def _records(lines: Iterable[str], separator: str, before: int, path: Path) -> Iterator[Row]:
    csv.field_size_limit(_MOST_CELL)
    reader = csv.reader(lines, delimiter=separator, strict=True, skipinitialspace=separator != "\t")
    line = before + 1
    try:
        for cells in reader:
            if cells and (len(cells) > 1 or cells[0].strip()):
                yield Row(line, cells)
            line = before + reader.line_num + 1
    except csv.Error as error:
        remedy = "Close the quotes, and write quotes inside a cell twice."
        raise DataError(f"the row that begins at line {line} cannot be read, because {error}", where=str(path),
                        remedy=remedy) from None  # fmt: skip


def _header(
    comments: list[Row], rows: list[Row], known: Collection[str], header: bool | None, path: Path
) -> list[str] | None:
    """Returns the names of the columns, and removes them from the rows; None without a header."""
    names = [printable(cell) for cell in rows[0].cells]
    last = [printable(cell) for cell in comments[-1].cells] if comments else []
    if header is None and known and set(last) >= set(known):
        return last
    if header is None:
        header = _is_header(names, len(rows) > 1, known, path)
    if header:
        rows.pop(0)
        return names
    return last if len(last) == len(names) > 1 and _has_a_name(last) else None


def _is_header(names: list[str], more: bool, known: Collection[str], path: Path) -> bool:
    if (known and set(names) >= set(known)) or _has_a_name(names):
        return True
    numbers = names[1:] if names[0] == "" else names  # pandas leaves the name of its index empty
    counts = ([str(n + start) for n in range(len(numbers))] for start in (0, 1))
    if more and len(numbers) >= _LONG_COUNT and numbers in counts:
        raise DataError(
            f"the first row, {', '.join(numbers[:3])}..., may be a header or an example", where=str(path),
            remedy="Choose with --header or --no-header.",
        )  # fmt: skip
    return False


def _has_a_name(cells: list[str]) -> bool:
    """Returns whether a cell can only be a name."""
    return not all(
        is_missing(cell)
        or fits("number", [cell])
        or fits("date", [cell])
        or is_value(cell)
        or cell.lower() in ("true", "false", "inf")
        for cell in cells
    )
