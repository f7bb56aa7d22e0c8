"""Shows results in notebooks, as HTML without scripts and without styles of its own."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fedpipe.data.exploration import Exploration
from fedpipe.engine.preflight import Checked
from fedpipe.reports.comparison import Comparison, RunLine
from fedpipe.store.files import write_whole

_WIDTH, _HEIGHT, _EDGE = 240, 90, 6


class Result(NamedTuple):
    """A finished run: `summary.json` as a dictionary, and the folder with it, `report.html` and `model.onnx`.

    `tracked` is a line about the run in MLflow, if there is a server.
    """

    summary: dict[str, Any]
    folder: Path
    tracked: str = ""

    @property
    def metrics(self) -> dict[str, float]:
        """Returns the metrics of the final model: on the central test set, else on the learners' own, else of training.

        The last are those of the last round.
        """
        evaluation = self.summary.get("evaluation", {})
        for kind in ("central", "federated"):
            if evaluation.get(kind):
                return dict(evaluation[kind]["metrics"])
        rounds = self.summary.get("rounds")
        return shown_metrics(rounds[-1]) if rounds else {}

    @property
    def report(self) -> Path:
        """Returns the path of the report."""
        return self.folder / "report.html"

    @property
    def model(self) -> Path | None:
        """Returns the path of the ONNX model; None if none was exported."""
        path = self.folder / "model.onnx"
        return path if path.exists() else None

    def _repr_html_(self) -> str:
        if not self.summary:
            return f"<p>finished: {html.escape(str(self.folder))}</p>"
        rounds = self.summary["rounds"]
        title = f"<b>{_text(self.summary['federation'])}, {_text(self.summary['run'])}</b>: {len(rounds)} rounds"
        measured = {kind: self.summary["evaluation"].get(kind) for kind in ("central", "federated")}
        rows = [(kind, name, number(value)) for kind, found in measured.items() if found
                for name, value in found["metrics"].items()]  # fmt: skip
        files = [path for path in (self.report, self.model) if path is not None and path.exists()]
        listed = "".join(f"<li>{_text(path)}</li>" for path in files)
        return f"<div>{title}{table(rows, ('evaluated', 'metric', 'value'))}{curves(rounds)}<ul>{listed}</ul></div>"


class Runs(list[RunLine]):
    """Lists the runs of a federation, the latest first."""

    def _repr_html_(self) -> str:
        rows = [
            (f"{run.name}{' (HEAD)' if run.at_head else ''}", f"{run.rounds} of {run.planned or '?'}", run.state,
             ", ".join(f"{name} {number(value)}" for name, value in run.metrics.items() if "/" not in name))
            for run in self
        ]  # fmt: skip
        return table(rows, ("run", "rounds", "state", "last accepted")) if rows else "<p>no run has begun here</p>"


class Findings(list[Checked]):
    """Lists the passed checks of a federation."""

    def _repr_html_(self) -> str:
        return table([(f"✓ {subject}", what) for subject, what in self], ("checked", "found"))


class Compared(Comparison):
    """Compares runs: the settings in which they differ, and their results."""

    __slots__ = ()

    def _repr_html_(self) -> str:
        rows: list[Sequence[object]] = [(path, *values) for path, values in self.settings.items()]
        rows += [(name, *("" if value is None else f"{value:.6g}" for value in values))
                 for name, values in self.results.items()]  # fmt: skip
        return table(rows, ("", *self.runs))


class Page(str):
    """Holds an HTML page, which a notebook shows in a frame."""

    __slots__ = ()

    def _repr_html_(self) -> str:
        return frame(self)


class Explored(Exploration):
    """Describes the learners' data; a notebook shows it as the page that the command writes."""

    __slots__ = ()

    @property
    def page(self) -> Page:
        """Returns the page."""
        from fedpipe.reports.exploration_page import render_html

        return Page(render_html(self))

    def _repr_html_(self) -> str:
        return frame(self.page)


def save(page: str, path: str | Path | None) -> None:
    """Writes a page to a file, if there is one to write. Raises InputError."""
    if path is not None:
        write_whole(Path(path), page.encode())


def frame(page: str) -> str:
    """Returns a frame that shows a whole page, apart from the notebook's own styles."""
    style = "width: 100%; height: 32em; border: 1px solid #ccc"
    return f'<iframe srcdoc="{html.escape(page)}" sandbox="allow-scripts" style="{style}"></iframe>'


def table(rows: Iterable[Sequence[object]], head: Sequence[str]) -> str:
    """Returns a table, empty without rows."""
    lines = ["".join(f"<td>{_text(cell)}</td>" for cell in row) for row in rows]
    names = "".join(f"<th>{_text(name)}</th>" for name in head)
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f"<table><thead><tr>{names}</tr></thead><tbody>{body}</tbody></table>" if lines else ""


def _text(value: object) -> str:
    return html.escape(str(value))


def number(value: float) -> str:
    """Returns a metric with four digits."""
    return f"{value:.4f}"


def shown_metrics(entry: Mapping[str, Any]) -> dict[str, float]:
    """Returns loss and metrics of a round of the summary, without measurements inside an algorithm."""
    found = {"loss": entry.get("loss"), **entry.get("metrics", {})}
    return {name: value for name, value in found.items() if isinstance(value, float) and "/" not in name}


def curves(rounds: Sequence[Mapping[str, Any]]) -> str:
    """Draws each metric over the rounds, from the second round on; empty before."""
    series: dict[str, list[tuple[int, float]]] = {}
    for entry in rounds:
        for name, value in shown_metrics(entry).items():
            series.setdefault(name, []).append((entry["round"], value))
    return "".join(_curve(name, points) for name, points in series.items() if len(points) > 1)


def _curve(name: str, points: Sequence[tuple[int, float]]) -> str:
    low, high = (bound(value for _, value in points) for bound in (min, max))
    first, last = points[0][0], points[-1][0]

    def place(at: int, value: float) -> str:
        x = _EDGE + (_WIDTH - 2 * _EDGE) * (at - first) / max(1, last - first)
        y = _HEIGHT - _EDGE - (_HEIGHT - 2 * _EDGE) * (value - low) / ((high - low) or 1)
        return f"{x:.1f},{y:.1f}"

    line = " ".join(place(*point) for point in points)
    label = f"{_text(name)} {number(points[0][1])} → {number(points[-1][1])}"
    return (
        f'<figure style="display: inline-block; margin: 4px"><svg width="{_WIDTH}" height="{_HEIGHT}" role="img" '
        f'aria-label="{label}"><rect width="100%" height="100%" fill="none" stroke="#ccc"/><polyline points="{line}" '
        f'fill="none" stroke="#1f77b4" stroke-width="2"/></svg><figcaption>{label}</figcaption></figure>'
    )
