"""Renders an exploration: as a page with pictures, as a table for the UI, and as lines for the terminal."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import date, timedelta
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
from fedpipe.data.schema import Kind
from fedpipe.data.statistics import QUANTILES, Numbers
from fedpipe.reports.charts import heat_map, stacked_bars
from fedpipe.reports.drawing import LARGE_TEXT, SMALL_TEXT, TEXT, Drawing, Pixels, Words, shortened, width_of

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
        samples=_gallery(exploration, lambda view: view.samples, "first example"),
        means=_gallery(exploration, lambda view: view.means, "mean picture"),
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
            "styles": view.summary.styles,
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
            name: (_values(view.summary.kind, own.numbers, own.categories), view.distances[name])
            for name, own in list(view.learners.items())[:MOST_PICTURED]
        }
        summary = view.summary
        quantiles = ", ".join(_shown(summary.kind, v) for v in summary.quantiles if summary.kind != "boolean")
        share = f"{100 * summary.missing / total:.1f} %" if summary.missing else ""
        values = _values(summary.kind, summary.numbers, summary.categories)
        kind = ", ".join((summary.kind, *summary.styles))
        found.append(ColumnRow(summary.name, kind, share, values, quantiles, shown))
    return found


def _values(kind: Kind, numbers: Numbers | None, categories: Mapping[str, int]) -> str:
    if numbers is not None and kind == "boolean":
        return f"{100 * numbers.mean:.1f} % true"
    if numbers is not None:
        low, high = _shown(kind, numbers.minimum), _shown(kind, numbers.maximum)
        days = " days" if kind == "date" else ""
        return f"{_shown(kind, numbers.mean)} ± {numbers.deviation:.3g}{days} ({low} to {high})"
    total = sum(categories.values())
    frequent = sorted(categories.items(), key=lambda item: (-item[1], item[0]))[:5]
    return ", ".join(f"{name} {100 * count / total:.0f} %" for name, count in frequent)


def _shown(kind: Kind, value: float) -> str:
    """Returns a number of a column as a person reads it; a date counts days since 1970-01-01."""
    if kind != "date":
        return f"{value:.4g}"
    try:
        return str(date(1970, 1, 1) + timedelta(days=round(value)))
    except OverflowError:
        return f"{value:.0f} days"


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
        **({} if view.report else {"features": f"{low:.4g} to {high:.4g}, mean {mean:.4g}, deviation {deviation:.4g}"}),
    }  # numbers over all columns of a table mean nothing


def _label_bars(exploration: Exploration) -> str:
    """Draws the labels of each learner as coloured parts of a bar, for at most MOST_PICTURED learners."""
    views = exploration.views[:MOST_PICTURED]
    rows = {f"{view.learner} ({view.examples})": view.labels for view in views}
    alt = f"{len(exploration.classes)} labels at {len(views)} learners"
    return stacked_bars(rows, title="labels of each learner", x="examples", parts=exploration.classes, alt=alt).svg()


def _distance_map(exploration: Exploration) -> str:
    matrix, names = distances(exploration), [view.learner for view in exploration.views]
    few = len(names) <= MOST_PICTURED
    return heat_map(
        matrix.tolist(), names if few else (), names if few else (), title="Jensen-Shannon distance of labels",
        texts=few, tone="#c2570c", high=1.0, form="{:.2f}", alt=f"the largest is {matrix.max():.2f}",
    ).svg()  # fmt: skip


def _gallery(exploration: Exploration, of: Callable[[View], Mapping[str, Any]], title: str) -> str:
    """Draws a row of pictures per learner, one of each class, as one picture of pixels."""
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
    side = max(24.0, min(44.0, 900 / len(classes)))
    left = 24 + max(width_of(shortened(view.learner)) for view in views)
    cell = (side, side * height / width)
    drawing = Drawing(
        left + len(classes) * (side + 3) + 8, 52 + len(views) * (cell[1] + 3), f"{title} by learner and label"
    )
    for column, label in enumerate(classes):
        drawing.add(Words(left + (column + 0.5) * (side + 3), 40, shortened(label, 6), SMALL_TEXT, "middle"))
    for row, view in enumerate(views):
        y = 46 + row * (cell[1] + 3)
        drawing.add(Words(left - 8, y + cell[1] / 2 + 4, shortened(view.learner), TEXT, "end"))
        for column, label in enumerate(classes):
            if (picture := of(view).get(label)) is not None:
                scaled = (np.asarray(picture) - low) / span
                values = np.clip(np.round(255 * (scaled if depth else 1 - scaled)), 0, 255).astype(np.uint8)
                drawing.add(Pixels(left + column * (side + 3), y, *cell, values))
    drawing.add(Words(10, 18, title, LARGE_TEXT, bold=True))
    return drawing.svg()


def _column_map(exploration: Exploration) -> str:
    """Draws how far each learner's mean of each feature is from the mean over learners, in their deviations."""
    views = [view for view in exploration.views if view.columns.size]
    if len(views) < 2 or len({view.columns.size for view in views}) > 1:
        return ""
    means = np.array([view.columns[:_MOST_COLUMNS] for view in views])
    spread = means.std(axis=0)
    scaled = np.abs(means - means.mean(axis=0)) / np.where(spread > 0, spread, 1)
    few = len(views) <= MOST_PICTURED
    return heat_map(
        scaled.tolist(), [view.learner for view in views] if few else (), [str(k) for k in range(means.shape[1])],
        title="distance of each feature's mean from the other learners'", texts=False, high=3.0, form="{:.2f}",
        x="feature", alt="in standard deviations of the learners' means",
    ).svg()  # fmt: skip


def label_line(exploration: Exploration, view: View) -> str:
    """Draws a learner's label counts as blocks, to the same scale for all learners."""
    top = max(count for one in exploration.views for count in one.labels.values())
    return "".join(_BLOCKS[-(-8 * view.labels.get(label, 0) // top)] for label in exploration.classes[:_MOST_COLUMNS])
