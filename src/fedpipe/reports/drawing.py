"""Draws simple shapes as SVG, which needs no library: lines, boxes, marks, words and pictures of pixels.

Colours named INK and PAPER follow the page, so that a picture is readable on a dark one too.
"""

from __future__ import annotations

import base64
import html
import re
import struct
import unicodedata
import zlib
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

INK, PAPER, CLEAR = "ink", "paper", "none"
SMALL_TEXT, TEXT, LARGE_TEXT = 10.0, 11.0, 13.0
_SVG_COLOURS = {INK: "currentColor", PAPER: "var(--paper, #fff)"}
_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")

Point = tuple[float, float]


class Line(NamedTuple):
    """A line through points."""

    points: Sequence[Point]
    colour: str = INK
    width: float = 1.0
    opacity: float = 1.0
    dashed: bool = False


class Box(NamedTuple):
    """A rectangle, with a text that a browser shows at the pointer."""

    x: float
    y: float
    width: float
    height: float
    fill: str = CLEAR
    stroke: str = CLEAR
    stroke_width: float = 1.0
    opacity: float = 1.0
    hint: str = ""


class Mark(NamedTuple):
    """A small sign at a point."""

    x: float
    y: float
    kind: Literal["dot", "cross", "diamond", "ring", "tick"] = "dot"
    colour: str = INK
    size: float = 3.0
    hint: str = ""


class Words(NamedTuple):
    """A text; `turned` writes upwards."""

    x: float
    y: float
    text: str
    size: float = TEXT
    anchor: Literal["start", "middle", "end"] = "start"
    colour: str = INK
    bold: bool = False
    turned: bool = False


class Pixels(NamedTuple):
    """A picture of pixels from 0 to 255, (height, width) or (height, width, 3), without smoothing."""

    x: float
    y: float
    width: float
    height: float
    values: npt.NDArray[np.uint8]


Shape = Line | Box | Mark | Words | Pixels


class Drawing:
    """Shapes on a canvas.

    Args:
        width: in pixels.
        height: in pixels.
        alt: describes the picture to those who do not see it.
    """

    def __init__(self, width: float, height: float, alt: str) -> None:
        self.width, self.height, self.alt = width, height, alt
        self.shapes: list[Shape] = []

    def add(self, *shapes: Shape) -> None:
        """Draws shapes above the earlier ones."""
        self.shapes += shapes

    def svg(self) -> str:
        """Returns an SVG element; equal drawings give equal text."""
        alt = escaped(self.alt)
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_n(self.width)} {_n(self.height)}" '
            f'width="{_n(self.width)}" height="{_n(self.height)}" role="img" aria-label="{alt}" '
            'font-family="system-ui, sans-serif"><title>' + alt + "</title>"
        )
        return head + "".join(map(_svg_of, self.shapes)) + "</svg>"


def escaped(text: str) -> str:
    """Returns text from outside as XML: escaped, without characters that XML forbids.

    >>> escaped("<b>\\0 & 'c'")
    '&lt;b&gt; &amp; &#x27;c&#x27;'
    """
    return html.escape(_NOT_XML.sub("", text))


def shortened(text: str, most: int = 28) -> str:
    """Returns a text of at most so many characters, on one line."""
    text = " ".join(text.split())
    return text if len(text) <= most else text[: most - 1] + "…"


def shortened_apart(names: Sequence[str], most: int) -> list[str]:
    """Returns names of at most so many characters, cut at the end, or at the beginning if more of them differ then.

    >>> shortened_apart(["a tumour of kind 1 (skin)", "a tumour of kind 2 (skin)"], 14)
    ['…nd 1 (skin)', '…nd 2 (skin)']
    """
    names = [" ".join(name.split()) for name in names]
    differs = next((k for k, letters in enumerate(zip(*names, strict=False)) if len(set(letters)) > 1), 0)
    start = max(0, differs - 3)
    ways = (
        names,
        [f"…{name[start:]}" for name in names],
        [name if len(name) <= most else f"…{name[1 - most :]}" for name in names],
    )
    found = [[shortened(name, most) for name in way] for way in ways]
    return max(found, key=lambda way: len(set(way)))


def width_of(text: str, size: float = TEXT) -> float:
    """Estimates the width of a text in pixels."""
    return size * sum(1.0 if unicodedata.east_asian_width(c) in "WF" else 0.58 for c in text)


def _n(value: float) -> str:
    """Returns a number with at most two digits after the point."""
    text = f"{value:.2f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


def _colour(name: str) -> str:
    return _SVG_COLOURS.get(name, name)


