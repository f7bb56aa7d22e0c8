"""Renders an exploration: as a page with pictures, as a table for the UI, and as lines for the terminal."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from fedpipe.data.exploration import (
    FAR,
    Exploration,
    View,
    advice,
    column_views,
    distances,
    distances_from_all,
    heterogeneity,
)
from fedpipe.data.statistics import QUANTILES, Numbers
from fedpipe.reports.plots import COLOURS, figure_of, svg

MOST_PICTURED = 24
"""Most learners in pictures; tables show all."""
_MOST_CLASSES = 20
_MOST_COLUMNS = 40
_BLOCKS = " ▁▂▃▄▅▆▇█"


def render_html(exploration: Exploration) -> str:
    """Renders the page."""
    from jinja2 import Environment, PackageLoader

    environment = Environment(loader=PackageLoader("fedpipe"), autoescape=True, trim_blocks=True)
    classes = exploration.classes
    return environment.get_template("explore.html").render(
        e=exploration,
        rows=table(exploration),
        labels=_label_bars(exploration) if classes else "",
        distances=_distance_map(exploration) if classes else "",
        heterogeneity=heterogeneity(exploration) if classes else None,
        advice=advice(heterogeneity(exploration)) if classes else "",
        samples=_gallery(exploration, lambda view: view.samples),
        means=_gallery(exploration, lambda view: view.means),
        columns=_column_map(exploration),
        tables=column_rows(exploration),
        far=FAR,
        pictured=min(MOST_PICTURED, len(exploration.views)),
    )


def render_markdown(exploration: Exploration) -> str:
    """Renders the table in Markdown, for the UI."""
    rows = table(exploration)
    head = list(rows[0]) if rows else ["learner"]
    lines = ["| " + " | ".join(head) + " |", "| " + " | ".join("---" for _ in head) + " |"]
    lines += ["| " + " | ".join(row.values()) + " |" for row in rows]
    if exploration.classes:
        value = heterogeneity(exploration)
        lines += ["", f"Heterogeneity of labels {value:.3f} (Jensen-Shannon distance to all): {advice(value)}."]
    lines += ["", *(f"- {name} was left out: {why}" for name, why in exploration.left_out.items())]
    return "\n".join(lines).rstrip() + "\n"


def render_json(exploration: Exploration) -> str:
    """Renders the same numbers for programs."""
    columns = {
        view.summary.name: {
            "kind": view.summary.kind,
            "all": _numbers_of(view.summary.numbers, view.summary.missing, view.summary.categories)
            | ({"quantiles": dict(zip(map(str, QUANTILES), view.summary.quantiles, strict=False))}),
            "learners": {
                name: _numbers_of(own.numbers, own.missing, own.categories) | {"distance": view.distances[name]}
                for name, own in view.learners.items()
            },
        }
        for view in column_views(exploration)
    }
    learners = {
        view.learner: {"parts": view.parts, "labels": view.labels, "features": view.features._asdict()}
        for view in exploration.views
    }
    value = heterogeneity(exploration) if exploration.classes else None
    content = {
        "federation": exploration.federation, "learners": learners, "left_out": exploration.left_out,
        "heterogeneity": value, "columns": columns,
    }  # fmt: skip
    return json.dumps(content, indent=2) + "\n"


def _numbers_of(numbers: Numbers | None, missing: int, categories: Mapping[str, int]) -> dict[str, Any]:
    found: dict[str, Any] = {"missing": missing}
    if numbers is not None:
        found |= {name: getattr(numbers, name) for name in ("count", "mean", "deviation", "minimum", "maximum")}
    return found | ({"categories": dict(categories)} if categories else {})


class ColumnRow(NamedTuple):
    """A row of the page's table of columns: texts, and for each learner its text and its distance from all."""

    name: str
    kind: str
    missing: str
    values: str
    quantiles: str
    learners: dict[str, tuple[str, float]]


def column_rows(exploration: Exploration) -> list[ColumnRow]:
    """Returns a row of texts per column of a table, for at most MOST_PICTURED learners."""
    reports = {view.learner: view.report for view in exploration.views if view.report and not view.report.why}
    total = sum(report.examples for report in reports.values())
    found = []
    for view in column_views(exploration):
        shown = {
            name: (_values(own.numbers, own.categories), view.distances[name])
            for name, own in list(view.learners.items())[:MOST_PICTURED]
        }
        summary = view.summary
        quantiles = ", ".join(f"{value:.4g}" for value in summary.quantiles)
        share = f"{100 * summary.missing / total:.1f} %" if summary.missing else ""
        values = _values(summary.numbers, summary.categories)
        found.append(ColumnRow(summary.name, summary.kind, share, values, quantiles, shown))
    return found


def _values(numbers: Numbers | None, categories: Mapping[str, int]) -> str:
    if numbers is not None:
        return f"{numbers.mean:.4g} ± {numbers.deviation:.3g} ({numbers.minimum:.4g} to {numbers.maximum:.4g})"
    total = sum(categories.values())
    frequent = sorted(categories.items(), key=lambda item: (-item[1], item[0]))[:5]
    return ", ".join(f"{name} {100 * count / total:.0f} %" for name, count in frequent)


def table(exploration: Exploration) -> list[dict[str, str]]:
    """Returns a row of texts per learner."""
    values = distances_from_all(exploration).tolist() if exploration.classes else []
    return [_row(view, f"{values[k]:.3f}" if values else "") for k, view in enumerate(exploration.views)]


