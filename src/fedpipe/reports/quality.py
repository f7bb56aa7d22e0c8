"""Prepares the quality of the final model for the report: tables and pictures for each output."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from fedpipe.reports import quality_plots as plots
from fedpipe.reports.drawing import Drawing
from fedpipe.rounds.evaluation import Evaluation, Measured
from fedpipe.rounds.measures import (
    ClassLine,
    Threshold,
    area,
    best_threshold,
    by_class,
    determination,
    main_metrics,
    thresholds,
)  # fmt: skip
from fedpipe.rounds.tallies import ClassTally, Tally, ValueTally

SOURCES = {"central": "the central test set", "federated": "all learners' test parts"}
_MOST_LISTED = 100
_MOST_COLUMNS = 4


class ColumnLine(NamedTuple):
    """The metrics of a regression's column, next to the mean and the standard deviation of its labels."""

    name: str
    r2: float | None
    mae: float
    rmse: float
    bias: float
    mean: float
    deviation: float


class Quality(NamedTuple):
    """The quality of one output on one set of examples.

    Args:
        source: where it was tested.
        output: its name; empty if the model has only one.
        pictures: curves, matrix and residuals.
        classes: a line for each class.
        thresholds: a line for each threshold of a binary classifier.
        columns: a line for each column of a regression.
        notes: sentences that explain limits.
    """

    source: str
    output: str
    pictures: list[str]
    classes: list[tuple[str, ClassLine]]
    thresholds: list[Threshold]
    columns: list[ColumnLine]
    notes: list[str]


def qualities(evaluation: Evaluation, classes: Sequence[str]) -> list[Quality]:
    """Returns the quality of each output, on the central test set and on all learners' test parts."""
    return [
        _quality(SOURCES.get(source, source), output, tally, classes if not position else ())
        for source, tallies in evaluation.tallies.items()
        for position, (output, tally) in enumerate(tallies.items())
    ]


def _quality(source: str, output: str, tally: Tally, classes: Sequence[str]) -> Quality:
    if isinstance(tally, ValueTally):
        return _regression(source, output, tally)
    names = classes if len(classes) == len(tally.true) else [str(k) for k in range(len(tally.true))]
    lines = list(zip(names, by_class(tally), strict=True))
    drawn = [
        plots.confusion_matrix(tally, names) if tally.confusion else None,
        plots.roc_curves(tally, names),
        plots.precision_recall_curves(tally, names),
        plots.calibration_curve(tally),
    ]
    return Quality(source, output, _svg(drawn), lines[:_MOST_LISTED], thresholds(tally), [], _notes(tally, names))


def _svg(drawings: Sequence[Drawing | None]) -> list[str]:
    return [drawing.svg() for drawing in drawings if drawing is not None]


def _notes(tally: ClassTally, names: Sequence[str]) -> list[str]:
    notes = []
    if tally.form == "margins":
        notes.append("The loss takes margins, not probabilities, so there is no calibration.")
    elif tally.calibration is None:
        notes.append("The outputs are not probabilities, so there are no curves and no calibration.")
    if any(ranking.shift for ranking in tally.rankings):
        error = max(area(ranking)[1] for ranking in tally.rankings)
        notes.append(
            f"There are so many scores that near ones share a bin: AUC is within {error:.1g} of the exact one."
        )
    if best := best_threshold(tally):
        notes.append(f"F1 of {names[1]} is highest, {best[1]:.4f}, for probabilities of at least {best[0]:.4g}.")
    if len(names) > _MOST_LISTED:
        notes.append(f"The table shows the first {_MOST_LISTED} of {len(names)} classes.")
    return notes


def _regression(source: str, output: str, tally: ValueTally) -> Quality:
    several = len(tally.columns) > 1
    lines, drawn = [], []
    for k, column in enumerate(tally.columns):
        lines.append(
            ColumnLine(
                str(k) if several else "",
                determination(column),
                column.absolutes / column.values,
                math.sqrt(column.squares / column.values),
                column.errors / column.values,
                column.mean,
                math.sqrt(column.deviations / column.values),
            )
        )
        if k < _MOST_COLUMNS:
            name = f" of column {k}" if several else ""
            drawn += [plots.residual_histogram(column, name), plots.residuals_by_prediction(column, name)]
    notes = ["All values of an example are counted together."] if tally.pooled else []
    if len(lines) > _MOST_COLUMNS:
        notes.append(f"Pictures show the first {_MOST_COLUMNS} columns.")
    return Quality(source, output, _svg(drawn), [], [], lines, notes)


def tested(evaluation: Evaluation | None) -> list[tuple[str, Measured]]:
    """Returns the tests of the final model: central, federated, and of each learner, with its personal model."""
    if evaluation is None:
        return []
    shared = [("central test set", evaluation.central), ("all learners' test parts", evaluation.federated)]
    each = [
        (f"{name}{kind}", measured[name])
        for name in sorted(evaluation.learners)
        for kind, measured in (("", evaluation.learners), (", personal model", evaluation.personal))
        if name in measured
    ]
    return [(name, m) for name, m in shared if m] + each


class Personal(NamedTuple):
    """Personal models and the shared one, on the same test parts.

    Args:
        metric: the one that is compared.
        better: learners whose personal model is better.
        learners: that have one.
        own: the mean over their examples.
        shared: the mean of the shared model.
    """

    metric: str
    better: int
    learners: int
    own: float
    shared: float


def personal_models(evaluation: Evaluation | None) -> Personal | None:
    """Returns how personal models compare with the shared one, by accuracy or else by loss; None without any."""
    if evaluation is None or not evaluation.personal:
        return None
    pairs = [(own, evaluation.learners[name]) for name, own in evaluation.personal.items()]
    metric = "accuracy" if all("accuracy" in m.metrics for pair in pairs for m in pair) else "loss"
    sign = 1 if metric == "accuracy" else -1
    better = sum(sign * own.metrics[metric] > sign * shared.metrics[metric] for own, shared in pairs)
    examples = sum(own.examples for own, _ in pairs)
    means = [sum(m.metrics[metric] * m.examples for m in each) / examples for each in zip(*pairs, strict=True)]
    return Personal(metric, better, len(pairs), *means)


def shown(measured: Measured) -> dict[str, float]:
    """Returns the few numbers for short tables."""
    return main_metrics(measured.metrics, measured.measures)
