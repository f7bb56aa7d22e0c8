"""Draws a cut network: who holds which part of it, and what the parties send each other."""

from __future__ import annotations

from collections.abc import Mapping

from fedpipe.learners.cut import BOTTOM, TOP
from fedpipe.reports.charts import COLOURS
from fedpipe.reports.drawing import SMALL_TEXT, Box, Drawing, Line, Words, shortened
from fedpipe.reports.story import Story
from fedpipe.reports.traffic import EXCHANGE, Traffic

_BOX, _GAP, _HEIGHT, _SPACE, _MARGIN = 190.0, 24.0, 62.0, 84.0, 16.0
_HEAD = 26.0
"""Lengths in pixels: width and height of a box, between boxes, between the rows of boxes, around all, of the title."""


def cut_picture(story: Story, traffic: Mapping[str, Mapping[str, Traffic]]) -> Drawing:
    """Draws the parts of a cut network: bottoms below, the top above, and between them the bytes of a round.

    Args:
        story: a run of split learning.
        traffic: `fedpipe.reports.traffic.traffic_of` it.
    """
    federation = story.plan.federation
    assert federation.split is not None
    label, parties = federation.split.label_party, federation.feature_parties
    rounds = max(1, sum(1 for record in story.records if record.round))
    width = 2 * _MARGIN + len(parties) * (_BOX + _GAP) - _GAP
    drawing = Drawing(
        width, _HEAD + 2 * _MARGIN + 2 * _HEIGHT + _SPACE,
        f"A network cut between {len(parties)} parties with features and {label}, who holds the labels",
    )  # fmt: skip
    drawing.add(Words(_MARGIN, _MARGIN + 4, "the cut network", bold=True))
    top = _MARGIN + _HEAD
    middle = (width - _BOX) / 2
    _draw_part(drawing, middle, top, label, f"labels, {TOP}()", COLOURS[1])
    low = top + _HEIGHT + _SPACE
    for number, name in enumerate(parties):
        left = _MARGIN + number * (_BOX + _GAP)
        _draw_part(drawing, left, low, name, f"features, {BOTTOM}({name!r})", COLOURS[0])
        start, end = left + _BOX / 2, middle + _BOX / 2
        drawing.add(Line([(start, low), (start, low - 20), (end, top + _HEIGHT + 20), (end, top + _HEIGHT)], width=1.5))
        if name != label and (sent := _sent(traffic, name)):
            text = f"up: {_bytes(sent / rounds)} a round"
            drawing.add(Words(start + 6, low - 8, text, SMALL_TEXT))
    if sent := _sent(traffic, label):
        text = f"down: {_bytes(sent / rounds)} a round"
        drawing.add(Words(middle + _BOX / 2 + 6, top + _HEIGHT + 14, text, SMALL_TEXT))
    return drawing


def _sent(traffic: Mapping[str, Mapping[str, Traffic]], party: str) -> int:
    """Returns the bytes that a party sent in all rounds; 0 if it noted none."""
    found = traffic.get(party, {}).get(EXCHANGE)
    return found.sent if found else 0


def _draw_part(drawing: Drawing, x: float, y: float, party: str, holds: str, colour: str) -> None:
    drawing.add(
        Box(x, y, _BOX, _HEIGHT, fill=colour, opacity=0.18),
        Box(x, y, _BOX, _HEIGHT, stroke=colour, stroke_width=1.5),
        Words(x + _BOX / 2, y + 26, shortened(party, 26), anchor="middle", bold=True),
        Words(x + _BOX / 2, y + 44, shortened(holds, 34), SMALL_TEXT, anchor="middle"),
    )


def _bytes(count: float) -> str:
    """Returns bytes as people read them.

    >>> _bytes(350), _bytes(16900), _bytes(2.5e6)
    ('350 B', '16.9 kB', '2.5 MB')
    """
    if count < 1000:
        return f"{count:.0f} B"
    return f"{count / 1e3:.1f} kB" if count < 1e6 else f"{count / 1e6:.1f} MB"
