"""Turn predictions and labels into tallies, which add up over learners."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

from fedpipe.rounds.histograms import histogram_of
from fedpipe.rounds.tallies import (
    MOST_CLASSES,
    MOST_COLUMNS,
    MOST_PICTURED,
    STEPS,
    Calibration,
    ClassTally,
    Head,
    Ranking,
    Residuals,
    Tally,
    ValueTally,
    add_rankings,
    add_tallies,
)  # fmt: skip
from fedpipe.weights import Array

Floats = npt.NDArray[np.float64]
Whole = npt.NDArray[np.int64]
_EDGES = np.arange(1, STEPS) / STEPS
_WAITING = 2**20
"""Scores that wait before they are counted together."""
_SLACK = 1e-3
"""Probabilities in half precision may leave [0, 1], or miss the sum of 1, by this much."""
_COARSE_SLACK = {"bfloat16": 1e-2}
"""More of it, by the dtype of the outputs."""


class Counter(Protocol):
    """Counts the predictions of one output, batch by batch."""

    def add(self, outputs: Array, labels: Array) -> None:
        """Add a batch. Raises ValueError with the reason why its examples cannot be counted."""

    def tally(self) -> Tally | None:
        """Return the tally of all batches; None if there was none."""


def counter_of(head: Head) -> Counter:
    """Return a counter for an output of a model."""
    return ResidualCounter(head) if head.task in ("regression", "") else ClassCounter(head)


def _numbers(values: Array, what: str) -> Floats:
    """Return rows of finite numbers, (examples, columns)."""
    if values.dtype.kind not in "fiub" and values.dtype.name != "bfloat16":
        raise ValueError(f"the {what} are not numbers")
    rows = values.reshape(len(values), -1).astype(np.float64)
    if not np.isfinite(rows).all():
        raise ValueError(f"the {what} are not finite")
    return rows


class ClassCounter:
    """Counts classes, rankings and calibration.

    Args:
        head: an output for classes or labels.
    """

    def __init__(self, head: Head) -> None:
        self._head, self._classes = head, head.classes
        if self._classes > MOST_CLASSES:
            raise ValueError(f"there are more than {MOST_CLASSES} classes")
        size = self._classes
        self._pictured = size <= MOST_PICTURED
        self._counts = np.zeros((3, size), np.int64)
        self._confusion = np.zeros((size, size) if self._pictured and head.task != "multilabel" else (0, 0), np.int64)
        ranked = 1 if head.task == "binary" else size if self._pictured else 0
        self._ranked = Ranks(ranked, size)
        self._calibration = np.zeros((3, STEPS))
        self._squares, self._edges = 0.0, _EDGES
        self._ranks = True
        self._calibrates = head.form != "margins"
        self._seen = False

    def add(self, outputs: Array, labels: Array) -> None:
        """See `Counter.add`."""
        rows = _numbers(outputs, "outputs")
        expected = {1, 2} if self._head.task == "binary" else {self._classes}
        if outputs.ndim > 2 and outputs.shape[1:] != (rows.shape[1],) + (1,) * (outputs.ndim - 2):
            raise ValueError("an output is not a row of numbers")
        if rows.shape[1] not in expected:
            raise ValueError(f"there are {rows.shape[1]} columns for {self._classes} classes")
        truth = self._truth(labels, len(rows))
        if self._head.form == "probabilities" and outputs.dtype.kind not in "iub":
            self._edges = _EDGES.astype(outputs.dtype).astype(np.float64)  # 0.1 in float32 is not above 0.1
        scores, shares = self._scaled(rows, _COARSE_SLACK.get(outputs.dtype.name, _SLACK))
        self._seen = True
        if self._head.task == "multilabel":
            self._add_labels(truth, scores, shares)
        else:
            self._add_classes(truth, scores, shares)

    def _truth(self, labels: Array, count: int) -> Whole:
        """Return class numbers (examples,), or 0 and 1 for each label (examples, labels)."""
        rows = _numbers(labels, "labels")
        if len(rows) != count:
            raise ValueError("labels and outputs differ in length")
        if self._head.task == "multilabel":
            if rows.shape[1] != self._classes or not np.isin(rows, (0, 1)).all():
                raise ValueError("the labels are not 0 and 1 for each output")
            return rows.astype(np.int64)
        if rows.shape[1] == self._classes > 1:
            return np.asarray(np.argmax(rows, axis=1))
        if rows.shape[1] != 1:
            raise ValueError(f"the labels have {rows.shape[1]} columns for {self._classes} classes")
        column = rows[:, 0]
        if self._head.form == "margins" and self._classes == 2 and not (column == 0).any():
            column = np.where(column == -1, 0, column)
        if not np.isin(column, range(self._classes)).all() if self._classes <= 2 else (
            (column != np.floor(column)).any() or column.min() < 0 or column.max() >= self._classes
        ):  # fmt: skip
            raise ValueError(f"the labels are not classes from 0 to {self._classes - 1}")
        return column.astype(np.int64)

    def _scaled(self, rows: Floats, slack: float) -> tuple[Floats, Floats]:
        """Return scores for rankings, and probabilities for counts: one column for two classes."""
        form, task = self._head.form, self._head.task
        several = task == "multiclass" or (task == "binary" and rows.shape[1] == 2)
        if form == "margins":
            return self._one(rows, (rows > 0).astype(np.float64) if task == "binary" else rows)
        if form == "logits":
            if not several:
                return rows, 1 / (1 + np.exp(-np.clip(rows, -700, 700)))
            shares = np.exp(rows - rows.max(axis=1, keepdims=True))
            shares /= shares.sum(axis=1, keepdims=True)
            odds = rows[:, 1:] - rows[:, :1] if task == "binary" else shares
            return self._one(odds, shares)
        outside = rows.min() < -slack or rows.max() > 1 + slack
        if outside or (several and np.abs(rows.sum(axis=1) - 1).max() > slack * max(1, rows.shape[1] / 10)):
            self._ranks = self._calibrates = False
            return self._one(rows, rows)
        return self._one(rows, np.clip(rows, 0, 1))

    def _one(self, scores: Floats, shares: Floats) -> tuple[Floats, Floats]:
        """Keep the second column of a binary classifier with two."""
        return (scores[:, -1:], shares[:, -1:]) if self._head.task == "binary" else (scores, shares)

    def _add_classes(self, truth: Whole, scores: Floats, shares: Floats) -> None:
        binary = self._head.task == "binary"
        taken = (shares[:, 0] > 0.5).astype(np.int64) if binary else np.argmax(shares, axis=1)
        right = truth == taken
        for row, classes in enumerate((truth, taken, truth[right])):
            self._counts[row] += np.bincount(classes, minlength=self._classes)
        if self._confusion.size:
            np.add.at(self._confusion, (truth, taken), 1)
        hot = truth[:, None] == (1 if binary else np.arange(self._classes))
        self._rank(scores, hot)
        if self._calibrates:
            chosen = shares[:, 0] if binary else shares.max(axis=1)
            self._calibrate(chosen, hot[:, 0] if binary else right)
            self._squares += float(np.square(shares - hot).sum())

    def _add_labels(self, truth: Whole, scores: Floats, shares: Floats) -> None:
        taken = shares > 0.5
        for row, marks in enumerate((truth, taken, truth * taken)):
            self._counts[row] += marks.sum(axis=0).astype(np.int64)
        self._rank(scores, truth == 1)
        if self._calibrates:
            self._calibrate(shares.reshape(-1), truth.reshape(-1) == 1)
            self._squares += float(np.square(shares - truth).sum())

    def _rank(self, scores: Floats, hot: npt.NDArray[np.bool_]) -> None:
        if self._ranks:
            self._ranked.add(scores, hot)

    def _calibrate(self, shares: Floats, hits: npt.NDArray[np.bool_]) -> None:
        at = np.searchsorted(self._edges, shares, side="left")
        self._calibration[0] += np.bincount(at[~hits], minlength=STEPS)
        self._calibration[1] += np.bincount(at[hits], minlength=STEPS)
        self._calibration[2] += np.bincount(at, shares, STEPS)

    def tally(self) -> Tally | None:
        """See `Counter.tally`."""
        if not self._seen:
            return None
        true, taken, right = (tuple(row) for row in self._counts.tolist())
        misses, hits, sums = self._calibration.tolist()
        calibration = Calibration(misses=tuple(map(int, misses)), hits=tuple(map(int, hits)), sums=tuple(sums))
        task = self._head.task
        assert task in ("binary", "multiclass", "multilabel")
        return ClassTally(
            task=task, form=self._head.form, true=true, taken=taken, right=right,
            confusion=tuple(tuple(row) for row in self._confusion.tolist()),
            rankings=self._ranked.rankings() if self._ranks else (),
            calibration=calibration if self._calibrates else None,
            squares=self._squares if self._calibrates else 0.0,
        )  # fmt: skip


class Ranks:
    """Counts examples by score, for each class.

    Args:
        columns: classes that are ranked.
        classes: of the classifier.
    """

    def __init__(self, columns: int, classes: int) -> None:
        self._classes = classes
        self._rankings = [Ranking(shift=0, bins=(), negatives=(), positives=())] * columns
        self._waiting: list[tuple[Whole, npt.NDArray[np.bool_]]] = []

    def add(self, scores: Floats, hot: npt.NDArray[np.bool_]) -> None:
        """Add a batch: scores and membership in the class, both (examples, columns)."""
        columns = len(self._rankings)
        self._waiting.append((codes_of(scores[:, :columns]), hot[:, :columns]))
        if sum(codes.size for codes, _ in self._waiting) > _WAITING:
            self._count()

    def _count(self) -> None:
        codes, hot = (np.concatenate(parts) for parts in zip(*self._waiting, strict=True))
        self._waiting = []
        for k, before in enumerate(self._rankings):
            bins, at = np.unique(codes[:, k], return_inverse=True)
            counts = [np.bincount(at[chosen], minlength=len(bins)).tolist() for chosen in (~hot[:, k], hot[:, k])]
            new = Ranking(shift=0, bins=tuple(bins.tolist()), negatives=tuple(counts[0]), positives=tuple(counts[1]))
            self._rankings[k] = add_rankings([before, new], self._classes)

    def rankings(self) -> tuple[Ranking, ...]:
        """Return the ranking of each class."""
        if self._waiting:
            self._count()
        return tuple(self._rankings)


def codes_of(scores: Floats) -> Whole:
    """Return whole numbers in the order of scores: their bits in float32.

    >>> codes_of(np.array([-1.0, -0.0, 0.0, 0.5])).tolist()
    [-1065353216, 0, 0, 1056964608]
    """
    limit = np.finfo(np.float32).max
    bits = np.clip(scores, -limit, limit).astype(np.float32).view(np.int32).astype(np.int64)
    return np.where(bits < 0, -(bits & 0x7FFFFFFF), bits)


class ResidualCounter:
    """Sums up residuals.

    Args:
        head: an output for numbers, or one whose loss is not known.
    """

    def __init__(self, head: Head) -> None:
        self._head = head
        self._found: Tally | None = None

    def add(self, outputs: Array, labels: Array) -> None:
        """See `Counter.add`."""
        if not self._head.task and labels.dtype.kind != "f":
            raise ValueError("its loss is not known")
        predicted, expected = _numbers(outputs, "outputs"), _numbers(labels, "labels")
        if predicted.shape != expected.shape:
            raise ValueError(f"labels {labels.shape[1:]} and outputs {outputs.shape[1:]} differ in shape")
        if max(np.abs(predicted).max(), np.abs(expected).max()) > 1e90:
            raise ValueError("the numbers are too large")
        pooled = not 0 < self._head.width <= MOST_COLUMNS
        if pooled:
            predicted, expected = predicted.reshape(-1, 1), expected.reshape(-1, 1)
        columns = tuple(_residuals_of(predicted[:, k], expected[:, k]) for k in range(predicted.shape[1]))
        found = ValueTally(columns=columns, pooled=pooled)
        self._found = add_tallies([self._found, found]) if self._found else found

    def tally(self) -> Tally | None:
        """See `Counter.tally`."""
        return self._found


def _residuals_of(predicted: Floats, expected: Floats) -> Residuals:
    residuals, mean = expected - predicted, float(expected.mean())
    return Residuals(
        values=len(expected), mean=mean, deviations=float(np.square(expected - mean).sum()),
        errors=float(residuals.sum()), absolutes=float(np.abs(residuals).sum()),
        squares=float(np.square(residuals).sum()),
        residuals=histogram_of(residuals), predictions=histogram_of(predicted, residuals),
    )  # fmt: skip
