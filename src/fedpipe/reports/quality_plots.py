"""Draws pictures of the final model's quality, from tallies: curves of a classifier, residuals of a regression."""

from __future__ import annotations

import math
from collections.abc import Sequence

from fedpipe.reports.charts import COLOURS, GREY, Axes, Range, heat_map, range_of
from fedpipe.reports.drawing import INK, Box, Drawing, Line, Mark
from fedpipe.rounds.histograms import coarsened
from fedpipe.rounds.measures import area, average_precision, precision_recall, reliability, roc
from fedpipe.rounds.tallies import ClassTally, Ranking, Residuals

_UNIT = Range(0.0, 1.0)
_SQUARE = (360, 330)
_MOST_CURVES = 10
_MOST_NAMED = 40


def confusion_matrix(tally: ClassTally, classes: Sequence[str]) -> Drawing:
    """Draws the counts of true classes by predicted classes; each row is shaded by its own share."""
    matrix = tally.confusion
    named = classes if len(matrix) <= _MOST_NAMED else ()
    right, total = sum(row[k] for k, row in enumerate(matrix)), sum(map(sum, matrix))
    return heat_map(
        matrix, named, named, title="confusion matrix", texts=len(matrix) <= 20, x="predicted", y="true",
        alt=f"{right} of {total} examples on the diagonal, of {len(matrix)} classes",
    )  # fmt: skip


def roc_curves(tally: ClassTally, classes: Sequence[str]) -> Drawing | None:
    """Draws true positives by false positives: of the second of two classes, or of each class against the others."""
    ranked = [
        (name, ranking, value) for name, ranking in _ranked(tally, classes) if (value := area(ranking)[0]) is not None
    ]
    if not ranked:
        return None
    keys = [(f"{name}: AUC {value:.4f}", COLOURS[k]) for k, (name, _, value) in enumerate(ranked)]
    axes = Axes(
        "ROC curve", _UNIT, _UNIT, x_label="false positive rate", y_label="true positive rate", size=_SQUARE,
        keys=keys, alt="; ".join(name for name, _ in keys),
    )  # fmt: skip
    axes.line([(0, 0), (1, 1)], GREY, width=1, dashed=True)
    for k, (_, ranking, _) in enumerate(ranked):
        axes.line(roc(ranking).points, COLOURS[k])
    return axes.drawing


def precision_recall_curves(tally: ClassTally, classes: Sequence[str]) -> Drawing | None:
    """Draws the precision by recall; `None` without rankings."""
    ranked = [
        (name, ranking, value)
        for name, ranking in _ranked(tally, classes)
        if (value := average_precision(ranking)) is not None
    ]
    if not ranked:
        return None
    keys = [(f"{name}: AP {value:.4f}", COLOURS[k]) for k, (name, _, value) in enumerate(ranked)]
    axes = Axes(
        "precision by recall", _UNIT, _UNIT, x_label="recall", y_label="precision", size=_SQUARE, keys=keys,
        alt="; ".join(name for name, _ in keys),
    )  # fmt: skip
    for k, (_, ranking, _) in enumerate(ranked):
        axes.line(precision_recall(ranking).points, COLOURS[k])
    return axes.drawing


def _ranked(tally: ClassTally, classes: Sequence[str]) -> list[tuple[str, Ranking]]:
    names = classes[1:] if tally.task == "binary" else classes
    return list(zip(names, tally.rankings, strict=False))[:_MOST_CURVES]


def calibration_curve(tally: ClassTally) -> Drawing | None:
    """Draws the share of hits by predicted probability, with the examples of each bin below."""
    if tally.calibration is None:
        return None
    lines = reliability(tally.calibration)
    binary = tally.task != "multiclass"
    axes = Axes(
        "calibration", _UNIT, _UNIT, size=_SQUARE,
        x_label="predicted probability" if binary else "probability of the predicted class",
        y_label="share that occurred" if binary else "share predicted correctly",
        alt=", ".join(f"{line.predicted:.2f} predicted and {line.observed:.2f} observed" for line in lines[:20]),
    )  # fmt: skip
    most = max(line.examples for line in lines)
    for line in lines:
        hint = f"{line.low:g} to {line.high:g}: {line.examples} examples"
        axes.bar(line.low, line.high, 0.25 * line.examples / most, "#94a3b8", hint)
    axes.line([(0, 0), (1, 1)], GREY, width=1, dashed=True)
    axes.line([(line.predicted, line.observed) for line in lines], COLOURS[0], dots=True)
    return axes.drawing


def _bins_for(count: int) -> int:
    """Returns the most bins in a picture of so many values: twice the bins of Rice's rule, which is 2 n^(1/3)."""
    return max(8, round(4 * math.cbrt(count)))


def residual_histogram(column: Residuals, name: str) -> Drawing:
    """Draws how often each residual occurs."""
    found = coarsened(column.residuals, _bins_for(column.values))
    edges = found.edges
    axes = Axes(
        f"residuals{name}", range_of([*edges, 0.0], margin=0.01), Range(0, max(found.counts) * 1.06),
        x_label="label minus prediction", y_label="examples", size=(440, 300),
        alt=f"{found.count} values from {edges[0]:.4g} to {edges[-1]:.4g}",
    )  # fmt: skip
    for k, count in enumerate(found.counts):
        if count:
            axes.bar(edges[k], edges[k + 1], count, COLOURS[0], f"{edges[k]:g} to {edges[k + 1]:g}: {count}")
    (x, top), (_, bottom) = axes.at(0.0, max(found.counts) * 1.06), axes.at(0.0, 0.0)
    axes.drawing.add(Line([(x, top), (x, bottom)], INK, 1, 0.5, True))
    return axes.drawing


def residuals_by_prediction(column: Residuals, name: str) -> Drawing:
    """Draws the mean and the standard deviation of the residuals in each bin of predictions."""
    found = coarsened(column.predictions, _bins_for(column.values))
    edges = found.edges
    bins: list[tuple[float, float, float, float, int]] = []
    for k, count in enumerate(found.counts):
        if count:
            mean = found.sums[k] / count
            spread = math.sqrt(max(0.0, found.squares[k] / count - mean * mean))
            bins.append((edges[k], edges[k + 1], mean, spread, count))
    y = range_of([value for _, _, mean, spread, _ in bins for value in (mean - spread, mean + spread, 0.0)])
    axes = Axes(
        f"residuals by prediction{name}", range_of(edges, margin=0.01), y, x_label="prediction",
        y_label="label minus prediction", size=(440, 300),
        alt=f"mean and standard deviation of the residuals in {len(bins)} bins of predictions",
    )  # fmt: skip
    for low, high, mean, spread, count in bins:
        (x0, top), (x1, bottom) = axes.at(low, mean + spread), axes.at(high, mean - spread)
        hint = f"{low:g} to {high:g}: mean {mean:.4g}, deviation {spread:.4g}, {count} examples"
        axes.drawing.add(
            Box(x0, top, max(0.5, x1 - x0 - 0.6), max(1.0, bottom - top), COLOURS[0], opacity=0.3, hint=hint)
        )
    for low, high, mean, _, _ in bins:
        x, middle = axes.at((low + high) / 2, mean)
        axes.drawing.add(Mark(x, middle, "dot", COLOURS[0], 2.4))
    (x0, zero), (x1, _) = axes.at(edges[0], 0.0), axes.at(edges[-1], 0.0)
    axes.drawing.add(Line([(x0, zero), (x1, zero)], INK, 1, 0.5, True))
    return axes.drawing
