"""Draws pictures of a run, as SVG."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

from fedpipe.data.examples import in_order
from fedpipe.reports.story import Story, global_metrics
from fedpipe.rounds.evaluation import Evaluation

COLOURS = (
    "#2563eb",
    "#dc2626",
    "#059669",
    "#d97706",
    "#7c3aed",
    "#0891b2",
    "#be185d",
    "#4d7c0f",
    "#57534e",
    "#1e3a8a",
)


_NOT_TRAINING = ("test_", "held_out_", "central_", "num_", "aggregator", "distributor", "finalizer")
"""Prefixes of a simulated round's metrics that do not describe its training."""


_LONG = ("learn", "learn_private", "coordinate", "coordinate_tff", "simulate")
"""Steps that work through many rounds, and record the time of each."""


def figure_of(width: float, height: float) -> Any:
    """Returns an empty figure of this size in inches."""
    import matplotlib as mpl
    from matplotlib.figure import Figure  # pyplot has global state, and steps run in threads

    mpl.rcParams.update(
        {
            "svg.hashsalt": "fedpipe", "svg.fonttype": "none", "font.size": 9, "text.parse_math": False,
            "axes.spines.top": False, "axes.spines.right": False,
        }
    )  # fmt: skip
    return Figure(figsize=(width, height), layout="constrained")


def _figure(width: float, height: float) -> tuple[Any, Any]:
    figure = figure_of(width, height)
    return figure, figure.subplots()


def svg(figure: Any) -> str:
    """Returns the figure as an SVG element; equal figures give equal text."""
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    text = file.getvalue()
    return text[text.index("<svg") :]


def png(figure: Any) -> bytes:
    """Returns the figure as a PNG file."""
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=120)
    return data.getvalue()


def lines(curves: Mapping[str, Sequence[tuple[float, float]]], *, title: str, y: str) -> str:
    """Draws curves of (round, value) points by name."""
    return svg(_lines_figure(curves, title=title, y=y))


def _lines_figure(curves: Mapping[str, Sequence[tuple[float, float]]], *, title: str, y: str) -> Any:
    figure, axes = _figure(5.2, 3.2)
    if len(curves) > len(COLOURS):  # too many colours to distinguish: draw grey lines and their mean
        _draw_crowd(axes, list(curves.values()))
    else:
        for position, (name, points) in enumerate(curves.items()):
            axes.plot(*zip(*points, strict=True), marker="o", ms=3, label=name, color=COLOURS[position])
    axes.set(title=title, xlabel="round", ylabel=y)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.25)
    if curves:
        axes.legend(frameon=False, fontsize=8)
    return figure


def _draw_crowd(axes: Any, curves: Sequence[Sequence[tuple[float, float]]]) -> None:
    for position, points in enumerate(curves):
        label = f"each of {len(curves)}" if not position else None
        axes.plot(*zip(*points, strict=True), lw=0.7, alpha=0.35, color="#64748b", label=label)
    values: dict[float, list[float]] = {}
    for x, y in (point for points in curves for point in points):
        values.setdefault(x, []).append(y)
    mean = [(x, sum(ys) / len(ys)) for x, ys in sorted(values.items())]
    axes.plot(*zip(*mean, strict=True), marker="o", ms=3, color=COLOURS[0], label="their mean")


def learning_curves(story: Story) -> list[str]:
    """Draws one picture per metric: the learners' training, and the round's model on their test parts."""
    return [svg(figure) for figure in learning_figures(story)]


def learning_figures(story: Story) -> list[Any]:
    """Returns the figures of `learning_curves`."""
    records = [r for r in story.records if r.round]
    names = list(dict.fromkeys(n for r in records for n in (*r.metrics, *global_metrics(story, r.round))))
    pictures = []
    for name in (n for n in names if not n.startswith(_NOT_TRAINING)):
        training = [(r.round, r.metrics[name]) for r in records if name in r.metrics]
        shared = [
            (r.round, value) for r in story.records if (value := global_metrics(story, r.round).get(name)) is not None
        ]
        curves = {"learners' training": training, "shared model, learners' test parts": shared}
        for prefix, data in (("held_out_", "held-out learners"), ("central_", "central test set")):
            curves[f"shared model, {data}"] = [
                (r.round, r.metrics[prefix + name]) for r in records if prefix + name in r.metrics
            ]
        pictures.append(_lines_figure({k: v for k, v in curves.items() if v}, title=name, y=name))
    return pictures


