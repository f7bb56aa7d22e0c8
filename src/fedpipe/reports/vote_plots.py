"""Draws pictures of a run with votes: the shared model's scores, with the ballots of each round."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from fedpipe.reports.charts import COLOURS, Axes, Range, legend_rows, range_of
from fedpipe.reports.drawing import INK, SMALL_TEXT, TEXT, Box, Drawing, Mark, Words, shortened, width_of
from fedpipe.reports.story import Story, decision, global_metrics, shared_scores


class _Sign(NamedTuple):
    kind: Literal["dot", "cross", "diamond", "ring", "tick"]
    colour: str
    size: float


_MARKS = {
    "yes": _Sign("dot", "#16a34a", 4),
    "no": _Sign("cross", "#dc2626", 3.5),
    "void": _Sign("diamond", "#8a8a8a", 3.5),
    "absent": _Sign("ring", "#737373", 4),
}
_CELLS = {"yes": "#22c55e", "no": "#f06a6a", "void": "#a3a3a3"}
_MEAN = "mean, weighted by examples"


def metrics_of(story: Story) -> list[str]:
    """Returns the criterion, and then each other metric that the learners tested."""
    vote = story.plan.federation.vote
    assert vote is not None
    tested = [n for scores in shared_scores(story) for s in scores.values() if s.test for n in s.test.metrics]
    return list(dict.fromkeys([vote.criterion, *tested]))


def vote_drawing(story: Story, metric: str) -> Drawing:
    """Draws test scores per learner, and their mean, over the rounds, with the ballots on them and in a table below.

    Args:
        story: a run with votes, finished or not.
        metric: the criterion, or another compiled metric.
    """
    rounds, learners = [r.round for r in story.records], [item.name for item in story.plan.federation.learners]
    decisions = {record.round: decision(story, record) for record in story.records}
    points = _points(story, metric, learners)
    means = {r.round: m[metric] for r in story.records if metric in (m := global_metrics(story, r.round))}
    names = [*(learners if len(learners) <= len(COLOURS) else ()), _MEAN]
    keys = [(name, INK if name == _MEAN else COLOURS[k]) for k, name in enumerate(names)]
    width = min(1100.0, max(560.0, 140 + 22.0 * len(rounds)))
    left = max(60.0, 24 + max(width_of(shortened(name), SMALL_TEXT) for name in learners))
    values = [*means.values(), *(y for line in points.values() for y in line.values())]
    orders = min(values, default=0.0) > 0 and max(values) > 1  # a loss may fall by orders of magnitude
    rejected = sum(1 for number, decided in decisions.items() if number and not decided["accepted"])
    axes = Axes(
        f"{metric} of the shared model on each learner's test part", Range(-0.6, max(rounds) + 0.6),
        range_of(values, logarithmic=orders), x_label="round", y_label=metric, size=(width, 330),
        keys=keys, whole=True, left=left,
        alt=f"{len(rounds) - 1} rounds of {len(learners)} learners, {rejected} rejected",
    )  # fmt: skip
    _shade_rejected(axes, decisions)
    for k, name in enumerate(learners):
        axes.line(list(points[name].items()), COLOURS[k % len(COLOURS)], width=1.2, opacity=0.85)
    axes.line(list(means.items()), INK, width=2.6)
    _mark_ballots(axes, points, means, decisions)
    _add_table(axes, learners, decisions)
    return axes.drawing


def _points(story: Story, metric: str, learners: Sequence[str]) -> dict[str, dict[int, float]]:
    by_round = shared_scores(story)
    return {
        name: {
            number: s.test.metrics[metric]
            for number, scores in enumerate(by_round)
            if (s := scores.get(name)) and s.test and metric in s.test.metrics
        }
        for name in learners
    }


def _shade_rejected(axes: Axes, decisions: dict[int, dict[str, Any]]) -> None:
    for number, decided in decisions.items():
        if number and not decided["accepted"]:
            (x0, _), (x1, _) = axes.at(number - 0.5, 0), axes.at(number + 0.5, 0)
            hint = f"round {number} was rejected"
            axes.drawing.add(Box(x0, axes.top, x1 - x0, axes.bottom - axes.top, "#dc2626", opacity=0.08, hint=hint))


def _mark_ballots(
    axes: Axes, points: dict[str, dict[int, float]], means: dict[int, float], decisions: dict[int, dict[str, Any]]
) -> None:
    for number, decided in decisions.items():
        for name, voter in decided["learners"].items():
            sign = _MARKS.get(voter["ballot"])
            value = points[name].get(number, means.get(number)) if name in points else None
            if sign and value is not None:
                x, y = axes.at(number, value)
                hint = f"{name}, round {number}: {voter['ballot']}, {value:.4g}"
                axes.drawing.add(Mark(x, y, sign.kind, sign.colour, sign.size, hint))


def _add_table(axes: Axes, learners: Sequence[str], decisions: dict[int, dict[str, Any]]) -> None:
    """Draws a cell per learner and round, with a frame around the proposer's, and a sign below each column."""
    drawing, row = axes.drawing, 16.0
    top = drawing.height + 4
    width = min(30.0, axes.at(1, 0)[0] - axes.at(0, 0)[0])
    for position, name in enumerate(learners):
        y = top + position * row
        drawing.add(Words(axes.left - 6, y + 11, shortened(name), SMALL_TEXT, "end"))
        for number, decided in decisions.items():
            x, kind = axes.at(number, 0)[0], decided["learners"][name]["ballot"]
            proposed = decided["proposer"] == name
            fill, opacity = _CELLS.get(kind, INK), 0.75 if kind in _CELLS else 0.05
            hint = f"{name}, round {number}: {kind}{', proposer' if proposed else ''}"
            drawing.add(Box(x - width * 0.45, y + 1, width * 0.9, row - 2, fill, opacity=opacity, hint=hint))
            if proposed:
                drawing.add(Box(x - width * 0.45, y + 1, width * 0.9, row - 2, stroke=INK, stroke_width=1.8))
            if kind == "absent":
                drawing.add(Words(x, y + 12, "–", TEXT, "middle"))
    below = top + len(learners) * row
    for number, decided in decisions.items():
        if number:
            place = (axes.at(number, 0)[0], below + 9)
            sign = _Sign("tick", "#16a34a", 4) if decided["accepted"] else _Sign("cross", "#dc2626", 4)
            drawing.add(Mark(*place, sign.kind, sign.colour, sign.size))
    drawing.height = below + 22
    _explain(drawing)


def _explain(drawing: Drawing) -> None:
    """Draws the key of signs and cells."""
    texts = {"yes": "yes", "no": "no", "void": "void, not counted", "absent": "absent"}
    keys = [*((texts[kind], kind) for kind in _MARKS), ("frame: proposer; below: accepted or rejected", "")]
    for row in legend_rows(keys, drawing.width - 20):
        x, y = 16.0, drawing.height + 6
        for name, kind in row:
            if sign := _MARKS.get(kind):
                drawing.add(Mark(x, y - 4, sign.kind, sign.colour, sign.size))
            drawing.add(Words(x + (11 if kind else -6), y, name, SMALL_TEXT))
            x += width_of(name) + 28
        drawing.height += 18


def vote_pictures(story: Story) -> list[Drawing]:
    """Draws one picture per metric, the criterion's first."""
    return [vote_drawing(story, metric) for metric in metrics_of(story)]
