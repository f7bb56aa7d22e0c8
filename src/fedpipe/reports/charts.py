"""Draws charts from numbers: lines, bars, heat maps and lanes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from fedpipe.reports.drawing import (
    INK,
    LARGE_TEXT,
    SMALL_TEXT,
    TEXT,
    Box,
    Drawing,
    Line,
    Mark,
    Words,
    shortened,
    shortened_apart,
    width_of,
)  # fmt: skip

COLOURS = (
    "#3b82f6", "#ef4444", "#10a37f", "#e08a0b", "#8b5cf6", "#0ea5c4", "#db2777", "#65a30d", "#8a8178", "#4f63c8",
)  # fmt: skip
"""Readable on white and on nearly black."""
GREY = "#8593a6"
_FAINT = 0.18
_DARK = 0.65
"""The share of a heat map's colour from which white words are easier to read on it than dark ones."""


class Range(NamedTuple):
    """The range of an axis."""

    low: float
    high: float
    logarithmic: bool = False

    def at(self, value: float) -> float:
        """Returns the position of a value, from 0 to 1."""
        if self.logarithmic:
            low, high, value = math.log10(self.low), math.log10(self.high), math.log10(max(value, self.low))
        else:
            low, high = self.low, self.high
        return (value - low) / (high - low or 1)


def range_of(values: Iterable[float], *, margin: float = 0.04, logarithmic: bool = False) -> Range:
    """Returns a range that holds all finite values, with a margin."""
    found = [value for value in values if math.isfinite(value)] or [0.0, 1.0]
    low, high = min(found), max(found)
    if logarithmic and low > 0 and high > 10 * low:
        return Range(low / 1.15, high * 1.15, True)
    span = high - low or abs(high) * 0.1 or 1.0
    return Range(low - margin * span, high + margin * span)


