"""Statistics of tables: a learner's report on its train part, and the summary of several reports.

No row leaves a learner. Counts, means and variances add up exactly, apart from rounding. Source: Chan, Golub and
LeVeque, "Algorithms for computing the sample variance", The American Statistician 37, 1983. With count n, mean m and
sum of squared deviations s of two parts:

.. math::
    n = n_1 + n_2, \\quad \\delta = m_2 - m_1, \\quad
    m = m_1 + \\delta \\tfrac{n_2}{n}, \\quad s = s_1 + s_2 + \\delta^2 \\tfrac{n_1 n_2}{n}

Quantiles come from histograms. Each learner's bins hold at least `rare` values and nearly equal counts, and their inner
bounds are midpoints between values. So the rank of a quantile is wrong by at most one bin of each learner.

A report comes from another party: `flaw_of` names what contradicts itself.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Annotated, NamedTuple

import numpy as np
from msgspec import Meta, Struct

from fedpipe.data.schema import MOST_CLASSES, MOST_COLUMNS, NUMERIC, Column, ColumnName, LabelKind, Style
from fedpipe.data.tables import values_of_columns
from fedpipe.data.trees import Array, Tree
from fedpipe.federation.data import Kind, StatisticsSettings
from fedpipe.identity.signing import Signature

Count = Annotated[int, Meta(ge=0, le=2**53)]
MOST_BINS = 64
_WIDE = 1000
"""Tables of more columns have histograms of a few bins, so that reports stay small."""
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
LARGEST_REPORT = 64 * 2**20
"""Bytes of a report that are read."""
MOST_VALUES = 600_000
"""Most values of a report: a table of 20,000 number-like columns has about 520,000."""


class Numbers(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Summarises the values of a number-like column that are not missing.

    Args:
        count: at least 1.
        mean: of the values.
        squares: sum of squared deviations from the mean.
        minimum: the smallest value.
        maximum: the largest value.
        bounds: of the histogram's bins, ascending; one more than bins.
        counts: of the values in each bin.
    """

    count: Annotated[int, Meta(ge=1, le=2**53)]
    mean: float
    squares: float
    minimum: float
    maximum: float
    bounds: Annotated[tuple[float, ...], Meta(max_length=MOST_BINS + 1)] = ()
    counts: Annotated[tuple[Count, ...], Meta(max_length=MOST_BINS)] = ()

    @property
    def deviation(self) -> float:
        """Returns the standard deviation of the values, as of a population."""
        return math.sqrt(max(0.0, self.squares) / self.count)


