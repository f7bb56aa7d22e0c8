"""A tally of predictions: counts and sums that add up over learners, however the examples were split.

Metrics of several learners are made of their added tallies, and never of means of means; see docs/evaluation.md.
Nothing is weighted: each example counts once, also when it has a sample weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal, NamedTuple

from msgspec import Meta, Struct

from fedpipe.rounds.histograms import (
    Count,
    Histogram,
    Real,
    Size,
    add_counts,
    add_histograms,
    is_canonical,
)  # fmt: skip

MOST_PICTURED = 100
"""Most classes with a confusion matrix and rankings; more are only counted."""
MOST_CLASSES = 100_000
MOST_COLUMNS = 100
"""Most columns of a regression with sums of their own; the values of more are pooled."""
STEPS = 20
"""Bins of equal width for calibration and thresholds: bin k holds probabilities in (k / STEPS, (k + 1) / STEPS]."""
MOST_BINS = 2**15
"""Most bins of the rankings of two classes; those of more classes share them."""
MOST_SHIFT = 30
MOST_CODE = 2**31

Matrix = tuple[tuple[int, ...], ...]
Task = Literal["binary", "multiclass", "multilabel", "regression", ""]
Form = Literal["probabilities", "logits", "margins"]
Counts = Annotated[tuple[Count, ...], Meta(max_length=MOST_CLASSES)]
Bins = Annotated[tuple[Count, ...], Meta(max_length=STEPS)]


class Head(NamedTuple):
    """One output of a model, as its loss takes it.

    Args:
        name: of the output.
        task: what the loss is for; empty if it is not known.
        form: of the outputs. Margins are the values that a hinge loss takes.
        width: the number of columns; 0 if an output is not a row of numbers.
    """

    name: str
    task: Task
    form: Form = "probabilities"
    width: int = 1

    @property
    def classes(self) -> int:
        """The number of classes or labels; 0 for a regression."""
        if self.task == "binary":
            return 2
        return self.width if self.task in ("multiclass", "multilabel") else 0


class Ranking(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Counts examples of a class and others by their score; empty bins are left out.

    A score's bin is the whole number that its bits in float32 form, without its last `shift` bits. So bins are in the
    order of the scores. `shift` is the smallest for which the bins are few enough: 0, unless there are many
    different scores. A bin at one shift is a part of one bin at the next, so that rankings add up exactly.
    """

    shift: Annotated[int, Meta(ge=0, le=MOST_SHIFT)]
    bins: Annotated[tuple[Annotated[int, Meta(ge=-MOST_CODE, le=MOST_CODE)], ...], Meta(max_length=MOST_BINS)]
    negatives: Annotated[tuple[Count, ...], Meta(max_length=MOST_BINS)]
    positives: Annotated[tuple[Count, ...], Meta(max_length=MOST_BINS)]


