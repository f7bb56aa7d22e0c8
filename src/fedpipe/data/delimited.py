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
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple

from fedpipe.data.cells import fits, is_missing, printable
from fedpipe.errors import DataError

_SEPARATORS = ("\t", ";", "|")
_LONG_COUNT = 10
"""Numbers of a first row that count up like the names of pixels; fewer are an example."""
_MOST_CELL = 2**24
_SAMPLED_LINES = 50
_NAMED_SEPARATOR = re.compile(r"sep=([,;|\t])")
_MARKS = {codecs.BOM_UTF8: "utf-8", codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be"}


class Row(NamedTuple):
    """Holds a row: its cells, and the line in the file at which it begins."""

    line: int
    cells: list[str]


class Rows(NamedTuple):
    """Holds a CSV file: names of the columns, None without a header, and rows of equal length."""

    header: list[str] | None
    rows: list[Row]


def read_rows(path: Path, *, known: Collection[str] = (), header: bool | None = None) -> Rows:
    """Reads a CSV file.

    Args:
        path: the file.
        known: names of columns that a header would have.
        header: whether the first row is the header; None: decide by its cells.

    Raises:
        DataError: it is not text, has no rows, or rows differ in length; the message names the line.
    """
    comments, rows = _parse(_text(path), path)
    if not rows:
        raise DataError("the table is empty", where=str(path), remedy="Check the path, or how the file was written.")
    names = _header(comments, rows, known, header, path)
    rows = _without_trailing_separators(names, rows)
    if names is not None and len(names) == len(rows[0].cells if rows else names) + 1 and not names[-1]:
        names.pop()
    if not rows:
        what = f"the table has a header, {', '.join(names or ())[:100]}, but no rows"
        raise DataError(what, where=str(path), remedy="Add rows below the header.")
    _check_lengths(names, rows, path)
    return Rows(names, rows)


def _text(path: Path) -> str:
    data = path.read_bytes()
    mark = next((mark for mark in _MARKS if data.startswith(mark)), b"")
    encoding = _MARKS.get(mark, "utf-8")
    body = data[len(mark) :]
    try:
        text = body.decode(encoding)
    except UnicodeDecodeError as error:
        line = body[: error.start].decode(encoding, "replace").count("\n") + 1
        raise DataError(
            f"line {line} is not text in {encoding.upper()}, because of the byte 0x{body[error.start]:02x}",
            where=str(path),
            remedy="Save the file as UTF-8, for example with: iconv -f LATIN1 -t UTF-8 OLD > NEW.",
        ) from None
    if "\0" in text:
        what = f"line {text[: text.index(chr(0))].count(chr(10)) + 1} contains a zero byte, so the file is not a table"
        raise DataError(what, where=str(path), remedy="Save the file as CSV in UTF-8.")
    return text


def _parse(text: str, path: Path) -> tuple[list[Row], list[Row]]:
    """Returns comments at the top and all other rows, both split into cells."""
    lines = io.StringIO(text, newline="").readlines()
    skipped = list(itertools.takewhile(lambda line: line.startswith("#") or not line.strip(), lines))
    named = _NAMED_SEPARATOR.fullmatch(lines[len(skipped)].strip()) if len(skipped) < len(lines) else None
    if named:  # as Excel writes it
        skipped.append(lines[len(skipped)])
    separator = named[1] if named else _separator(lines[len(skipped) :])
    comments = [
        Row(number, next(csv.reader([line.lstrip("# \t")], delimiter=separator)))
        for number, line in enumerate(skipped, 1)
        if line.startswith("#") and line.strip("# \t\r\n")
    ]
    return comments, list(_records(lines[len(skipped) :], separator, len(skipped), path))


def _separator(lines: list[str]) -> str:
    for separator in _SEPARATORS:
        try:
            sample = [row for row in csv.reader(lines[:_SAMPLED_LINES], delimiter=separator, strict=True) if row]
        except csv.Error:
            continue
        if sample and len(sample[0]) > 1 and all(len(row) == len(sample[0]) for row in sample):
            return separator
    return ","


def _records(lines: list[str], separator: str, before: int, path: Path) -> Iterator[Row]:
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
        is_missing(cell) or fits("number", [cell]) or fits("date", [cell]) or cell.lower() in ("true", "false", "inf")
        for cell in cells
    )


def _without_trailing_separators(names: list[str] | None, rows: list[Row]) -> list[Row]:
    """Removes an empty last cell that every row has, because its line ends with a separator."""
    if not rows or not all(len(row.cells) > 1 and not row.cells[-1].strip() for row in rows):
        return rows
    lengths = {len(row.cells) for row in rows}
    named = names is not None and len(names) in lengths and names[-1]
    return rows if named or len(lengths) > 1 else [Row(row.line, row.cells[:-1]) for row in rows]


def _check_lengths(names: list[str] | None, rows: list[Row], path: Path) -> None:
    expected = len(names) if names is not None else len(rows[0].cells)
    for number, row in enumerate(rows, 1):
        if len(row.cells) != expected:
            what = f"row {number} (line {row.line}) has {len(row.cells)} cells, not {expected}"
            what += " as the header has" if names is not None else " as the first row has"
            raise DataError(what, where=str(path), remedy="Correct the row, and quote cells that contain a separator.")