def comparison_curves(stories: Sequence[Story]) -> list[str]:
    """Draws one picture per metric: the shared model of several runs on the learners' test parts."""
    curves: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for story in stories:
        name = f"{story.plan.run}, {story.plan.federation.algorithm.__struct_config__.tag}"
        for record in story.records:
            for metric, value in global_metrics(story, record.round).items():
                curves.setdefault(metric, {}).setdefault(name, []).append((record.round, value))
    return [
        lines(by_name, title=f"{metric} of the shared model in each run", y=metric)
        for metric, by_name in curves.items()
    ]


def learner_curves(story: Story) -> list[str]:
    """Draws one picture per metric: the training of each learner."""
    updates = [u for r in story.records for u in r.updates]
    pictures = []
    for name in dict.fromkeys(n for r in story.records for n in r.metrics):
        curves: dict[str, list[tuple[float, float]]] = {}
        for update in updates:
            if name in update.metrics:
                curves.setdefault(update.learner, []).append((update.round, update.metrics[name]))
        pictures.append(lines(dict(sorted(curves.items())), title=f"{name} of each learner's training", y=name))
    return pictures


def confusion_matrix(evaluation: Evaluation) -> str:
    """Draws the counts of true classes by predicted classes."""
    figure, axes = _figure(4.6, 4.2)
    matrix = evaluation.confusion
    axes.imshow(matrix, cmap="Blues")
    top = max(max(row) for row in matrix) or 1
    if len(matrix) <= 20:
        for i, row in enumerate(matrix):
            for j, count in enumerate(row):
                if count:
                    axes.text(
                        j,
                        i,
                        count,
                        ha="center",
                        va="center",
                        fontsize=8,
                        color="white" if count > top / 2 else "#1e293b",
                    )
        axes.set_xticks(range(len(matrix)), evaluation.classes)
        axes.set_yticks(range(len(matrix)), evaluation.classes)
    axes.set(title="confusion matrix", xlabel="predicted", ylabel="true")
    return svg(figure)


def label_counts(story: Story) -> str:
    """Draws how often each label occurs at each learner."""
    shards = [s for s in story.shards if s.labels]
    labels = in_order(label for s in shards for label in s.labels)
    figure, axes = _figure(5.2, 0.9 + 0.42 * len(shards))
    left = [0] * len(shards)
    for position, label in enumerate(labels):
        counts = [s.labels.get(label, 0) for s in shards]
        axes.barh(
            [s.learner for s in shards],
            counts,
            left=left,
            label=label,
            color=COLOURS[position % len(COLOURS)],
        )
        left = [a + b for a, b in zip(left, counts, strict=True)]
    axes.invert_yaxis()
    axes.set(title="labels of each learner", xlabel="examples")
    if len(labels) <= 20:
        axes.legend(frameon=False, fontsize=7, ncols=1, loc="upper left", bbox_to_anchor=(1, 1))
    return svg(figure)


def timings(story: Story) -> str:
    """Draws when each step ran: a lane for the coordinator and each learner, a colour for each kind of step."""
    drawn = [t for t in story.timings if t.round or t.step not in _LONG]  # for long steps, only their rounds
    lanes = ["", *(learner.name for learner in story.plan.federation.learners)]
    figure, axes = _figure(7.5, 1.2 + 0.22 * len(lanes))
    first = min(t.started for t in story.timings)
    for colour, step in enumerate(dict.fromkeys(t.step for t in drawn)):
        for lane, owner in enumerate(lanes):
            spans = [(t.started - first, max(t.seconds, 1e-3)) for t in drawn if (t.step, t.learner) == (step, owner)]
            axes.broken_barh(spans, (lane - 0.4, 0.8), color=COLOURS[colour % len(COLOURS)])
        axes.barh(0, 0, color=COLOURS[colour % len(COLOURS)], label=step)
    axes.set_yticks(range(len(lanes)), ["coordinator", *lanes[1:]], fontsize=7)
    axes.set_ylim(len(lanes) - 0.5, -0.5)
    axes.set(title="steps over time", xlabel="seconds since the first step")
    figure.legend(loc="outside right upper", fontsize=7)
    return svg(figure)