def ticks_of(axis: Range, most: int = 6) -> list[float]:
    """Returns round numbers inside a range.

    >>> ticks_of(Range(0.0, 1.0))
    [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    """
    if axis.logarithmic:
        powers = range(math.floor(math.log10(axis.low)), math.ceil(math.log10(axis.high)) + 1)
        found = [step * 10.0**power for power in powers for step in (1, 2, 5)]
        inside = [value for value in found if axis.low <= value <= axis.high]
        return inside[:: max(1, -(-len(inside) // (most + 2)))]
    rough = (axis.high - axis.low) / most
    power = 10.0 ** math.floor(math.log10(rough)) if rough > 0 else 1.0
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    first = math.ceil(axis.low / step - 1e-9)
    values = [(first + k) * step for k in range(most * 2) if (first + k) * step <= axis.high + step * 1e-9]
    return [float(f"{value:.12g}") for value in values]


class Axes:
    """A plot area with axes, on a drawing of its own.

    Args:
        title: above the plot, and the beginning of the picture's description.
        x: range of the horizontal axis.
        y: range of the vertical axis.
        x_label: below.
        y_label: at the left.
        size: width and height of the whole picture.
        keys: names and colours of a legend, in rows above the plot.
        alt: continues the description.
        whole: only whole numbers on the horizontal axis.
        left: width of the space before the plot; 0: as the numbers of the vertical axis need it.
        named_rows: leaves out the numbers of the vertical axis, for rows with names.
    """

    def __init__(
        self, title: str, x: Range, y: Range, *, x_label: str = "", y_label: str = "",
        size: tuple[float, float] = (480, 300), keys: Sequence[tuple[str, str]] = (), alt: str = "",
        whole: bool = False, left: float = 0.0, named_rows: bool = False,
    ) -> None:  # fmt: skip
        width, height = size
        rows = legend_rows(keys, width - 20)
        numbers = max((width_of(f"{value:g}", SMALL_TEXT) for value in ticks_of(y)), default=0.0)
        self.left, self.top = left or 32 + numbers, 34.0 + 16 * len(rows) + (4 if rows else 0)
        self.right, self.bottom = width - 14, height + 16 * len(rows) - 38
        self._x, self._y = x, y
        self.drawing = Drawing(width, height + 16 * len(rows), f"{title}. {alt}".strip())
        self.drawing.add(Words(10, 18, shortened(title, 70), LARGE_TEXT, bold=True))
        draw_legend(self.drawing, rows, 10, 38)
        self._draw_axes(x_label, y_label, whole=whole, named_rows=named_rows)

    def _draw_axes(self, x_label: str, y_label: str, *, whole: bool, named_rows: bool) -> None:
        for value in () if named_rows else ticks_of(self._y):
            _, y = self.at(self._x.low, value)
            self.drawing.add(Line([(self.left, y), (self.right, y)], INK, 1, _FAINT))
            self.drawing.add(Words(self.left - 6, y + 3.5, f"{value:g}", SMALL_TEXT, "end"))
        for value in ticks_of(self._x, 8):
            if whole and value != int(value):
                continue
            x, _ = self.at(value, self._y.low)
            self.drawing.add(Line([(x, self.bottom), (x, self.bottom + 4)], INK, 1, 0.5))
            self.drawing.add(Words(x, self.bottom + 16, f"{value:g}", SMALL_TEXT, "middle"))
        self.drawing.add(Line([(self.left, self.bottom), (self.right, self.bottom)], INK, 1, 0.5))
        if x_label:
            self.drawing.add(Words((self.left + self.right) / 2, self.bottom + 31, x_label, TEXT, "middle"))
        if y_label:
            middle = (self.top + self.bottom) / 2
            self.drawing.add(Words(13, middle, shortened(y_label, 40), TEXT, "middle", turned=True))

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Returns the place of a point in pixels."""
        return (
            self.left + self._x.at(x) * (self.right - self.left),
            self.bottom - self._y.at(y) * (self.bottom - self.top),
        )

    def line(
        self, points: Sequence[tuple[float, float]], colour: str, *, width: float = 1.8, opacity: float = 1.0,
        dots: bool = False, dashed: bool = False,
    ) -> None:  # fmt: skip
        """Draws a line through points."""
        places = [self.at(x, y) for x, y in points if math.isfinite(y)]
        if len(places) > 1:
            self.drawing.add(Line(places, colour, width, opacity, dashed))
        if dots:
            self.drawing.add(*(Mark(x, y, "dot", colour, 2.4) for x, y in places))

    def bar(self, left: float, right: float, height: float, colour: str, hint: str = "") -> None:
        """Draws a bar from the bottom."""
        (x, y), (end, bottom) = self.at(left, height), self.at(right, max(0.0, self._y.low))
        self.drawing.add(Box(x, y, max(0.5, end - x - 0.6), max(0.0, bottom - y), colour, hint=hint))


def legend_rows(keys: Sequence[tuple[str, str]], width: float) -> list[list[tuple[str, str]]]:
    """Breaks a legend into rows."""
    rows: list[list[tuple[str, str]]] = []
    used = width
    for name, colour in keys:
        name = shortened(name, 44)
        need = width_of(name) + 28
        if used + need > width:
            rows.append([])
            used = 0.0
        rows[-1].append((name, colour))
        used += need
    return rows


def draw_legend(drawing: Drawing, rows: Sequence[Sequence[tuple[str, str]]], x: float, y: float) -> None:
    """Draws rows of coloured squares and names."""
    for row in rows:
        at = x
        for name, colour in row:
            drawing.add(Box(at, y - 9, 10, 10, colour), Words(at + 15, y, name))
            at += width_of(name) + 28
        y += 16


Curves = Mapping[str, Sequence[tuple[float, float]]]


def line_chart(curves: Curves, *, title: str, y: str, x: str = "round") -> Drawing:
    """Draws curves of points by name; more than there are colours become grey lines and their mean."""
    points = [point for line in curves.values() for point in line]
    crowd = len(curves) > len(COLOURS)
    keys = [(f"each of {len(curves)}", GREY), ("their mean", COLOURS[0])] if crowd else _keys(list(curves))
    ends = "; ".join(f"{name} ends at {line[-1][1]:.4g}" for name, line in list(curves.items())[:10] if line)
    axes = Axes(
        title, range_of((a for a, _ in points), margin=0.02), range_of(b for _, b in points), x_label=x, y_label=y,
        keys=keys, alt=f"{y} by {x}: {ends}", whole=x == "round",
    )  # fmt: skip
    for position, line in enumerate(curves.values()):
        if crowd:
            axes.line(line, GREY, width=0.8, opacity=0.45)
        else:
            axes.line(line, COLOURS[position], dots=len(line) <= 40)
    if crowd:
        values: dict[float, list[float]] = {}
        for a, b in points:
            values.setdefault(a, []).append(b)
        axes.line([(a, sum(bs) / len(bs)) for a, bs in sorted(values.items())], COLOURS[0], width=2.4)
    return axes.drawing


def _keys(names: Sequence[str]) -> list[tuple[str, str]]:
    return [(name, COLOURS[k % len(COLOURS)]) for k, name in enumerate(names)]


def stacked_bars(
    rows: Mapping[str, Mapping[str, int]], *, title: str, x: str, parts: Sequence[str], alt: str = ""
) -> Drawing:
    """Draws a bar for each row, of coloured parts in this order."""
    keys = _keys(parts) if len(parts) <= 20 else []
    left = min(200.0, 24 + max((width_of(shortened(name)) for name in rows), default=0))
    most = max((sum(row.values()) for row in rows.values()), default=1) or 1
    axes = Axes(
        title, Range(0, most * 1.02), Range(0, len(rows)), x_label=x, keys=keys, alt=alt,
        size=(480, 80 + 22 * len(rows)), left=left, named_rows=True,
    )  # fmt: skip
    for position, (name, row) in enumerate(rows.items()):
        _, y = axes.at(0, len(rows) - position)
        height = (axes.bottom - axes.top) / len(rows)
        axes.drawing.add(Words(left - 6, y + height / 2 + 4, shortened(name), TEXT, "end"))
        start = 0
        for k, part in enumerate(parts):
            if count := row.get(part, 0):
                (x0, _), (x1, _) = axes.at(start, 0), axes.at(start + count, 0)
                hint = f"{name}, {part}: {count}"
                axes.drawing.add(Box(x0, y + 2, max(0.5, x1 - x0), height - 4, COLOURS[k % len(COLOURS)], hint=hint))
                start += count
    return axes.drawing


def heat_map(
    values: Sequence[Sequence[float | None]], rows: Sequence[str], columns: Sequence[str], *, title: str, texts: bool,
    tone: str = "#2563eb", low: float = 0.0, high: float = 0.0, x: str = "", y: str = "",
    form: str = "{:g}", alt: str = "",
) -> Drawing:  # fmt: skip
    """Draws a table of numbers as shades of one colour.

    Args:
        values: (rows, columns); nothing is drawn where there is none.
        rows: names of the rows; none are written if there are none.
        columns: names of the columns.
        title: above.
        texts: writes the numbers too.
        tone: colour of the highest number.
        low: the number with the least colour.
        high: the number with the full colour; 0: the largest.
        x: meaning of the columns.
        y: meaning of the rows.
        form: of a number.
        alt: continues the description.
    """
    top = high or max((value for row in values for value in row if value is not None), default=1) or 1
    named, rows_named = shortened_apart(columns, 18), shortened_apart(rows, 22)
    slanted = any(width_of(name, SMALL_TEXT) > 30 for name in named)
    cell = max(34.0 if texts else 6.0, min(34.0, 440 / max(1, len(values[0]))))
    left = 30 + max((width_of(name, TEXT) for name in rows_named), default=0)
    above = 34.0 + (
        max((width_of(name, SMALL_TEXT) for name in named), default=0) + 8 if slanted else 20 if named else 0
    )
    width, height = left + cell * len(values[0]) + 14, above + cell * len(values) + (24 if x else 10)
    drawing = Drawing(max(width, 60 + width_of(title, LARGE_TEXT)), height, f"{title}. {alt}".strip())
    drawing.add(Words(10, 18, title, LARGE_TEXT, bold=True))
    for j, name in enumerate(named):
        middle = left + (j + 0.5) * cell
        anchor = ("start", "middle")[not slanted]
        drawing.add(Words(middle + (4 if slanted else 0), above - 5, name, SMALL_TEXT, anchor, turned=slanted))  # type: ignore[arg-type]
    for i, row in enumerate(values):
        if rows:
            drawing.add(Words(left - 6, above + (i + 0.5) * cell + 4, rows_named[i], TEXT, "end"))
        for j, value in enumerate(row):
            if value is None:
                continue
            share = max(0.0, min(1.0, (value - low) / ((top - low) or 1)))
            place = (left + j * cell, above + i * cell)
            hint = f"{rows[i] if rows else i}, {columns[j] if columns else j}: {form.format(value)}"
            drawing.add(Box(*place, cell - 1, cell - 1, tone, opacity=0.06 + 0.94 * share, hint=hint))
            if texts and value:
                colour = "#ffffff" if share > _DARK else INK
                text = form.format(value)
                size = (
                    SMALL_TEXT if width_of(text, SMALL_TEXT) < cell else SMALL_TEXT * cell / width_of(text, SMALL_TEXT)
                )
                drawing.add(Words(place[0] + cell / 2, place[1] + cell / 2 + 4, text, size, "middle", colour))
    if x:
        drawing.add(Words(left + cell * len(values[0]) / 2, height - 6, x, TEXT, "middle"))
    if y:
        drawing.add(Words(13, above + cell * len(values) / 2, y, TEXT, "middle", turned=True))
    return drawing


def lanes(spans: Mapping[str, Sequence[tuple[str, float, float]]], *, title: str, x: str, alt: str = "") -> Drawing:
    """Draws spans of time in lanes: (kind, start, end) by lane."""
    kinds = list(dict.fromkeys(kind for lane in spans.values() for kind, _, _ in lane))
    colours = dict(_keys(kinds))
    end = max((last for lane in spans.values() for _, _, last in lane), default=1.0)
    left = min(200.0, 24 + max((width_of(shortened(name), SMALL_TEXT) for name in spans), default=0))
    axes = Axes(
        title, Range(0, end * 1.01 or 1), Range(0, len(spans)), x_label=x, keys=_keys(kinds), alt=alt,
        size=(700, 80 + 18 * len(spans)), left=left, named_rows=True,
    )  # fmt: skip
    height = (axes.bottom - axes.top) / max(1, len(spans))
    for position, (name, lane) in enumerate(spans.items()):
        y = axes.top + position * height
        axes.drawing.add(Words(left - 6, y + height / 2 + 3.5, shortened(name), SMALL_TEXT, "end"))
        for kind, start, last in lane:
            (x0, _), (x1, _) = axes.at(start, 0), axes.at(last, 0)
            hint = f"{name}, {kind}: {last - start:.2f} s"
            axes.drawing.add(Box(x0, y + 2, max(0.8, x1 - x0), height - 4, colours[kind], hint=hint))
    return axes.drawing