def _row(view: View, distance: str) -> dict[str, str]:
    low, high, mean, deviation = view.features
    parts = ", ".join(f"{count} {part}" for part, count in view.parts.items())
    return {
        "learner": view.learner,
        "examples": f"{view.examples} ({parts})" if len(view.parts) > 1 else str(view.examples),
        **({"classes": str(len(view.labels)), "distance of labels": distance} if distance else {}),
        "features": f"{low:.4g} to {high:.4g}, mean {mean:.4g}, deviation {deviation:.4g}",
    }


def _label_bars(exploration: Exploration) -> str:
    """Draws one small histogram per learner, all to the same scale, for at most MOST_PICTURED learners."""
    views, classes = exploration.views[:MOST_PICTURED], exploration.classes
    across = min(4, len(views))
    down = -(-len(views) // across)
    figure = figure_of(2.6 * across, 1.7 * down)
    grid = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False)
    for axes in grid.flat[len(views) :]:
        axes.set_axis_off()
    for axes, view in zip(grid.flat, views, strict=False):
        colours = [COLOURS[k % len(COLOURS)] for k in range(len(classes))]
        axes.bar(range(len(classes)), [view.labels.get(label, 0) for label in classes], color=colours)
        axes.set_title(f"{view.learner} ({view.examples})", fontsize=8)
        if len(classes) <= _MOST_CLASSES:
            axes.set_xticks(range(len(classes)), classes, fontsize=7)
    return svg(figure)


def _distance_map(exploration: Exploration) -> str:
    matrix, names = distances(exploration), [view.learner for view in exploration.views]
    side = 1.8 + 0.42 * min(len(names), MOST_PICTURED)
    figure = figure_of(side + 1.2, side)
    axes = figure.subplots()
    picture = axes.imshow(matrix, cmap="Oranges", vmin=0, vmax=1)
    if len(names) <= MOST_PICTURED:
        axes.set_xticks(range(len(names)), names, rotation=45, ha="right", fontsize=7)
        axes.set_yticks(range(len(names)), names, fontsize=7)
        for i, row in enumerate(matrix):
            for j, value in enumerate(row):
                colour = "white" if value > 0.6 else "#1e293b"
                axes.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=7, color=colour)
    axes.set_title("Jensen-Shannon distance of labels")
    figure.colorbar(picture, ax=axes, shrink=0.8)
    return svg(figure)


def _gallery(exploration: Exploration, of: Callable[[View], Mapping[str, Any]]) -> str:
    """Draws a row of pictures per learner, one of each class, in one axes: a hundred axes would take seconds."""
    views = [view for view in exploration.views if of(view)][:MOST_PICTURED]
    classes = exploration.classes[:_MOST_CLASSES]
    if not views or not classes:
        return ""
    shapes = {picture.shape for view in views for picture in of(view).values()}
    if len(shapes) > 1:
        return ""
    height, width, *depth = shapes.pop()
    low = min(view.features.minimum for view in views)
    span = max(view.features.maximum for view in views) - low or 1.0
    gap = max(1, height // 8)
    mosaic = np.ones((len(views) * (height + gap), len(classes) * (width + gap), *depth))
    for row, view in enumerate(views):
        for column, label in enumerate(classes):
            if (picture := of(view).get(label)) is not None:
                scaled = (picture - low) / span
                y, x = row * (height + gap), column * (width + gap)
                mosaic[y : y + height, x : x + width] = scaled if depth else 1 - scaled
    figure = figure_of(1.3 + 0.55 * len(classes), 0.4 + 0.55 * len(views) * height / width)
    axes = figure.subplots()
    axes.imshow(mosaic, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, labelsize=8, labeltop=True, labelbottom=False)
    axes.set_xticks([k * (width + gap) + width / 2 for k in range(len(classes))], classes)
    axes.set_yticks([k * (height + gap) + height / 2 for k in range(len(views))], [view.learner for view in views])
    return svg(figure)


def _column_map(exploration: Exploration) -> str:
    """Draws how far each learner's mean of each feature is from the mean over learners, in their deviations."""
    views = [view for view in exploration.views if view.columns.size]
    if len(views) < 2 or len({view.columns.size for view in views}) > 1:
        return ""
    means = np.array([view.columns[:_MOST_COLUMNS] for view in views])
    spread = means.std(axis=0)
    scaled = (means - means.mean(axis=0)) / np.where(spread > 0, spread, 1)
    figure = figure_of(2 + 0.22 * means.shape[1], 1.2 + 0.25 * min(len(views), MOST_PICTURED))
    axes = figure.subplots()
    picture = axes.imshow(scaled, cmap="RdBu", vmin=-3, vmax=3, aspect="auto")
    if len(views) <= MOST_PICTURED:
        axes.set_yticks(range(len(views)), [view.learner for view in views], fontsize=7)
    axes.set(title="mean of each feature, compared with the other learners", xlabel="feature")
    figure.colorbar(picture, ax=axes, shrink=0.8)
    return svg(figure)


def label_line(exploration: Exploration, view: View) -> str:
    """Draws a learner's label counts as blocks, to the same scale for all learners."""
    top = max(count for one in exploration.views for count in one.labels.values())
    return "".join(_BLOCKS[-(-8 * view.labels.get(label, 0) // top)] for label in exploration.classes[:_MOST_COLUMNS])
