"""Parses the cells of tables: the one place that says what a number, a boolean, a date or a missing cell looks like.

    parse_cells("number", ["63", "", "7.5"], where="d.csv", column="age")   array([63., nan, 7.5])
    parse_cells("boolean", ["yes", "0", "NA"], ...)                         array([1., 0., nan])
    parse_cells("date", ["1970-01-03", None], ...)                          array([2., nan]), days since 1970-01-01
    parse_cells("category", ["f", " m ", "?"], ...)                         array(["f", "m", ""], dtype=object)
    fits("number", ["63", "abc"])                                           False

Cells are texts as in CSV, or values as in Parquet, JSON and NumPy: None, bool, int, float, Decimal, date, datetime.
Training, `fedpipe predict` and the server parse with these functions, so a cell means the same everywhere.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fedpipe.data.schema import NUMERIC, Kind, Style
from fedpipe.data.styles import doubtful, plain, remedy_of, style_of
from fedpipe.errors import DataError

Array = npt.NDArray[Any]
MISSING = frozenset(
    {"", "NA", "N/A", "n/a", "#N/A", "<NA>", "NaN", "nan", "NAN", "-nan", "NaT", "null", "NULL", "Null", "None", "?"}
)
"""Texts that stand for a missing cell, apart from spaces around them."""

_BOOLEANS = {
    **dict.fromkeys(("true", "t", "yes", "y", "1", "1.0"), 1.0),
    **dict.fromkeys(("false", "f", "no", "n", "0", "0.0"), 0.0),
}
_DAY = re.compile(r"(\d{4})-(\d\d)-(\d\d)")
_TIME = re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d(\.\d+)?)?( ?(Z|[+-]\d\d:?\d\d))?")
_WHOLE = re.compile(r"([+-]?\d+)\.0+")
_DAY_SECONDS = 86400


def parse_cells(
    kind: Kind, cells: Iterable[Any], *, where: str, column: str = "", lines: Sequence[int] | None = None,
    fixed: bool = False, style: Style = "",
) -> Array:  # fmt: skip
    """Parses a column; see `read_cells`. Raises DataError."""
    return read_cells(kind, cells, where=where, column=column, lines=lines, fixed=fixed, style=style).values


class Cells(NamedTuple):
    """Holds parsed cells, and the style in which they were written."""

    values: Array
    style: Style = ""


def read_cells(
    kind: Kind, cells: Iterable[Any], *, where: str, column: str = "", lines: Sequence[int] | None = None,
    fixed: bool = False, style: Style = "",
) -> Cells:  # fmt: skip
    """Parses a column, also one with decimal commas, or with dates whose day or month is first.

    Args:
        kind: how its cells are read.
        cells: texts or values.
        where: the file or request, for messages.
        column: the column's name, for messages.
        lines: the line of each cell in its file, for messages.
        fixed: whether a model fixes the kind, so that the remedy cannot be to declare another.
        style: that of the same column in the training, which decides where cells can be read in several ways.

    Returns:
        float64 with NaN for a missing cell, or for categories and texts strings with "" for one; and the style.

    Raises:
        DataError: a cell is not of that kind; the message names the column and the first such row.
    """
    if kind == "number" and isinstance(cells, np.ndarray) and cells.dtype.kind in "iuf" and not np.isinf(cells).any():
        return Cells(cells.astype(np.float64))
    cells = cells if isinstance(cells, Sequence | np.ndarray) else list(cells)
    parse = _PARSERS[kind]
    try:
        if kind == "number" and style == "decimal comma" and (text := doubtful(cells)):
            what = f"{_shown(text)} may have thousands or decimals: the training had decimal commas"
            raise DataError(what, where=f"{where}: {f'column {column!r}' if column else ''}", remedy=_POINT)
        try:
            return Cells(_parsed(kind, parse, cells))
        except _CellError:
            found = style_of(kind, (cell for cell in cells if not is_missing(cell)), style)
            if not found:
                raise
            parse = functools.partial(_styled, parse, found)
            return Cells(_parsed(kind, parse, cells), found)
    except _CellError as error:
        place = place_of(where, column, _first_bad(parse, cells), lines)
        remedy = (
            f"Correct the cell: the model takes a {kind} here." if fixed and "eclare" in error.remedy else error.remedy
        )
        raise DataError(str(error), where=place, remedy=remedy) from None


def _parsed(kind: Kind, parse: Callable[[Any], Any], cells: Sequence[Any] | Array) -> Array:
    if kind == "number":
        return np.fromiter(map(parse, cells), np.float64, len(cells))
    parsed: dict[str, Any] = {}

    def once(cell: Any) -> Any:
        """Parses equal texts once, and returns the same string for them."""
        if type(cell) is not str or len(cell) > _LONG:
            return parse(cell)
        value = parsed.get(cell)
        if value is None:
            value = parse(cell)
            if len(parsed) < _MOST_KEPT:
                parsed[cell] = value
        return value

    return np.fromiter(map(once, cells), np.float64 if kind in NUMERIC else object, len(cells))


_LONG, _MOST_KEPT = 100, 10_000
"""Longest text that is parsed once, and most such texts."""


def _first_bad(parse: Callable[[Any], Any], cells: Sequence[Any] | Array) -> int:
    """Returns the first cell that cannot be parsed."""
    for row, cell in enumerate(cells):
        try:
            parse(cell)
        except _CellError:
            return row
    return 0


def _styled(parse: Callable[[Any], Any], style: Style, cell: Any) -> Any:
    """Parses a cell that is written in a style."""
    if not isinstance(cell, str) or is_missing(cell):
        return parse(cell)
    text = plain(style, cell.strip())
    try:
        return parse(text)
    except _CellError as error:
        raise _CellError(str(error).replace(_shown(text), _shown(cell)), error.remedy) from None


def place_of(where: str, column: str, row: int, lines: Sequence[int] | None = None) -> str:
    """Names a cell in messages; rows count from 0 here, and from 1 for people."""
    line = f" (line {lines[row]})" if lines is not None else ""
    return f"{where}: {f'column {column!r}, ' if column else ''}row {row + 1}{line}"


def fits(kind: Kind, cells: Iterable[Any]) -> bool:
    """Returns whether all cells are of a kind, or missing."""
    try:
        parse_cells(kind, cells, where="")
    except DataError:
        return False
    return True


def is_missing(cell: Any) -> bool:
    """Returns whether a text or value stands for a missing cell."""
    if isinstance(cell, str):
        return cell.strip() in MISSING
    if isinstance(cell, Decimal):
        return cell.is_nan()
    if type(cell).__name__ in ("NAType", "NaTType"):  # of pandas
        return True
    return cell is None or (isinstance(cell, float | np.generic) and bool(cell != cell))  # NaN and NaT


def printable(text: str) -> str:
    """Returns a name or category without spaces at its ends; line breaks and spaces of other kinds become spaces."""
    if text.isprintable():
        return text.strip()
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())


def as_strings(texts: Sequence[str]) -> Array:
    """Returns an array of dtype object that holds strings."""
    strings = np.empty(len(texts), object)
    strings[:] = texts
    return strings


class _CellError(ValueError):
    """Says why one cell cannot be parsed; `parse_cells` adds the place."""

    def __init__(self, what: str, remedy: str) -> None:
        super().__init__(what)
        self.remedy = remedy


def _plain(cell: Any) -> Any:
    """Turns NumPy's scalars, and bytes, into Python's values."""
    if isinstance(cell, bytes):
        try:
            return cell.decode()
        except UnicodeDecodeError:
            raise _CellError(f"{cell[:20]!r} is not text in UTF-8", "Encode texts in UTF-8.") from None
    if isinstance(cell, np.datetime64):
        return cell.astype("datetime64[us]").item()
    return cell.item() if isinstance(cell, np.generic) else cell


def _number(cell: Any) -> float:
    if type(cell) is str and cell.isascii() and "_" not in cell:  # the common case first
        try:
            number = float(cell)
        except ValueError:
            pass
        else:
            return number if math.isfinite(number) else _not_finite(cell)
    cell = _plain(cell)
    if is_missing(cell):
        return math.nan
    if isinstance(cell, bool | int | float | Decimal):
        try:
            number = float(cell)
        except OverflowError:
            number = math.inf
        return number if math.isfinite(number) else _not_finite(cell)
    if isinstance(cell, str):
        raise _CellError(f"{_shown(cell)} is not a number", _number_remedy(cell.strip()))
    raise _CellError(
        f"{_shown(cell)} has the type {type(cell).__name__}, not a number", "Convert the column to numbers."
    )


def _not_finite(cell: Any) -> float:
    if is_missing(cell):
        return math.nan
    infinite = "inf" in cell.lower() if isinstance(cell, str) else not isinstance(cell, int)
    what = "is infinite" if infinite else "is too large for a number"
    raise _CellError(f"{_shown(cell)} {what}", "Correct the cell, or leave it empty if its value is missing.")


_POINT = "Write thousands without a separator, and decimals with a point."


def _number_remedy(text: str) -> str:
    if re.fullmatch(r"[+-]?\d{1,3}(,\d{3})+(\.\d+)?", text) or re.fullmatch(
        r"[+-]?\d{1,3}([ '\u00a0\u2009]\d{3})+", text
    ):
        return _POINT
    if re.fullmatch(r"[+-]?[\d.]*,\d+([eE][+-]?\d+)?", text):
        return "Write decimals with a point, and thousands without a separator."
    if text.endswith("%"):
        return "Write a share without the sign %."
    if text.lower() in _BOOLEANS:
        return "Declare the column as boolean."
    if _DAY.match(text):
        return "Declare the column as date."
    if re.match(r"[+-]?\d+(\.\d+)? ?[^\d\s]+$", text):
        return "Write the number without a unit."
    return "Correct the cell, leave it empty if its value is missing, or declare the column as category."


def _boolean(cell: Any) -> float:
    cell = _plain(cell)
    if is_missing(cell):
        return math.nan
    if isinstance(cell, str):
        value = _BOOLEANS.get(cell.strip().lower())
    else:
        value = float(cell) if isinstance(cell, bool | int | float | Decimal) and cell in (0, 1) else None
    if value is None:
        raise _CellError(f"{_shown(cell)} is not a boolean", "Use true and false, yes and no, or 1 and 0.")
    return value


def _date(cell: Any) -> float:
    cell = _plain(cell)
    if is_missing(cell):
        return math.nan
    if isinstance(cell, str):
        cell = _moment(cell.strip())
    if isinstance(cell, datetime):
        utc = cell.replace(tzinfo=UTC) if cell.tzinfo is None else cell
        return (utc - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds() / _DAY_SECONDS
    if isinstance(cell, date):
        return float((cell - date(1970, 1, 1)).days)
    raise _CellError(f"{_shown(cell)} has the type {type(cell).__name__}, not a date", _DATE_REMEDY)


_DATE_REMEDY = "Write dates as YYYY-MM-DD, for example 2024-01-31."


def _moment(text: str) -> date | datetime:
    try:
        if _DAY.fullmatch(text):
            return date.fromisoformat(text)
        if _TIME.fullmatch(text):
            return datetime.fromisoformat(text.replace(" ", "T", 1).replace(" ", ""))
    except ValueError as error:
        raise _CellError(f"{_shown(text)} is not a date, because {error}", "Correct the date.") from None
    raise _CellError(f"{_shown(text)} is not a date", remedy_of(text) or _DATE_REMEDY)


def _category(cell: Any) -> str:
    """Returns the text of a category; 2.0 and "2.0" count as "2", since a missing cell turns whole codes to floats."""
    text = printable(_text(cell))
    whole = _WHOLE.fullmatch(text)
    return whole[1] if whole else text


def _text(cell: Any) -> str:
    cell = _plain(cell)
    if is_missing(cell):
        return ""
    if isinstance(cell, str):
        return cell
    if isinstance(cell, date):  # and datetime
        return cell.isoformat()
    if isinstance(cell, bool | int | float | Decimal):
        return str(cell)
    raise _CellError(f"{_shown(cell)} has the type {type(cell).__name__}, not text", "Convert the column to text.")


def _shown(cell: Any) -> str:
    """Returns a cell as a message shows it."""
    try:
        text = repr(cell)
    except ValueError:  # Python refuses to write an integer of thousands of digits
        return f"a value of type {type(cell).__name__}"
    return text if len(text) <= 50 else f"{text[:50]}..."


_PARSERS: dict[Kind, Callable[[Any], Any]] = {
    "number": _number, "boolean": _boolean, "date": _date, "category": _category, "text": _text,
}  # fmt: skip
