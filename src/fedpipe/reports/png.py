"""Paints a drawing as a PNG file, for `fedpipe plot -o votes.png`."""

from __future__ import annotations

import io
from typing import Any

from fedpipe.reports.drawing import (
    CLEAR,
    INK,
    PAPER,
    Box,
    Drawing,
    Line,
    Mark,
    Pixels,
    Words,
    corners_of,
    strokes_of,
)  # fmt: skip

_FINER = 3
"""Pixels are drawn so many times finer, and averaged."""
_SCALE = 1.5
_COLOURS = {INK: "#1e293b", PAPER: "#ffffff"}


def painted(drawing: Drawing) -> bytes:
    """Returns the drawing on white paper."""
    from PIL import Image, ImageDraw

    factor = _FINER * _SCALE
    size = round(drawing.width * factor), round(drawing.height * factor)
    canvas = Image.new("RGB", size, "#ffffff")
    brush = ImageDraw.Draw(canvas)
    for shape in drawing.shapes:
        match shape:
            case Line():
                _paint_line(brush, shape, factor)
            case Box():
                _paint_box(canvas, brush, shape, factor)
            case Mark():
                _paint_mark(brush, shape, factor)
            case Words():
                _paint_words(canvas, brush, shape, factor)
            case Pixels():
                picture = Image.fromarray(shape.values).convert("RGB")
                picture = picture.resize(
                    (round(shape.width * factor), round(shape.height * factor)), Image.Resampling.NEAREST
                )
                canvas.paste(picture, (round(shape.x * factor), round(shape.y * factor)))
    small = canvas.resize((round(drawing.width * _SCALE), round(drawing.height * _SCALE)), Image.Resampling.BOX)
    file = io.BytesIO()
    small.save(file, "PNG")
    return file.getvalue()


def _mixed(colour: str, opacity: float) -> str:
    """Returns a colour as it looks on white paper."""
    colour = _COLOURS.get(colour, colour)
    parts = [int(colour[k : k + 2], 16) for k in (1, 3, 5)]
    return "#" + "".join(f"{round(255 + (part - 255) * opacity):02x}" for part in parts)


def _paint_line(brush: Any, line: Line, factor: float) -> None:
    points = [(x * factor, y * factor) for x, y in line.points]
    brush.line(points, fill=_mixed(line.colour, line.opacity), width=max(1, round(line.width * factor)), joint="curve")


def _paint_box(canvas: Any, brush: Any, box: Box, factor: float) -> None:
    corners = [box.x * factor, box.y * factor, (box.x + box.width) * factor, (box.y + box.height) * factor]
    fill = None if box.fill == CLEAR else _mixed(box.fill, box.opacity)
    stroke = None if box.stroke == CLEAR else _mixed(box.stroke, box.opacity)
    brush.rectangle(corners, fill=fill, outline=stroke, width=max(1, round(box.stroke_width * factor)))


def _paint_mark(brush: Any, mark: Mark, factor: float) -> None:
    colour, x, y, size = _mixed(mark.colour, 1), mark.x * factor, mark.y * factor, mark.size * factor
    if mark.kind in ("dot", "ring"):
        fill = colour if mark.kind == "dot" else "#ffffff"
        brush.ellipse([x - size, y - size, x + size, y + size], fill=fill, outline=colour, width=round(factor))
    elif mark.kind == "diamond":
        brush.polygon([(a * factor, b * factor) for a, b in corners_of(mark)], fill=colour)
    else:
        for stroke in strokes_of(mark):
            brush.line([(a * factor, b * factor) for a, b in stroke], fill=colour, width=round(2 * factor))


def _paint_words(canvas: Any, brush: Any, words: Words, factor: float) -> None:
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(words.size * factor)
    colour, x, y = _mixed(words.colour, 1), words.x * factor, words.y * factor
    anchor = {"start": "ls", "middle": "ms", "end": "rs"}[words.anchor]
    if not words.turned:
        brush.text((x, y), words.text, fill=colour, font=font, anchor=anchor)
        return
    length = round(brush.textlength(words.text, font=font)) + 2
    height = round(words.size * factor * 1.4)
    mask = Image.new("L", (length, height), 0)
    ImageDraw.Draw(mask).text((0, round(words.size * factor)), words.text, fill=255, font=font, anchor="ls")
    mask = mask.rotate(90, expand=True)
    lift = {"start": length, "middle": length / 2, "end": 0}[words.anchor]
    canvas.paste(colour, (round(x - words.size * factor), round(y - length + (length - lift))), mask)
