"""Recognises how a column writes numbers and dates: with decimal commas, or with the day or the month first.

    style_of("number", ["61,5", "1.234,5"])         "decimal comma"
    style_of("number", ["1,234"])                   "": it may be 1.234 or 1234
    style_of("date", ["31.12.2024", "1.2.2024"])    "day first"
    style_of("date", ["01/02/2024"])                "": it may be in January or in February

A style is taken if all cells of the column agree, and one of them allows no other reading. Dates with dots have the day
first in all countries that use them (Unicode CLDR 45, numeric dates). With slashes and hyphens a day above 12 decides.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

from fedpipe.data.schema import Kind, Style

_DECIMAL = re.compile(r"[+-]?(\d+|\d{1,3}(\.\d{3})+),\d+([eE][+-]?\d+)?")
_WHOLE = re.compile(r"[+-]?\d+")
_GROUPS = re.compile(r"[+-]?[1-9]\d{0,2}(\.\d{3})+")
"""Thousands with points, or with one point a number with three decimals."""
_THOUSANDS = re.compile(r"[+-]?[1-9]\d{0,2},\d{3}")
"""A number with three decimals, or in English thousands."""
_DAY = re.compile(r"(\d{1,2})([./-])(\d{1,2})\2(\d{4})([T ].*)?")


def style_of(kind: Kind, cells: Iterable[Any], known: Style = "") -> Style:
    """Returns the style of a column, empty if it has none or several are possible.

    Args:
        kind: of the column.
        cells: those that are not missing.
        known: the style of the same column elsewhere, which decides where several are possible.
    """
    texts = (cell.strip() if isinstance(cell, str) else None for cell in cells)
    if kind == "number":
        return _number_style(texts, known)
    return _date_style(texts, known) if kind == "date" else ""


def _number_style(texts: Iterator[str | None], known: Style) -> Style:
    proven, grouped, groups = known == "decimal comma", False, False
    for text in texts:
        if text is None or _WHOLE.fullmatch(text):
            continue
        if found := _DECIMAL.fullmatch(text):
            proven = proven or not _THOUSANDS.fullmatch(text)
            groups = groups or bool(found[2])
        elif _GROUPS.fullmatch(text):
            grouped, groups = True, groups or text.count(".") > 1
        else:
            return ""
    return "decimal comma" if proven and (groups or not grouped) else ""


def _date_style(texts: Iterator[str | None], known: Style) -> Style:
    separators, firsts, seconds = set(), 0, 0
    for text in texts:
        if text is None:
            continue
        found = _DAY.fullmatch(text)
        if found is None:
            return ""
        separators.add(found[2])
        firsts, seconds = max(firsts, int(found[1])), max(seconds, int(found[3]))
    if len(separators) != 1:
        return ""
    possible: list[Style] = []
    if seconds <= 12:
        possible.append("day first")
    if firsts <= 12 and separators != {"."}:
        possible.append("month first")
    return possible[0] if len(possible) == 1 else known if known in possible else ""


def plain(style: Style, text: str) -> str:
    """Returns a number with a decimal point, or a date as YYYY-MM-DD.

    >>> plain("decimal comma", "1.234,5"), plain("day first", "1.2.2024"), plain("month first", "1/2/2024 10:30")
    ('1234.5', '2024-02-01', '2024-01-02 10:30')
    """
    if style == "decimal comma":
        return text.replace(".", "").replace(",", ".")
    found = _DAY.fullmatch(text)
    if found is None:
        return text
    day, month = (found[1], found[3]) if style == "day first" else (found[3], found[1])
    return f"{found[4]}-{int(month):02}-{int(day):02}{found[5] or ''}"


def is_value(text: str) -> bool:
    """Returns whether a text is a number or date that can only be read together with the rest of its column."""
    return any(pattern.fullmatch(text) for pattern in (_DECIMAL, _DAY))


def doubtful(cells: Iterable[Any]) -> str:
    """Returns a number such as 1.234 that may have thousands, in a column that has decimal commas elsewhere.

    Empty if there is none, or if another number has decimals with a point.
    """
    found = ""
    for text in (cell.strip() for cell in cells if isinstance(cell, str)):
        if "." in text and not _GROUPS.fullmatch(text):
            return ""
        found = found or (text if "." in text else "")
    return found


def remedy_of(text: str) -> str:
    """Returns the remedy for a date that may have the day or the month first; empty for other texts."""
    if _DAY.fullmatch(text):
        return "Write dates as YYYY-MM-DD: this column does not show whether the day or the month is first."
    return ""
