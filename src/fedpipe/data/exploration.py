"""Describes the learners' data before training: labels, features, pictures, and how much learners differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fedpipe.data.examples import Examples, classes_of, examples_joined, first_labels, in_order, label_counts
from fedpipe.data.statistics import ColumnReport, ColumnSummary, Report, report_of, summary_of
from fedpipe.data.trees import Tree, leaves
from fedpipe.federation.data import StatisticsSettings

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]


class Statistics(NamedTuple):
    """Summarises all features of a learner's examples."""

    minimum: float
    maximum: float
    mean: float
    deviation: float


class View(NamedTuple):
    """Describes one learner's data.

    `labels` are counts by class; empty if the labels are not classes. `columns` are the means of the features if an
    example is a row of numbers. `samples` and `means` are pictures by class, (height, width) or (height, width, 3): the
    first example and the mean of all. They are empty if the examples are not pictures. `report` has the statistics of
    a table's columns.
    """

    learner: str
    parts: dict[str, int]
    labels: dict[str, int]
    features: Statistics
    columns: Floats
    samples: dict[str, Floats]
    means: dict[str, Floats]
    report: Report | None = None

    @property
    def examples(self) -> int:
        """Returns the number of examples in all parts."""
        return sum(self.parts.values())


class Exploration(NamedTuple):
    """Holds the views of a federation's learners, and the reasons why others were left out."""

    federation: str
    views: tuple[View, ...]
    left_out: dict[str, str]

    @property
    def classes(self) -> list[str]:
        """Returns all classes, in order; empty if some learner's labels are not classes."""
        if not all(view.labels for view in self.views):
            return []
        return in_order(label for view in self.views for label in view.labels)


def view_of(
    learner: str,
    parts: Mapping[str, Examples],
    settings: StatisticsSettings = StatisticsSettings(),  # noqa: B008
) -> View:
    """Describes a learner's data.

    Args:
        learner: the learner's name.
        parts: its examples: features (examples, ...), labels (examples, ...).
        settings: limits of the statistics of a table.
    """
    whole = examples_joined(list(parts.values()))
    x, y = _numbers_in(whole.x), first_labels(whole.y)
    labels, report = label_counts(y), None
    if whole.columns:
        report = report_of(learner, whole.x, y, whole.columns, settings)
    pictures = _as_pictures(x)
    samples, means = ({}, {}) if pictures is None or not labels else _pictures_by_class(pictures, y, labels)
    return View(
        learner=learner,
        parts={name: part.count for name, part in parts.items()},
        labels=labels,
        features=_spread(x),
        columns=x.mean(axis=0, dtype=np.float64) if x.ndim == 2 and report is None else np.empty(0),
        samples=samples,
        means=means,
        report=report,
    )


def _numbers_in(x: Tree) -> Array:
    """Returns the first array of numbers; an empty one if there are texts only."""
    return next((leaf for _, leaf in leaves(x) if leaf.dtype != object), np.empty((0, 0), np.float32))


def _spread(x: Array) -> Statistics:
    """Returns the statistics of all values that are not missing."""
    known = x[~np.isnan(x)] if x.dtype.kind == "f" else x
    if not known.size:
        return Statistics(0.0, 0.0, 0.0, 0.0)
    low, high = float(known.min()), float(known.max())
    return Statistics(low, high, float(known.mean(dtype=np.float64)), float(known.std(dtype=np.float64)))


def _as_pictures(x: Array) -> Array | None:
    """Returns (examples, height, width) or (examples, height, width, 3); None if the examples are not pictures."""
    if x.ndim == 4 and x.shape[3] == 1:
        x = x[..., 0]
    is_picture = x.ndim == 3 or (x.ndim == 4 and x.shape[3] == 3)
    return x if is_picture and min(x.shape[1:3]) > 1 else None


def _pictures_by_class(
    pictures: Array, y: Array, labels: Mapping[str, int]
) -> tuple[dict[str, Floats], dict[str, Floats]]:
    classes = classes_of(y)
    members = {label: np.flatnonzero(classes == int(label)) for label in labels}
    samples = {label: pictures[own[0]].astype(np.float64) for label, own in members.items()}
    means = {label: pictures[own].mean(axis=0, dtype=np.float64) for label, own in members.items()}
    return samples, means