class Calibration(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Counts misses and hits by the predicted probability, in STEPS bins, and the sum of probabilities of each.

    With two classes, a hit is an example of the second. With more, the probability is that of the predicted class.
    """

    misses: Bins
    hits: Bins
    sums: Annotated[tuple[Real, ...], Meta(max_length=STEPS)]


class ClassTally(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="classes"):
    """The tally of a classifier.

    Attributes:
        true, taken, right: examples of each class, those taken for it, and those rightly so.
        confusion: counts of examples of class i taken for class j; empty for many classes, and for several labels.
        rankings: of the second of two classes, or of each class against the others.
        calibration: None if the outputs are not probabilities.
        squares: the sum of squared differences between probabilities and outcomes.
    """

    task: Literal["binary", "multiclass", "multilabel"]
    form: Form
    true: Counts
    taken: Counts
    right: Counts
    confusion: Annotated[tuple[Counts, ...], Meta(max_length=MOST_PICTURED)] = ()
    rankings: Annotated[tuple[Ranking, ...], Meta(max_length=MOST_PICTURED)] = ()
    calibration: Calibration | None = None
    squares: Size = 0.0


class Residuals(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The sums of a regression's column.

    Attributes:
        values: the number of labels.
        mean: of the labels.
        deviations: sum of the labels' squared distances from their mean.
        errors, absolutes, squares: sums of residuals, which are label minus prediction.
        residuals: their histogram.
        predictions: histogram of the predictions, with the sums of residuals by bin.
    """

    values: Count
    mean: Real
    deviations: Size
    errors: Real
    absolutes: Size
    squares: Size
    residuals: Histogram
    predictions: Histogram


class ValueTally(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="values"):
    """The tally of a regression: for each column, or for all values together."""

    columns: Annotated[tuple[Residuals, ...], Meta(max_length=MOST_COLUMNS)]
    pooled: bool = False


Tally = ClassTally | ValueTally


def most_bins(classes: int) -> int:
    """Return the most bins of a ranking, so that those of all classes together stay small."""
    return MOST_BINS if classes <= 2 else 2 * MOST_BINS // classes


def add_tallies(parts: Sequence[Tally]) -> Tally | None:
    """Return the tally of all examples together; None if they are of different kinds, or if there are none."""
    classified = [part for part in parts if isinstance(part, ClassTally)]
    regressed = [part for part in parts if isinstance(part, ValueTally)]
    if len({(part.task, len(part.true)) for part in classified}) + len({len(r.columns) for r in regressed}) != 1:
        return None
    if classified:
        return _add_classes(classified)
    columns = zip(*(part.columns for part in regressed), strict=True)
    return ValueTally(columns=tuple(map(_add_residuals, columns)), pooled=any(part.pooled for part in regressed))


def _add_classes(parts: Sequence[ClassTally]) -> ClassTally:
    calibrations = [part.calibration for part in parts if part.calibration]
    complete, classes = len(calibrations) == len(parts), len(parts[0].true)
    return ClassTally(
        task=parts[0].task, form=parts[0].form,
        true=add_counts(part.true for part in parts),
        taken=add_counts(part.taken for part in parts),
        right=add_counts(part.right for part in parts),
        confusion=add_matrices([part.confusion for part in parts]),
        rankings=tuple(add_rankings(each, classes) for each in zip(*(part.rankings for part in parts), strict=True))
        if len({len(part.rankings) for part in parts}) == 1 else (),
        calibration=Calibration(
            misses=add_counts(part.misses for part in calibrations),
            hits=add_counts(part.hits for part in calibrations),
            sums=tuple(sum(sums) for sums in zip(*(part.sums for part in calibrations), strict=True)),
        ) if complete else None,
        squares=sum(part.squares for part in parts) if complete else 0.0,
    )  # fmt: skip


def add_rankings(parts: Sequence[Ranking], classes: int) -> Ranking:
    """Return the ranking of all examples together, of a classifier of so many classes."""
    shift = max(part.shift for part in parts)
    totals: dict[int, tuple[int, int]] = {}
    for part in parts:
        for at, negatives, positives in zip(part.bins, part.negatives, part.positives, strict=True):
            before = totals.get(at >> (shift - part.shift), (0, 0))
            totals[at >> (shift - part.shift)] = (before[0] + negatives, before[1] + positives)
    bins = sorted(totals)
    merged = Ranking(
        shift=shift, bins=tuple(bins),
        negatives=tuple(totals[at][0] for at in bins), positives=tuple(totals[at][1] for at in bins),
    )  # fmt: skip
    if len(bins) <= most_bins(classes) or shift == MOST_SHIFT:
        return merged
    coarser = Ranking(shift=shift + 1, bins=(), negatives=(), positives=())
    return add_rankings([merged, coarser], classes)


def _add_residuals(parts: Sequence[Residuals]) -> Residuals:
    """Add up columns; means and deviations by the formula of Chan, Golub and LeVeque (1979), without cancellation."""
    values, mean, deviations = 0, 0.0, 0.0
    for part in parts:
        total, gap = values + part.values, part.mean - mean
        mean += gap * part.values / total
        deviations += part.deviations + gap * gap * values * part.values / total
        values = total
    return Residuals(
        values=values, mean=mean, deviations=deviations,
        errors=sum(part.errors for part in parts),
        absolutes=sum(part.absolutes for part in parts),
        squares=sum(part.squares for part in parts),
        residuals=add_histograms([part.residuals for part in parts]),
        predictions=add_histograms([part.predictions for part in parts]),
    )  # fmt: skip


def add_matrices(matrices: Sequence[Matrix]) -> Matrix:
    """Return the sum of confusion matrices of one size; empty when sizes differ or there are none.

    >>> add_matrices([((1, 0), (2, 3)), ((1, 1), (0, 0))])
    ((2, 1), (2, 3))
    """
    sizes = {tuple(len(row) for row in m) for m in matrices}
    if len(sizes) != 1 or () in sizes:
        return ()
    return tuple(tuple(sum(cells) for cells in zip(*rows, strict=True)) for rows in zip(*matrices, strict=True))


def size_of_tally(found: Tally) -> float:
    """Return the largest number in a tally that is added to those of others."""
    if isinstance(found, ClassTally):
        return max((*found.true, *found.taken, found.squares))
    numbers = [(c.values, c.mean, c.deviations, c.errors, c.absolutes, c.squares) for c in found.columns]
    sums = [number for column in found.columns for number in (*column.predictions.sums, *column.predictions.squares)]
    return max(map(abs, (*sums, *(number for column in numbers for number in column))), default=0.0)


def mistake_in(found: Tally, head: Head, examples: int) -> str:
    """Return why another party's tally of an output cannot be right; empty if they may be.

    Args:
        found: the tally.
        head: the output.
        examples: the number of examples that the party has tested.
    """
    if isinstance(found, ValueTally):
        if head.task not in ("regression", ""):
            return "they are those of a regression"
        return _mistake_in_columns(found, head, examples)
    if (found.task, found.form, len(found.true)) != (head.task, head.form, head.classes):
        return f"they are those of another classifier than one of {head.classes} classes"
    return _mistake_in_counts(found, head, examples) or _mistake_in_scores(found, examples)


def _mistake_in_counts(found: ClassTally, head: Head, examples: int) -> str:
    classes = head.classes
    if {len(found.taken), len(found.right)} != {classes}:
        return "counts of classes are missing"
    if any(right > min(true, taken) for true, taken, right in zip(found.true, found.taken, found.right, strict=True)):
        return "more examples are right than there are"
    if found.task == "multilabel":
        return "" if max((*found.true, *found.taken), default=0) <= examples else "labels exceed the examples"
    if not sum(found.true) == sum(found.taken) == examples:
        return "the counts of classes do not add up to the examples"
    expected = classes if classes <= MOST_PICTURED else 0
    if len(found.confusion) != expected or any(len(row) != expected for row in found.confusion):
        return "the confusion matrix has another size"
    if not expected:
        return ""
    rows, columns = tuple(map(sum, found.confusion)), add_counts(found.confusion)
    diagonal = tuple(row[k] for k, row in enumerate(found.confusion))
    matches = (rows, columns, diagonal) == (found.true, found.taken, found.right)
    return "" if matches else "the confusion matrix does not match the counts of classes"


def _mistake_in_scores(found: ClassTally, examples: int) -> str:
    wanted = 1 if found.task == "binary" else len(found.true)
    if len(found.rankings) not in (0, wanted if wanted <= MOST_PICTURED else 0):
        return "rankings are missing"
    positives = found.true[1:] if found.task == "binary" else found.true
    for ranking, expected in zip(found.rankings, positives, strict=False):
        sizes = {len(ranking.bins), len(ranking.negatives), len(ranking.positives)}
        ascending = all(a < b for a, b in zip(ranking.bins, ranking.bins[1:], strict=False))
        if len(sizes) != 1 or not ascending or len(ranking.bins) > most_bins(len(found.true)):
            return "a ranking is malformed"
        if any(p + n == 0 for p, n in zip(ranking.positives, ranking.negatives, strict=True)):
            return "a ranking has an empty bin"
        if sum(ranking.positives) != expected or sum(ranking.negatives) != examples - expected:
            return "a ranking does not add up to the examples"
    if (table := found.calibration) is None:
        return ""
    if {len(table.misses), len(table.hits), len(table.sums)} != {STEPS}:
        return "the calibration is malformed"
    scored = examples * (len(found.true) if found.task == "multilabel" else 1)
    if sum(table.misses) + sum(table.hits) != scored or found.squares > 2 * scored:
        return "the calibration does not add up to the examples"
    for k, (misses, hits, total) in enumerate(zip(table.misses, table.hits, table.sums, strict=True)):
        count = misses + hits
        if not count * k / STEPS - 1e-3 * count <= total <= count * (k + 1) / STEPS + 1e-3 * count:
            return "a sum of probabilities is out of range"
    return ""


def _mistake_in_columns(found: ValueTally, head: Head, examples: int) -> str:
    columns = head.width if 0 < head.width <= MOST_COLUMNS else 1
    if len(found.columns) != columns or found.pooled != (columns != head.width):
        return "the columns are not those of the model"
    for column in found.columns:
        fits = column.values % examples == 0 if found.pooled else column.values == examples
        counted = column.residuals.count == column.predictions.count == column.values
        if not fits or not counted or not column.values:
            return "the values do not add up to the examples"
        canonical = is_canonical(column.residuals, summed=False) and is_canonical(column.predictions, summed=True)
        if not canonical or abs(column.errors) > column.absolutes * (1 + 1e-6):
            return "a histogram is malformed"
        if column.absolutes * column.absolutes > column.squares * column.values * (1 + 1e-6):
            return "the sums of residuals contradict each other"
    return ""
