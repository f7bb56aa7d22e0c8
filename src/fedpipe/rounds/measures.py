"""Metrics of a classifier or a regression, made of tallies that add up over learners; see docs/evaluation.md."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import NamedTuple

from fedpipe.rounds.tallies import (
    STEPS,
    Calibration,
    ClassTally,
    Ranking,
    Residuals,
    Tally,
    ValueTally,
)  # fmt: skip

MAIN = ("accuracy", "auc", "f1", "auc_macro", "f1_macro", "r2", "mae")
"""The measures in short tables; `f1_macro` only where there is no `f1`."""


class Curve(NamedTuple):
    """Points (x, y) of a curve, in order."""

    points: tuple[tuple[float, float], ...]


class ClassLine(NamedTuple):
    """The metrics of a class against all others; None where a metric would divide by zero.

    Args:
        precision: the share of rightly predicted examples among those predicted as this class.
        recall: the share of rightly predicted examples among those of this class.
        f1: their harmonic mean.
        auc: None also if the outputs cannot be ranked.
        examples: of this class.
    """

    precision: float | None
    recall: float | None
    f1: float | None
    auc: float | None
    average_precision: float | None
    examples: int


class Threshold(NamedTuple):
    """The metrics of a classifier that predicts the second class above a probability."""

    above: float
    precision: float | None
    recall: float | None
    specificity: float | None
    f1: float | None


class Reliability(NamedTuple):
    """A bin of the calibration curve: its bounds, the mean probability, the share of hits, and the examples."""

    low: float
    high: float
    predicted: float
    observed: float
    examples: int


def measure(found: Tally) -> dict[str, float]:
    """Return all metrics by name. A metric that is undefined, or not finite, is left out."""
    values = _measure_classes(found) if isinstance(found, ClassTally) else _measure_columns(found)
    return {name: value for name, value in values.items() if value is not None and math.isfinite(value)}


def _measure_classes(found: ClassTally) -> dict[str, float | None]:
    lines = by_class(found)
    occurring = [k for k in range(len(lines)) if found.true[k] or found.taken[k]]
    if found.task == "multilabel":
        occurring = list(range(len(lines)))
    macro = {
        "precision_macro": _mean([lines[k].precision or 0.0 for k in occurring]),
        "recall_macro": _mean([lines[k].recall or 0.0 for k in occurring]),
        "f1_macro": _mean([lines[k].f1 or 0.0 for k in occurring]),
    }
    values: dict[str, float | None] = {}
    if found.task != "multilabel":
        values["accuracy"] = share(sum(found.right), sum(found.true))
    if found.task == "binary":
        second = lines[1]
        values |= {
            "auc": second.auc, "average_precision": second.average_precision,
            "precision": second.precision or 0.0, "recall": second.recall, "f1": second.f1 or 0.0,
        }  # fmt: skip
    else:
        values["auc_macro"] = _mean([line.auc for line in lines if line.auc is not None])
        values["average_precision_macro"] = _mean(
            [line.average_precision for line in lines if line.average_precision is not None]
        )
    values |= macro
    if found.calibration:
        values["brier"] = share(found.squares, sum(found.true))
        if found.task == "multilabel":
            values["brier"] = share(found.squares, sum(found.calibration.hits) + sum(found.calibration.misses))
        values["calibration_error"] = calibration_error(found.calibration)
    return values


def _measure_columns(found: ValueTally) -> dict[str, float | None]:
    columns = found.columns
    r2 = [value for column in columns if (value := determination(column)) is not None]
    return {
        "r2": _mean(r2) if len(r2) == len(columns) else None,
        "mae": _mean([column.absolutes / column.values for column in columns]),
        "rmse": _mean([math.sqrt(column.squares / column.values) for column in columns]),
        "bias": _mean([column.errors / column.values for column in columns]),
    }


def share(part: float, whole: float) -> float | None:
    """Return a quotient; None if the divisor is 0."""
    return part / whole if whole else None


def _mean(values: Sequence[float]) -> float | None:
    """Return the mean; infinity if the sum is too large for a float."""
    try:
        return math.fsum(values) / len(values) if values else None
    except OverflowError:
        return math.inf


def determination(column: Residuals) -> float | None:
    """Return R2 of a regression's column; None if all labels are equal.

    .. math:: R^2 = 1 - \\frac{\\sum (y - \\hat y)^2}{\\sum (y - \\bar y)^2}
    """
    return 1 - column.squares / column.deviations if column.deviations else None


def by_class(found: ClassTally) -> list[ClassLine]:
    """Return the metrics of each class."""
    rankings: list[Ranking | None] = list(found.rankings) or [None] * len(found.true)
    if found.task == "binary":
        rankings = [None, *found.rankings] if found.rankings else [None, None]
    lines = []
    for true, taken, right, ranking in zip(found.true, found.taken, found.right, rankings, strict=True):
        line = ClassLine(
            precision=share(right, taken), recall=share(right, true), f1=share(2 * right, true + taken),
            auc=area(ranking)[0] if ranking else None,
            average_precision=average_precision(ranking) if ranking else None, examples=true,
        )  # fmt: skip
        lines.append(line)
    if found.task == "binary" and found.rankings:  # the first class is ranked as the second is, backwards
        lines[0] = lines[0]._replace(auc=lines[1].auc, average_precision=average_precision(_reversed(*found.rankings)))
    return lines


def _reversed(ranking: Ranking) -> Ranking:
    """Return the ranking of the other class."""
    return Ranking(
        shift=ranking.shift, bins=tuple(-at for at in reversed(ranking.bins)),
        negatives=ranking.positives[::-1], positives=ranking.negatives[::-1],
    )  # fmt: skip


def area(ranking: Ranking) -> tuple[float | None, float]:
    """Return the area under the ROC curve, and the largest error that its bins can cause.

    .. math:: \\mathrm{AUC} = \\frac{1}{PN} \\sum_b n_b \\left(\\sum_{c > b} p_c + \\tfrac12 p_b\\right), \\quad
        |\\mathrm{error}| \\le \\frac{1}{2PN} \\sum_b n_b p_b

    with p positives and n negatives of a bin. It is the probability that a positive has a higher score than a negative,
    where equal scores count half. It is exact unless a bin holds both with different scores. The bound counts equal
    scores too.

    Source: Hanley and McNeil, "The meaning and use of the area under a ROC curve", Radiology 143, 1982.
    """
    positives, negatives = sum(ranking.positives), sum(ranking.negatives)
    if not positives or not negatives:
        return None, 0.0
    above, twice, ties = positives, 0, 0
    for p, n in zip(ranking.positives, ranking.negatives, strict=True):
        above -= p
        twice += n * (2 * above + p)
        ties += n * p
    pairs = 2 * positives * negatives
    return twice / pairs, ties / pairs


def average_precision(ranking: Ranking) -> float | None:
    """Return the average precision: the sum of precisions at each score, weighted by the growth of recall.

    .. math:: \\mathrm{AP} = \\sum_k (R_k - R_{k-1}) P_k

    Source: Zhu, "Recall, precision and average precision", University of Waterloo, 2004; as scikit-learn computes it.
    """
    total = sum(ranking.positives)
    if not total:
        return None
    right = taken = 0
    terms = []
    for p, n in zip(reversed(ranking.positives), reversed(ranking.negatives), strict=True):
        right, taken = right + p, taken + p + n
        terms.append(p * right / taken)
    return math.fsum(terms) / total


def roc(ranking: Ranking, most: int = 200) -> Curve:
    """Return the ROC curve: true positives by false positives, from (0, 0) to (1, 1).

    Args:
        ranking: with positives and negatives.
        most: points; others that lie nearest to them are left out.
    """
    right = [0, *accumulate(reversed(ranking.positives))]
    wrong = [0, *accumulate(reversed(ranking.negatives))]
    points = [(x / (wrong[-1] or 1), y / (right[-1] or 1)) for x, y in zip(wrong, right, strict=True)]
    return Curve(tuple(_thinned(points, most)))


def precision_recall(ranking: Ranking, most: int = 200) -> Curve:
    """Return the precision by recall."""
    right = list(accumulate(reversed(ranking.positives)))
    wrong = list(accumulate(reversed(ranking.negatives)))
    points = [(p / (right[-1] or 1), p / (p + n)) for p, n in zip(right, wrong, strict=True) if p + n]
    return Curve(tuple(_thinned(points, most)))


def _thinned(points: Sequence[tuple[float, float]], most: int) -> list[tuple[float, float]]:
    """Leave out points that are nearer than 1 / most to the last one that stays; keep both ends."""
    kept = list(points[:1])
    for point in points[1:-1]:
        if max(abs(point[0] - kept[-1][0]), abs(point[1] - kept[-1][1])) >= 1 / most:
            kept.append(point)
    return [*kept, *points[1:][-1:]]


def thresholds(found: ClassTally) -> list[Threshold]:
    """Return the metrics of a binary classifier by threshold; empty if the outputs are not probabilities."""
    table = found.calibration
    if found.task != "binary" or table is None:
        return []
    lines = []
    positives, negatives = sum(table.hits), sum(table.misses)
    for k in range(1, STEPS):
        right, wrong = sum(table.hits[k:]), sum(table.misses[k:])
        lines.append(
            Threshold(
                above=k / STEPS,
                precision=share(right, right + wrong),
                recall=share(right, positives),
                specificity=share(negatives - wrong, negatives),
                f1=share(2 * right, right + wrong + positives),
            )
        )
    return lines


def best_threshold(found: ClassTally) -> tuple[float, float] | None:
    """Return the lowest probability that counts as the second class when F1 is highest, and that F1.

    Returns None without positives or rankings.
    """
    if found.task != "binary" or not found.rankings or found.form == "margins" or not found.true[1]:
        return None
    (ranking,), right, taken, best = found.rankings, 0, 0, (-1.0, 0.0)
    for at, p, n in zip(reversed(ranking.bins), reversed(ranking.positives), reversed(ranking.negatives), strict=True):
        right, taken = right + p, taken + p + n
        best = max(best, (2 * right / (taken + found.true[1]), score_of(at << ranking.shift)))
    f1, score = best
    return (score if found.form == "probabilities" else _logistic(score)), f1


def _logistic(logit: float) -> float:
    """Return the probability of a logit, whose exponential may be too large for a float."""
    return 1 / (1 + math.exp(-logit)) if logit > 0 else math.exp(logit) / (1 + math.exp(logit))


def score_of(code: int) -> float:
    """Return the float32 number of a code, as `Ranking` has it.

    >>> score_of(0), score_of(0x3F000000), score_of(-0x3F000000)
    (0.0, 0.5, -0.5)
    """
    value = float(struct.unpack("<f", struct.pack("<I", min(abs(code), 0x7F7FFFFF)))[0])
    return value if code >= 0 else -value


def reliability(table: Calibration) -> list[Reliability]:
    """Return the calibration curve: the share of hits by predicted probability, without empty bins."""
    rows = zip(table.misses, table.hits, table.sums, strict=True)
    return [
        Reliability(k / STEPS, (k + 1) / STEPS, total / (m + h), h / (m + h), m + h)
        for k, (m, h, total) in enumerate(rows)
        if m + h
    ]


def calibration_error(table: Calibration) -> float | None:
    """Return the expected calibration error: the mean distance of the curve from the diagonal, weighted by examples.

    .. math:: \\mathrm{ECE} = \\sum_b \\frac{n_b}{n} \\left| \\bar y_b - \\bar p_b \\right|

    Source: Guo et al., "On calibration of modern neural networks", ICML 2017, with STEPS bins of equal width.
    """
    lines = reliability(table)
    examples = sum(line.examples for line in lines)
    return share(math.fsum(line.examples * abs(line.observed - line.predicted) for line in lines), examples)


def main_metrics(metrics: Mapping[str, float], measures: Mapping[str, float]) -> dict[str, float]:
    """Return the few numbers for short tables: compiled metrics, and the main measures.

    A measure takes the place of a compiled metric of its name, which may be an approximation, as Keras's AUC is. It
    takes the place of Keras's longer name for it too.

    >>> main_metrics({"loss": 0.5, "accuracy": 0.75}, {"accuracy": 0.75, "auc": 0.8, "brier": 0.2, "sick_f1": 0.7})
    {'accuracy': 0.75, 'auc': 0.8, 'loss': 0.5, 'sick_f1': 0.7}
    >>> main_metrics({"loss": 4.0, "mean_absolute_error": 1.5}, {"mae": 1.5, "r2": 0.9})
    {'loss': 4.0, 'mae': 1.5, 'r2': 0.9}
    """
    chosen = {
        name: value
        for name, value in measures.items()
        if any(name == main or name.endswith(f"_{main}") for main in MAIN)
        and not (name.endswith("_macro") and name.removesuffix("_macro") in measures)
    }
    others = {name: value for name, value in metrics.items() if _short(name) not in chosen}
    return dict(sorted({**others, **chosen}.items()))


_LONG_NAMES = {"mean_absolute_error": "mae", "r2_score": "r2", "f1_score": "f1"}
"""Names of metrics in Keras, and those of the same measures."""


def _short(name: str) -> str:
    """Return the name of the measure for a compiled metric, of one output or of one of several.

    >>> _short("mean_absolute_error"), _short("days_mean_absolute_error"), _short("loss")
    ('mae', 'days_mae', 'loss')
    """
    for long, short in _LONG_NAMES.items():
        if name == long or name.endswith(f"_{long}"):
            return name.removesuffix(long) + short
    return name