class ColumnView(NamedTuple):
    """Describes a column of a table: over all learners, at each, and how far each is from all.

    `distances` are by learner. For numbers they count standard deviations between the means, for categories they are
    Jensen-Shannon distances.
    """

    summary: ColumnSummary
    learners: dict[str, ColumnReport]
    distances: dict[str, float]


FAR = 0.5
"""The distance from which a learner counts as different in a column; fedpipe's own rule of thumb."""


def column_views(exploration: Exploration) -> list[ColumnView]:
    """Describes the columns of a table, in the order of the first learner; empty if there is no table."""
    reports = [view.report for view in exploration.views if view.report and not view.report.why]
    found = []
    for name in dict.fromkeys(column.name for report in reports for column in report.columns):
        own = {r.learner: column for r in reports for column in r.columns if column.name == name}
        summary = summary_of(list(own.values()))
        apart = {learner: _apart(column, summary) for learner, column in own.items()}
        found.append(ColumnView(summary, own, apart))
    return found


def _apart(column: ColumnReport, summary: ColumnSummary) -> float:
    if column.numbers and summary.numbers:
        deviation = summary.numbers.deviation
        return abs(column.numbers.mean - summary.numbers.mean) / deviation if deviation else 0.0
    if column.categories:
        names = list(summary.categories)
        own = np.array([column.categories.get(name, 0) for name in names], np.float64)
        return jensen_shannon(own, np.array(list(summary.categories.values()), np.float64))
    return 0.0


def jensen_shannon(p: Floats, q: Floats) -> float:
    """Returns the Jensen-Shannon distance of two distributions, from 0 (equal) to 1 (nothing in common).

    .. math:: d(p, q) = \\sqrt{\\tfrac12 D(p \\| m) + \\tfrac12 D(q \\| m)}, \\quad m = \\tfrac12 (p + q)

    with D the Kullback-Leibler divergence to base 2.

    Args:
        p: weights of the classes, (classes,), not negative and not all zero; they are scaled to sum to 1.
        q: weights of the classes in the other distribution.

    Source: Endres and Schindelin, "A new metric for probability distributions", IEEE Trans. Inf. Theory 49, 2003.

    >>> jensen_shannon(np.array([1.0, 0]), np.array([0, 1.0]))
    1.0
    """
    p, q = p / p.sum(), q / q.sum()
    middle = (p + q) / 2
    return float(np.sqrt(max(0.0, (_divergence(p, middle) + _divergence(q, middle)) / 2)))


def _divergence(p: Floats, q: Floats) -> float:
    support = p > 0
    return float(np.sum(p[support] * np.log2(p[support] / q[support])))


def distances(exploration: Exploration) -> Floats:
    """Returns the Jensen-Shannon distances between the label distributions of all learners, (learners, learners)."""
    counts = _counts(exploration)
    return np.array([[jensen_shannon(p, q) for q in counts] for p in counts])


def distances_from_all(exploration: Exploration) -> Floats:
    """Returns the Jensen-Shannon distances of learners' labels from those of all learners together, (learners,)."""
    counts = _counts(exploration)
    total = counts.sum(axis=0)
    return np.array([jensen_shannon(p, total) for p in counts])


def _counts(exploration: Exploration) -> Floats:
    classes = exploration.classes
    return np.array([[view.labels.get(label, 0) for label in classes] for view in exploration.views], np.float64)


def heterogeneity(exploration: Exploration) -> float:
    """Returns the mean distance of learners' labels from those of all learners together, weighted by examples.

    At 0, all learners have the same mixture. It is always below 1, because each learner is part of the whole.
    """
    weights = [view.examples for view in exploration.views]
    return float(np.average(distances_from_all(exploration), weights=weights))


HETEROGENEITY: Sequence[tuple[float, str]] = (
    (0.1, "nearly the same mixture everywhere"),
    (0.3, "learners differ: more local epochs may pull their models apart"),
    (1.0, "learners differ a lot: try fewer local epochs, a server optimizer with momentum, or FedProx"),
)
"""Upper bounds and advice for training; the bounds are fedpipe's own rule of thumb."""


def advice(value: float) -> str:
    """Returns advice on training with this heterogeneity."""
    return next(text for bound, text in HETEROGENEITY if value <= bound)