def _svg_of(shape: Shape) -> str:
    match shape:
        case Line():
            return _svg_of_line(shape)
        case Box():
            more = (
                ""
                if shape.stroke == CLEAR
                else f' stroke="{_colour(shape.stroke)}" stroke-width="{_n(shape.stroke_width)}"'
            )
            faint = "" if shape.opacity == 1 else f' opacity="{_n(shape.opacity)}"'
            head = f'<rect x="{_n(shape.x)}" y="{_n(shape.y)}" width="{_n(shape.width)}" height="{_n(shape.height)}" '
            return _hinted(f'{head}fill="{_colour(shape.fill)}"{more}{faint}', "rect", shape.hint)
        case Mark():
            return _svg_of_mark(shape)
        case Words():
            x, y = _n(shape.x), _n(shape.y)
            turned = f' transform="rotate(-90 {x} {y})"' if shape.turned else ""
            anchor = "" if shape.anchor == "start" else f' text-anchor="{shape.anchor}"'
            bold = ' font-weight="600"' if shape.bold else ""
            return (
                f'<text x="{x}" y="{y}" font-size="{_n(shape.size)}" fill="{_colour(shape.colour)}"'
                f"{anchor}{bold}{turned}>{escaped(shape.text)}</text>"
            )
        case Pixels():
            return (
                f'<image x="{_n(shape.x)}" y="{_n(shape.y)}" width="{_n(shape.width)}" height="{_n(shape.height)}" '
                'preserveAspectRatio="none" style="image-rendering:pixelated" href="data:image/png;base64,'
                f'{base64.b64encode(png_of(shape.values)).decode()}"/>'
            )


def _svg_of_line(line: Line) -> str:
    points = " ".join(f"{_n(x)},{_n(y)}" for x, y in line.points)
    faint = "" if line.opacity == 1 else f' opacity="{_n(line.opacity)}"'
    dashes = ' stroke-dasharray="4 3"' if line.dashed else ""
    return (
        f'<polyline points="{points}" fill="none" stroke="{_colour(line.colour)}" stroke-width="{_n(line.width)}" '
        f'stroke-linejoin="round"{faint}{dashes}/>'
    )


def _svg_of_mark(mark: Mark) -> str:
    colour, x, y, size = _colour(mark.colour), mark.x, mark.y, mark.size
    if mark.kind in ("dot", "ring"):
        look = f'fill="{colour}"' if mark.kind == "dot" else f'fill="{_colour(PAPER)}" stroke="{colour}"'
        return _hinted(f'<circle cx="{_n(x)}" cy="{_n(y)}" r="{_n(size)}" {look}', "circle", mark.hint)
    if mark.kind == "diamond":
        points = " ".join(f"{_n(a)},{_n(b)}" for a, b in corners_of(mark))
        return _hinted(f'<polygon points="{points}" fill="{colour}"', "polygon", mark.hint)
    path = " ".join(
        f"M{_n(a)} {_n(b)}" + "".join(f"L{_n(c)} {_n(d)}" for c, d in more) for (a, b), *more in strokes_of(mark)
    )
    return _hinted(f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="2"', "path", mark.hint)


def corners_of(mark: Mark) -> list[Point]:
    """Returns the corners of a diamond."""
    x, y, size = mark.x, mark.y, mark.size * 1.2
    return [(x, y - size), (x + size, y), (x, y + size), (x - size, y)]


def strokes_of(mark: Mark) -> list[list[Point]]:
    """Returns the strokes of a cross or a tick."""
    x, y, s = mark.x, mark.y, mark.size
    if mark.kind == "tick":
        return [[(x - s, y), (x - s / 3, y + s * 0.7), (x + s, y - s)]]
    return [[(x - s, y - s), (x + s, y + s)], [(x - s, y + s), (x + s, y - s)]]


def _hinted(element: str, name: str, hint: str) -> str:
    return f"{element}><title>{escaped(hint)}</title></{name}>" if hint else f"{element}/>"


def png_of(values: npt.NDArray[Any]) -> bytes:
    """Returns pixels from 0 to 255, (height, width) or (height, width, 3), as a PNG file.

    Source: Portable Network Graphics (PNG) Specification, third edition, W3C.
    """
    height, width = values.shape[:2]
    rows = np.ascontiguousarray(values, np.uint8).reshape(height, -1)
    raw = np.concatenate([np.zeros((height, 1), np.uint8), rows], axis=1).tobytes()  # a filter byte, 0, before each row
    header = struct.pack(">2I5B", width, height, 8, 2 if values.ndim == 3 else 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(raw, 6)), (b"IEND", b""))
    body = b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body
