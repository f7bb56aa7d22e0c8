"""Tests drawings: valid SVG, the same shapes as PNG, ranges and ticks of charts."""

from __future__ import annotations

import io
import math
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fedpipe.reports.charts import Range, heat_map, lanes, line_chart, range_of, stacked_bars, ticks_of
from fedpipe.reports.drawing import (
    INK,
    Box,
    Drawing,
    Line,
    Mark,
    Pixels,
    Words,
    escaped,
    png_of,
    shortened,
    width_of,
)  # fmt: skip
from fedpipe.reports.png import painted

EVIL = "</title><script>alert('x')</script>\x00\x1b[31m\ud800 &"
SVG = "{http://www.w3.org/2000/svg}"


def everything() -> Drawing:
    drawing = Drawing(200, 100, EVIL)
    drawing.add(
        Line([(0, 0), (100, 50), (200, 0)], "#ff0000", 2, 0.5, True), Box(10, 10, 50, 20, "#00ff00", INK, 2, 0.5, EVIL),
        *(Mark(20.0 * k, 60, kind, "#0000ff", 4, EVIL) for k, kind in enumerate(("dot", "cross", "diamond", "ring", "tick"))),
        Words(100, 80, EVIL, anchor="middle", bold=True), Words(10, 90, "upwards", turned=True),
        Pixels(150, 10, 40, 40, np.arange(16, dtype=np.uint8).reshape(4, 4) * 16),
    )  # fmt: skip
    return drawing


def test_svg_is_valid_and_text_from_outside_is_text() -> None:
    root = ElementTree.fromstring(everything().svg())
    names = {element.tag.removeprefix(SVG) for element in root.iter()}
    assert names == {"svg", "title", "polyline", "rect", "circle", "path", "polygon", "text", "image"}
    assert root.get("aria-label") == "</title><script>alert('x')</script>[31m &"
    assert "<script" not in everything().svg()


def test_png_has_the_same_shapes() -> None:
    image = Image.open(io.BytesIO(painted(everything()))).convert("RGB")
    assert image.size == (300, 150)
    colours = {image.getpixel((x, y)) for x in range(300) for y in range(150)}
    assert (127, 255, 127) in colours or (128, 255, 128) in colours  # the box, half transparent on white
    assert any(r < 60 and g < 60 and b > 200 for r, g, b in colours)  # the marks
    assert image.getpixel((298, 148)) == (255, 255, 255)


@pytest.mark.parametrize("shape", [(3, 5), (3, 5, 3)])
def test_pixels_come_back_from_their_png(shape: tuple[int, ...]) -> None:
    values = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(png_of(values)))), values)


@given(st.floats(-1e12, 1e12), st.floats(-1e12, 1e12), st.integers(2, 12))
def test_ticks_are_round_few_and_inside(one: float, other: float, most: int) -> None:
    axis = range_of([one, other])
    assert axis.low < axis.high
    ticks = ticks_of(axis, most)
    assert len(ticks) <= most + 1
    assert ticks == sorted(ticks)
    slack = 1e-6 * (axis.high - axis.low)
    assert all(axis.low - slack <= tick <= axis.high + slack for tick in ticks)


@given(st.floats(1e-9, 1e9), st.floats(11, 1e9))
def test_ticks_of_a_logarithmic_axis(low: float, factor: float) -> None:
    axis = range_of([low, low * factor], logarithmic=True)
    assert axis.logarithmic
    assert 0 < len(ticks_of(axis)) <= 16
    assert axis.at(low) == pytest.approx(1 - axis.at(low * factor), abs=1e-9)


def test_ranges_without_numbers() -> None:
    assert range_of([]).low < 0 < 1 < range_of([]).high
    assert range_of([math.nan, math.inf, 3.0, 3.0]).low < 3 < range_of([3.0]).high
    assert Range(0, 0).at(0) == 0


def texts(drawing: Drawing) -> list[str]:
    return [element.text or "" for element in ElementTree.fromstring(drawing.svg()).iter()]


def test_many_curves_become_a_crowd_with_their_mean() -> None:
    few = line_chart({f"l{k}": [(0, k), (1, k + 1)] for k in range(3)}, title="t", y="loss")
    many = line_chart({f"l{k}": [(0, k), (1, k + 1)] for k in range(30)}, title="t", y="loss")
    assert {"l0", "l1", "l2"} <= set(texts(few))
    assert {"each of 30", "their mean"} <= set(texts(many))
    assert "l2 ends at 3" in few.alt


@pytest.mark.parametrize("curves", [{}, {"a": []}, {"a": [(1, math.nan)]}, {"a": [(1, 2.0)]}])
def test_empty_curves(curves: dict[str, list[tuple[float, float]]]) -> None:
    assert "loss" in texts(line_chart(curves, title="t", y="loss"))


@pytest.mark.parametrize(
    "form", ["a tumour of the kind {} (skin)", "{} a tumour of the skin, of any kind", "a tumour " * 4 + "{}"]
)
def test_long_names_that_differ_look_different(form: str) -> None:
    names = [form.format(number) for number in range(10)]
    drawn = heat_map([[1] * 10] * 10, names, names, title="m", texts=True)
    words = [shape.text for shape in drawn.shapes if isinstance(shape, Words) and not shape.bold and shape.text != "1"]
    assert len(set(words[:10])) == 10  # columns
    assert all(len(word) <= 22 for word in words)


def test_a_heat_map_of_named_and_unnamed_rows() -> None:
    named = heat_map([[1, 0], [2, 3]], [EVIL, "b"], [EVIL, "b"], title="m", texts=True, x="x", y="y")
    assert {"1", "2", "3", "x", "y", "b"} <= set(texts(named))
    assert "0" not in texts(named)
    assert heat_map([[0.0] * 60] * 60, (), (), title="m", texts=False).width < 600


def test_bars_and_lanes_name_their_parts() -> None:
    bars = stacked_bars({"a": {"x": 3}, "b": {"x": 1, "y": 2}}, title="t", x="examples", parts=["x", "y"])
    assert {"a", "b", "x", "y", "b, y: 2"} <= set(texts(bars))
    assert "a, train: 0.50 s" in texts(lanes({"a": [("train", 0.0, 0.5)], "b": []}, title="t", x="seconds"))


@given(st.text())
def test_any_text_is_xml(text: str) -> None:
    ElementTree.fromstring(f"<a b='{escaped(text)}'>{escaped(text)}</a>")
    assert len(shortened(text, 10)) <= 10
    assert width_of(text) >= 0
