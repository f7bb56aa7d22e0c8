"""Describes the learners' data before training: labels, features, pictures, and how much learners differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fedpipe.data.examples import Examples, classes_of, in_order, label_counts

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
    first example and the mean of all. They are empty if the examples are not pictures.
    """

    learner: str
    parts: dict[str, int]
    labels: dict[str, int]
    features: Statistics
    columns: Floats
    samples: dict[str, Floats]
    means: dict[str, Floats]

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


def view_of(learner: str, parts: Mapping[str, Examples]) -> View:
    """Describes a learner's data.

    Args:
        learner: the learner's name.
        parts: its examples: features (examples, ...), labels (examples, ...).
    """
    x = np.concatenate([part.x for part in parts.values()])
    y = np.concatenate([part.y for part in parts.values()])
    labels = label_counts(y)
    pictures = _as_pictures(x)
    samples, means = ({}, {}) if pictures is None or not labels else _pictures_by_class(pictures, y, labels)
    return View(
        learner=learner,
        parts={name: len(part.y) for name, part in parts.items()},
        labels=labels,
        features=Statistics(
            minimum=float(x.min()),
            maximum=float(x.max()),
            mean=float(x.mean(dtype=np.float64)),
            deviation=float(x.std(dtype=np.float64)),
        ),
        columns=x.mean(axis=0, dtype=np.float64) if x.ndim == 2 else np.empty(0),
        samples=samples,
        means=means,
    )


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