class ColumnReport(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Describes a column of a learner's examples.

    Args:
        name: the column.
        kind: its kind, declared or guessed.
        missing: the number of missing values.
        numbers: of a number-like column; None if it has too few values.
        categories: counts of a category's values, without rare ones.
        style: how the file writes its numbers or dates.
    """

    name: ColumnName
    kind: Kind
    missing: Count
    numbers: Numbers | None = None
    categories: Annotated[dict[Annotated[str, Meta(max_length=1000)], Count], Meta(max_length=MOST_CLASSES)] = {}
    style: Style = ""


class Report(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Holds a learner's statistics, or the reason why it discloses none.

    Args:
        learner: its name.
        examples: of its train part; 0 if it discloses none.
        columns: of the features, in the order of its data.
        labels: the kind of its labels.
        classes: counts of its labels that are names, without rare ones.
        target: of labels that are numbers.
        why: the reason; empty if it discloses statistics.
        basis: digest of the data and settings that it describes; another one is out of date.
        signature: of the learner, if it has a key.
    """

    format: int = 1
    basis: str = ""
    learner: str
    examples: Count = 0
    columns: Annotated[tuple[ColumnReport, ...], Meta(max_length=MOST_COLUMNS)] = ()
    labels: LabelKind = "whole"
    classes: Annotated[dict[Annotated[str, Meta(max_length=200)], Count], Meta(max_length=MOST_CLASSES)] = {}
    target: Numbers | None = None
    why: Annotated[str, Meta(max_length=500)] = ""
    signature: Signature | None = None


def report_of(
    learner: str, x: Tree, y: Array, columns: Sequence[Column], settings: StatisticsSettings, *, private: bool = False
) -> Report:
    """Returns a learner's report on the examples of its train part.

    Args:
        learner: its name.
        x: features of a table.
        y: labels, as they were read.
        columns: of the features.
        settings: limits of what it discloses.
        private: whether it trains with differential privacy. Then it discloses nothing, because exact statistics are
            not private.
    """
    count = len(y)
    if private:
        return Report(learner=learner, why="it trains with differential privacy, and exact statistics are not private")
    if count < settings.floor:
        why = f"it has fewer train examples than data.statistics.floor, which is {settings.floor}"
        return Report(learner=learner, why=why)
    values = values_of_columns(x, columns)
    bins = MOST_BINS if len(columns) <= _WIDE else 8
    found = [_column_report(column, values[column.name][1], settings, bins) for column in columns]
    labels: LabelKind = "names" if y.dtype == object else "quantity" if y.dtype.kind == "f" else "whole"
    names = _frequent(Counter(y.tolist()), settings) if labels == "names" else {}
    target = None if labels == "names" else numbers_of(y.astype(np.float64), settings, MOST_BINS)
    return Report(
        learner=learner, examples=count, columns=tuple(found), labels=labels, classes=names, target=target
    )  # fmt: skip


def _column_report(column: Column, values: Array, settings: StatisticsSettings, bins: int) -> ColumnReport:
    if column.kind in NUMERIC:
        present = values[~np.isnan(values)].astype(np.float64)
        numbers = numbers_of(present, settings, bins)
        missing = len(values) - len(present)
        return ColumnReport(
            name=column.name, kind=column.kind, missing=missing, numbers=numbers, style=column.style
        )  # fmt: skip
    missing = int(np.count_nonzero(values == ""))
    counts: dict[str, int] = {}
    if column.kind == "category":
        counts = _frequent(Counter(v for v in values.tolist() if v), settings)
    return ColumnReport(name=column.name, kind=column.kind, missing=missing, categories=counts)


def _frequent(counts: Mapping[str, int], settings: StatisticsSettings) -> dict[str, int]:
    """Returns the values that are not rare, the most frequent ones first."""
    kept = sorted((-count, value) for value, count in counts.items() if count >= settings.rare and len(value) <= 200)
    return {value: -count for count, value in kept[:MOST_CLASSES]}


def numbers_of(values: Array, settings: StatisticsSettings, bins: int = MOST_BINS) -> Numbers | None:
    """Summarises finite values, (n,); None if there are fewer than the floor."""
    if len(values) < settings.floor or not len(values):
        return None
    mean = float(values.mean())
    bounds, counts = histogram(values, max(1, min(bins, len(values) // max(settings.rare, 1))))
    return Numbers(
        count=len(values), mean=min(max(mean, float(values.min())), float(values.max())),
        squares=float(np.square(values - mean).sum()), minimum=float(values.min()), maximum=float(values.max()),
        bounds=bounds, counts=counts,
    )  # fmt: skip


def histogram(values: Array, bins: int) -> tuple[tuple[float, ...], tuple[int, ...]]:
    """Returns bounds and counts of bins with nearly equal counts; equal values are in one bin.

    >>> histogram(np.array([1.0, 2.0, 3.0, 4.0]), 2)
    ((1.0, 2.5, 4.0), (2, 2))
    """
    ordered = np.sort(values)
    cuts = np.unique(np.linspace(0, len(ordered), bins + 1).astype(int)[1:-1])
    cuts = np.unique(np.searchsorted(ordered, ordered[cuts], side="left")) if len(cuts) else cuts
    cuts = cuts[(cuts > 0) & (cuts < len(ordered))]
    middle = ordered[cuts - 1] + (ordered[cuts] - ordered[cuts - 1]) / 2
    bounds = (float(ordered[0]), *middle.tolist(), float(ordered[-1]))
    counts = np.diff(np.concatenate([[0], cuts, [len(ordered)]]))
    return bounds, tuple(int(count) for count in counts)


def merged(parts: Sequence[Numbers]) -> Numbers:
    """Returns the summary of all values of several summaries, without a histogram; see the module for the formula."""
    count, mean, squares = 0, 0.0, 0.0
    for part in parts:
        total = count + part.count
        delta = part.mean - mean
        mean += delta * (part.count / total)
        squares += part.squares + delta * delta * (count * part.count / total)
        count = total
    low, high = min(part.minimum for part in parts), max(part.maximum for part in parts)
    return Numbers(count=count, mean=min(max(mean, low), high), squares=squares, minimum=low, maximum=high)


def quantile(parts: Sequence[Numbers], share: float) -> float:
    """Returns a quantile of all values behind several histograms; the module describes its error.

    Args:
        parts: summaries with histograms.
        share: from 0 to 1.
    """
    points = np.unique(np.concatenate([np.asarray(part.bounds) for part in parts]))
    below, upto = np.zeros(len(points)), np.zeros(len(points))  # values below each point, and up to it
    for part in parts:
        bounds, counts = np.asarray(part.bounds), np.asarray(part.counts, np.float64)
        single = np.diff(bounds) == 0  # a bin of equal values
        sums = np.concatenate([[0], np.cumsum(np.where(single, 0, counts))])
        inside = np.interp(points, bounds, sums)
        steps = np.concatenate([[0], np.cumsum(counts[single])])
        below += inside + steps[np.searchsorted(bounds[1:][single], points, "left")]
        upto += inside + steps[np.searchsorted(bounds[1:][single], points, "right")]
    wanted = share * sum(part.count for part in parts)
    ranks = np.stack([below, upto], axis=1).reshape(-1)
    return float(np.interp(wanted, ranks, np.repeat(points, 2)))


class ColumnSummary(NamedTuple):
    """Describes a column over several learners: `quantiles` are those of QUANTILES, `styles` those of its files."""

    name: str
    kind: Kind
    missing: int
    numbers: Numbers | None
    quantiles: tuple[float, ...]
    categories: dict[str, int]
    styles: tuple[Style, ...] = ()


def summary_of(reports: Sequence[ColumnReport], kind: Kind | None = None) -> ColumnSummary:
    """Combines the reports of several learners on one column."""
    parts = [report.numbers for report in reports if report.numbers is not None]
    categories: Counter[str] = Counter()
    for report in reports:
        categories.update(report.categories)
    return ColumnSummary(
        name=reports[0].name, kind=kind or reports[0].kind, missing=sum(report.missing for report in reports),
        numbers=merged(parts) if parts else None,
        quantiles=tuple(quantile(parts, share) for share in QUANTILES) if parts else (),
        categories=dict(sorted(categories.items())), styles=tuple(sorted({r.style for r in reports if r.style})),
    )  # fmt: skip


def flaw_of(report: Report) -> str:
    """Returns the first contradiction in a report, as text; empty if there is none."""
    names = [column.name for column in report.columns]
    if len(names) != len(set(names)):
        return "two columns have the same name"
    if report.why:
        return ""
    if not report.columns or not report.examples:
        return "it describes no columns"
    for column in report.columns:
        if flaw := _column_flaw(column, report.examples):
            return f"the column {column.name!r} {flaw}"
    if sum(report.classes.values()) > report.examples or not all(map(_printable, report.classes)):
        return "the counts of its labels exceed its examples, or a label is not text"
    flaw = _numbers_flaw(report.target, report.examples) if report.target else ""
    return f"the label {flaw}" if flaw else ""


def _column_flaw(column: ColumnReport, examples: int) -> str:
    if not _printable(column.name):
        return "has a name with control characters"
    if column.missing > examples:
        return "misses more values than there are examples"
    if sum(column.categories.values()) > examples - column.missing or not all(map(_printable, column.categories)):
        return "has categories whose counts exceed the examples, or that are not text"
    if column.numbers is not None and column.kind not in NUMERIC:
        return "has numbers, but is not number-like"
    return _numbers_flaw(column.numbers, examples - column.missing) if column.numbers else ""


def _numbers_flaw(numbers: Numbers, most: int) -> str:
    values = (numbers.mean, numbers.squares, numbers.minimum, numbers.maximum, *numbers.bounds)
    if not all(math.isfinite(value) and abs(value) <= _LARGEST for value in values):
        return "has a statistic that is not finite, or too large"
    if numbers.count > most:
        return "has more values than examples"
    if not numbers.minimum <= numbers.mean <= numbers.maximum:
        return "has a mean outside its range"
    span = numbers.maximum - numbers.minimum
    if not 0 <= numbers.squares <= numbers.count * span * span / 4 * (1 + 1e-6):  # Popoviciu's inequality
        return "has a variance that its range does not allow"
    bounds, counts = numbers.bounds, numbers.counts
    ascending = all(a <= b for a, b in itertools.pairwise(bounds))
    if len(bounds) != len(counts) + 1 or not ascending or sum(counts) != numbers.count:
        return "has a histogram that does not fit its values"
    return "" if (bounds[0], bounds[-1]) == (numbers.minimum, numbers.maximum) else "has a histogram of another range"


_LARGEST = float(np.finfo(np.float32).max)


def _printable(text: str) -> bool:
    return text.isprintable()
