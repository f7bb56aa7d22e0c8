"""Tallies of predictions: scikit-learn is the oracle, and examples may be split over learners in any way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import ml_dtypes
import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as oracle

from fedpipe.learners.tallying import counter_of
from fedpipe.rounds.histograms import add_histograms, coarsened, histogram_of
from fedpipe.rounds.measures import (
    area,
    average_precision,
    best_threshold,
    by_class,
    calibration_error,
    measure,
    precision_recall,
    roc,
    thresholds,
)  # fmt: skip
from fedpipe.rounds.tallies import (
    ClassTally,
    Head,
    Tally,
    ValueTally,
    add_tallies,
    mistake_in,
)  # fmt: skip

RNG = np.random.default_rng(5)
BINARY = Head("", "binary")
THREE = Head("", "multiclass", width=3)
LABELS = Head("", "multilabel", width=3)
VALUES = Head("", "regression", width=1)


def of(head: Head, outputs: Any, labels: Any) -> Any:
    counter = counter_of(head)
    counter.add(np.asarray(outputs), np.asarray(labels))
    return counter.tally()


def binary(count: int, sharpness: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities that know something, in float32 as a model gives them, with ties."""
    y = RNG.integers(0, 2, count)
    odds = sharpness * (RNG.normal(size=count) + y - 0.5)
    p = (1 / (1 + np.exp(-odds))).astype(np.float32)
    p[: count // 5] = np.round(p[: count // 5], 1)
    return p[:, None], y


def softmax(z: np.ndarray) -> np.ndarray:
    shares = np.exp(z - z.max(axis=1, keepdims=True))
    return shares / shares.sum(axis=1, keepdims=True)


class TestBinary:
    @pytest.mark.parametrize("sharpness", [0.1, 1.0, 6.0])
    def test_the_oracle_agrees(self, sharpness: float) -> None:
        p, y = binary(700, sharpness)
        found = of(BINARY, p, y)
        measured, taken = measure(found), p[:, 0] > 0.5
        auc, error = area(found.rankings[0])
        exact = oracle.roc_auc_score(y, p[:, 0])
        assert measured["auc"] == auc == pytest.approx(exact, rel=1e-12)
        assert error >= 0
        assert measured["average_precision"] == pytest.approx(oracle.average_precision_score(y, p[:, 0]))
        assert measured["accuracy"] == pytest.approx(oracle.accuracy_score(y, taken))
        assert measured["precision"] == pytest.approx(oracle.precision_score(y, taken))
        assert measured["recall"] == pytest.approx(oracle.recall_score(y, taken))
        assert measured["f1"] == pytest.approx(oracle.f1_score(y, taken))
        assert measured["f1_macro"] == pytest.approx(oracle.f1_score(y, taken, average="macro"))
        assert measured["brier"] == pytest.approx(oracle.brier_score_loss(y, p[:, 0]))
        np.testing.assert_array_equal(found.confusion, oracle.confusion_matrix(y, taken))
        first, second = by_class(found)
        assert (first.auc, second.auc) == (auc, auc)
        assert first.average_precision == pytest.approx(oracle.average_precision_score(1 - y, -p[:, 0]))

    def test_many_scores_share_bins_within_the_bound(self) -> None:
        y = RNG.integers(0, 2, 200_000)
        p = 1 / (1 + np.exp(-RNG.normal(size=len(y)) - y)).astype(np.float32)
        counter = counter_of(BINARY)
        for start in range(0, len(y), 70_000):
            counter.add(p[start : start + 70_000], y[start : start + 70_000])
        found = counter.tally()
        assert isinstance(found, ClassTally)
        assert mistake_in(found, BINARY, len(y)) == ""
        auc, error = area(found.rankings[0])
        assert found.rankings[0].shift > 0
        assert len(found.rankings[0].bins) > 2**13
        assert 0 < abs(auc - oracle.roc_auc_score(y, p)) <= error < 1e-4
        together = add_tallies([of(BINARY, p[a:b], y[a:b]) for a, b in ((0, 50_000), (50_000, 200_000))])
        assert isinstance(together, ClassTally)
        assert together.rankings == found.rankings

    def test_scores_in_bins_of_their_own_are_exact(self) -> None:
        p, y = np.linspace(0.01, 0.99, 99), RNG.integers(0, 2, 99)
        (ranking,) = of(BINARY, p, y).rankings
        assert area(ranking) == (pytest.approx(oracle.roc_auc_score(y, p), rel=1e-12), 0.0)
        assert average_precision(ranking) == pytest.approx(oracle.average_precision_score(y, p), rel=1e-12)

    def test_equal_scores_count_half(self) -> None:
        assert area(of(BINARY, np.full(10, 0.3), [0] * 5 + [1] * 5).rankings[0])[0] == 0.5

    @pytest.mark.parametrize("labels", [[0, 0, 0], [1, 1, 1]])
    def test_one_class_has_no_area(self, labels: list[int]) -> None:
        assert "auc" not in measure(of(BINARY, [0.2, 0.6, 0.9], labels))

    def test_thresholds_are_those_of_the_predictions(self) -> None:
        p, y = binary(400)
        table = thresholds(of(BINARY, p, y))
        assert [line.above for line in table] == pytest.approx(np.arange(1, 20) / 20)
        for line in table:
            taken = p[:, 0] > line.above
            assert line.recall == pytest.approx(oracle.recall_score(y, taken))
            assert line.specificity == pytest.approx(oracle.recall_score(y, taken, pos_label=0))
            assert (line.precision or 0.0) == pytest.approx(oracle.precision_score(y, taken, zero_division=0))
            assert line.f1 == pytest.approx(oracle.f1_score(y, taken))

    def test_the_best_threshold_has_the_highest_f1(self) -> None:
        p, y = binary(300)
        above, f1 = best_threshold(of(BINARY, p, y)) or (0.0, 0.0)
        assert f1 == pytest.approx(max(oracle.f1_score(y, p[:, 0] >= t) for t in np.unique(p)))
        assert oracle.f1_score(y, p[:, 0] >= np.float32(above)) == pytest.approx(f1)

    def test_calibration(self) -> None:
        p, y = binary(5000)
        expected = 0.0
        for k in range(20):
            inside = (p[:, 0] > k / 20) & (p[:, 0] <= (k + 1) / 20)
            if inside.any():
                expected += inside.mean() * abs(y[inside].mean() - p[inside, 0].astype(np.float64).mean())
        assert calibration_error(of(BINARY, p, y).calibration) == pytest.approx(expected)

    def test_curves_run_from_corner_to_corner(self) -> None:
        (ranking,) = of(BINARY, *binary(3000)).rankings
        points = roc(ranking).points
        assert (points[0], points[-1]) == ((0.0, 0.0), (1.0, 1.0))
        assert len(points) <= 402
        assert all(a[0] <= b[0] and a[1] <= b[1] for a, b in pairwise(points))
        area_of_points = np.trapezoid([y for _, y in points], [x for x, _ in points])
        assert area_of_points == pytest.approx(area(ranking)[0], abs=5e-3)
        assert precision_recall(ranking).points[-1][0] == 1.0

    @pytest.mark.parametrize(
        ("outputs", "labels", "head"),
        [
            (lambda p: p[:, 0], lambda y: y, BINARY),
            (lambda p: np.hstack([1 - p, p]), lambda y: y, BINARY._replace(width=2)),
            (lambda p: np.hstack([1 - p, p]), lambda y: np.eye(2)[y], BINARY._replace(width=2)),
            (lambda p: p, lambda y: y[:, None].astype(np.float32), BINARY),
            (lambda p: p, lambda y: y == 1, BINARY),
            (lambda p: np.log(p / (1 - p)), lambda y: y, BINARY._replace(form="logits")),
            (lambda p: np.log(np.hstack([1 - p, p])), lambda y: y, BINARY._replace(width=2, form="logits")),
        ],
    )
    def test_every_form_of_outputs_and_labels(
        self, outputs: Callable[..., Any], labels: Callable[..., Any], head: Head
    ) -> None:
        p, y = np.clip(binary(200)[0].astype(np.float64), 0.01, 0.99), RNG.integers(0, 2, 200)
        expected = measure(of(BINARY, p, y))
        assert measure(of(head, outputs(p), labels(y))) == pytest.approx(expected, abs=1e-6)

    @pytest.mark.parametrize("signs", [False, True])
    def test_margins_rank_but_are_not_calibrated(self, signs: bool) -> None:
        y = RNG.integers(0, 2, 100)
        margins = np.tanh(RNG.normal(size=100) + y)
        found = of(Head("", "binary", "margins"), margins, y * 2 - 1 if signs else y)
        assert measure(found)["auc"] == pytest.approx(oracle.roc_auc_score(y, margins))
        assert measure(found)["accuracy"] == pytest.approx(np.mean((margins > 0) == y))
        assert "brier" not in measure(found)

    def test_outputs_that_are_not_probabilities_are_only_counted(self) -> None:
        found = of(BINARY, [-0.5, 0.2, 3.0, 0.7], [0, 0, 1, 0])
        assert found.confusion == ((2, 1), (0, 1))
        assert (found.rankings, found.calibration) == ((), None)
        assert measure(found)["precision"] == 0.5
        assert thresholds(found) == []


class TestClasses:
    def test_the_oracle_agrees(self) -> None:
        y = RNG.integers(0, 3, 600)
        p = softmax(RNG.normal(size=(600, 3)) + 1.5 * np.eye(3)[y]).astype(np.float32)
        found = of(THREE, p, y)
        measured, taken = measure(found), p.argmax(axis=1)
        expected = oracle.precision_recall_fscore_support(y, taken)
        for k, line in enumerate(by_class(found)):
            assert (line.precision, line.recall, line.f1, line.examples) == pytest.approx([row[k] for row in expected])
            assert line.auc == pytest.approx(oracle.roc_auc_score(y == k, p[:, k]))
        assert measured["auc_macro"] == pytest.approx(
            oracle.roc_auc_score(y, softmax(np.log(p.astype(np.float64))), multi_class="ovr"), abs=1e-7
        )
        for name in ("precision", "recall", "f1"):
            function = getattr(oracle, f"{name}_score")
            assert measured[f"{name}_macro"] == pytest.approx(function(y, taken, average="macro"))
        assert measured["brier"] == pytest.approx(np.square(p - np.eye(3)[y]).sum(axis=1).mean())

    def test_classes_that_do_not_occur_do_not_count(self) -> None:
        y, taken = [0, 0, 1, 1], [0, 1, 1, 1]
        found = measure(of(THREE, np.eye(3)[taken], y))
        assert found["f1_macro"] == pytest.approx(oracle.f1_score(y, taken, average="macro"))
        assert found["auc_macro"] == pytest.approx(0.75)

    def test_many_classes_are_counted_without_a_matrix(self) -> None:
        y = RNG.integers(0, 300, 900)
        taken = np.where(RNG.random(900) < 0.5, y, RNG.integers(0, 300, 900))
        found = of(Head("", "multiclass", width=300), np.eye(300)[taken], y)
        assert (found.confusion, found.rankings) == ((), ())
        assert measure(found)["f1_macro"] == pytest.approx(oracle.f1_score(y, taken, average="macro"))
        assert measure(found)["accuracy"] == pytest.approx(np.mean(y == taken))

    def test_several_labels(self) -> None:
        y = RNG.integers(0, 2, (400, 3))
        p = 1 / (1 + np.exp(-(RNG.normal(size=(400, 3)) + y)))
        found = of(LABELS, p, y)
        measured = measure(found)
        assert measured["f1_macro"] == pytest.approx(oracle.f1_score(y, p > 0.5, average="macro"))
        assert measured["auc_macro"] == pytest.approx(oracle.roc_auc_score(y, p, average="macro"))
        assert measured["brier"] == pytest.approx(np.square(p - y).mean())
        assert found.confusion == ()
        assert mistake_in(found, LABELS, 400) == ""


class TestValues:
    @pytest.mark.parametrize("shift", [0.0, 1e6])
    def test_the_oracle_agrees(self, shift: float) -> None:
        y = RNG.normal(size=500) * 3 + shift
        p = y + RNG.normal(size=500)
        measured = measure(of(VALUES, p[:, None], y))
        assert measured["r2"] == pytest.approx(oracle.r2_score(y, p))
        assert measured["mae"] == pytest.approx(oracle.mean_absolute_error(y, p))
        assert measured["rmse"] == pytest.approx(oracle.root_mean_squared_error(y, p))
        assert measured["bias"] == pytest.approx(np.mean(y - p), abs=1e-9)

    def test_several_columns_are_averaged(self) -> None:
        y = RNG.normal(size=(300, 4)) * [1, 10, 100, 1000]
        p = y + RNG.normal(size=(300, 4))
        measured = measure(of(Head("", "regression", width=4), p, y))
        assert measured["r2"] == pytest.approx(oracle.r2_score(y, p))
        assert measured["mae"] == pytest.approx(oracle.mean_absolute_error(y, p))
        assert measured["rmse"] == pytest.approx(oracle.root_mean_squared_error(y, p))

    def test_pictures_are_pooled(self) -> None:
        y = RNG.normal(size=(10, 20, 20, 1))
        head = Head("", "regression", width=0)
        found = of(head, y + 1, y)
        assert (found.pooled, found.columns[0].values) == (True, 4000)
        assert measure(found)["mae"] == pytest.approx(1.0)
        assert mistake_in(found, head, 10) == ""

    def test_equal_labels_have_no_r2(self) -> None:
        assert "r2" not in measure(of(VALUES, [1.0, 2.0], [3.0, 3.0]))

    def test_residuals_are_counted(self) -> None:
        y = RNG.normal(size=1000) * 40 + 300
        p = y + RNG.normal(size=1000)
        (column,) = of(VALUES, p, y).columns
        counts, _ = np.histogram(y - p, bins=column.residuals.edges)
        assert column.residuals.counts == tuple(counts)
        counts, _ = np.histogram(p, bins=column.predictions.edges)
        assert column.predictions.counts == tuple(counts)
        assert len(column.predictions.counts) > 30
        fewer = coarsened(column.predictions, 10)
        assert (len(fewer.counts) <= 10, fewer.count, sum(fewer.sums)) == (True, 1000, pytest.approx(column.errors))
        assert sum(column.predictions.sums) == pytest.approx(column.errors)


@pytest.mark.parametrize(
    ("head", "outputs", "labels", "why"),
    [
        (BINARY, [0.1, np.nan], [0, 1], "the outputs are not finite"),
        (BINARY, [0.1, 0.2], [0, 2], "the labels are not classes from 0 to 1"),
        (BINARY, [0.1, 0.2], [0.5, 0.1], "the labels are not classes from 0 to 1"),
        (BINARY, [[0.1, 0.2, 0.7]], [0], "there are 3 columns for 2 classes"),
        (THREE, np.eye(3), [0, 1, 3], "the labels are not classes from 0 to 2"),
        (THREE, np.eye(3), [0, 1, -1], "the labels are not classes"),
        (THREE, np.eye(3), [0, 1, 0.5], "the labels are not classes"),
        (THREE, np.eye(3), np.eye(3)[:, :2], "the labels have 2 columns for 3 classes"),
        (THREE, np.eye(3), [0, 1], "labels and outputs differ in length"),
        (THREE, np.zeros((2, 4, 3)), [[0] * 4] * 2, "an output is not a row of numbers"),
        (LABELS, np.eye(3), [0, 1, 2], "the labels are not 0 and 1 for each output"),
        (VALUES, [[1.0]] * 3, np.zeros((3, 2)), "differ in shape"),
        (VALUES, [1.0], np.array(["x"], object), "the labels are not numbers"),
        (Head("", ""), [1.0], np.array([1]), "its loss is not known"),
        (VALUES, [1e95], [0.0], "the numbers are too large"),
    ],
)
def test_examples_without_a_tally_say_why(head: Head, outputs: Any, labels: Any, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        of(head, outputs, labels)


@pytest.mark.parametrize("dtype", ["float16", ml_dtypes.bfloat16])
def test_probabilities_of_low_precision_are_ranked_and_calibrated(dtype: Any) -> None:
    """Their sum misses 1 by the rounding of the largest."""
    y = RNG.integers(0, 3, 500)
    p = softmax(RNG.normal(size=(500, 3)) + 2 * np.eye(3)[y]).astype(dtype)
    found = of(THREE, p, y)
    assert found.calibration is not None
    exact = [oracle.roc_auc_score(y == k, p[:, k].astype(float)) for k in range(3)]
    assert measure(found)["auc_macro"] == pytest.approx(np.mean(exact), rel=1e-12)
    edge = np.array([[0.1], [0.9]], dtype)  # in bfloat16 above 0.1, and not in another bin for that
    assert (
        of(BINARY, edge, np.array([0, 1])).calibration.hits
        == of(BINARY, edge.astype("f8").round(1), [0, 1]).calibration.hits
    )


def test_a_tally_without_examples_has_none() -> None:
    assert [counter_of(head).tally() for head in (BINARY, THREE, LABELS, VALUES)] == [None] * 4


CASES: dict[str, tuple[Head, Callable[[int], tuple[Any, Any]]]] = {
    "binary": (BINARY, binary),
    "three": (THREE, lambda n: (softmax(RNG.normal(size=(n, 3))), RNG.integers(0, 3, n))),
    "labels": (LABELS, lambda n: (RNG.random((n, 3)), RNG.integers(0, 2, (n, 3)))),
    "values": (VALUES, lambda n: (RNG.normal(size=(n, 1)) * 10 ** RNG.uniform(-3, 3), RNG.normal(size=n) - 7)),
    "columns": (Head("", "regression", width=2), lambda n: (RNG.normal(size=(n, 2)), RNG.normal(size=(n, 2)))),
}


def assert_alike(found: Any, expected: Any) -> None:
    """Counts are equal, and sums of floats are close."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            assert_alike(found[key], value)
    elif isinstance(expected, list | tuple) and expected and isinstance(expected[0], dict | list | tuple):
        for one, other in zip(found, expected, strict=True):
            assert_alike(one, other)
    elif isinstance(expected, float) or (
        isinstance(expected, list | tuple) and any(isinstance(v, float) for v in expected)
    ):
        assert found == pytest.approx(expected, rel=1e-9, abs=1e-9)
    else:
        assert found == expected


@settings(max_examples=25, deadline=None)
@given(
    case=st.sampled_from(sorted(CASES)),
    count=st.integers(2, 80),
    cuts=st.lists(st.integers(1, 79), max_size=5),
    order=st.randoms(use_true_random=False),
    seed=st.integers(0, 2**32),
)
def test_a_split_over_learners_changes_nothing(case: str, count: int, cuts: list[int], order: Any, seed: int) -> None:
    RNG.bit_generator.state = np.random.default_rng(seed).bit_generator.state
    head, make = CASES[case]
    outputs, labels = make(count)
    whole = of(head, outputs, labels)
    bounds = sorted({0, count, *(cut for cut in cuts if cut < count)})
    parts = [of(head, outputs[a:b], labels[a:b]) for a, b in pairwise(bounds)]
    for part, (a, b) in zip(parts, pairwise(bounds), strict=True):
        assert mistake_in(part, head, b - a) == ""
    order.shuffle(parts)
    together = add_tallies(parts)
    assert together is not None
    assert_alike(msgspec.to_builtins(together), msgspec.to_builtins(whole))
    assert measure(together) == pytest.approx(measure(whole), rel=1e-9, abs=1e-9)
    decoded = msgspec.json.decode(msgspec.json.encode(together), type=Tally)
    assert decoded == together


FLOATS = st.one_of(
    st.floats(-1e99, 1e99), st.floats(-1, 1), st.integers(-1000, 1000).map(float), st.sampled_from([0.0, -0.0, 5e-324])
)


@settings(max_examples=200, deadline=None)
@given(values=st.lists(FLOATS, min_size=1, max_size=30), cut=st.integers(0, 30))
def test_histograms_add_up_exactly(values: list[float], cut: int) -> None:
    whole = histogram_of(np.array(values))
    parts = [histogram_of(np.array(part)) for part in (values[:cut], values[cut:]) if part]
    assert add_histograms(parts) == whole
    assert whole.count == len(values)
    assert len(whole.counts) <= 64
    assert msgspec.json.decode(msgspec.json.encode(whole), type=type(whole)) == whole


def changed(value: Any, path: Sequence[Any], new: Any) -> Any:
    """A copy of nested builtins with one value replaced."""
    head, *rest = path
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[head] = changed(copy[head], rest, new) if rest else new
    return copy


@pytest.mark.parametrize(
    ("case", "path", "new", "why"),
    [
        ("binary", ["true", 0], 99, "the counts of classes do not add up"),
        ("binary", ["right", 0], 99, "more examples are right than there are"),
        ("binary", ["taken"], [40], "counts of classes are missing"),
        ("binary", ["true"], [40], "they are those of another classifier"),
        ("binary", ["task"], "multilabel", "they are those of another classifier"),
        ("binary", ["confusion"], [], "the confusion matrix has another size"),
        ("binary", ["confusion", 0, 0], 99, "the confusion matrix does not match"),
        ("binary", ["rankings", 0, "positives", 0], 99, "a ranking does not add up"),
        ("binary", ["rankings", 0, "bins", 0], 2**31, "a ranking is malformed"),
        ("binary", ["rankings", 0, "bins"], [1], "a ranking is malformed"),
        ("binary", ["calibration", "hits", 3], 99, "the calibration does not add up"),
        ("binary", ["calibration", "hits"], [1], "the calibration is malformed"),
        ("binary", ["calibration", "sums", 3], 99.0, "a sum of probabilities is out of range"),
        ("binary", ["squares"], 1e9, "the calibration does not add up"),
        ("three", ["rankings"], [], ""),
        ("labels", ["true", 0], 99, "labels exceed the examples"),
        ("values", ["columns"], [], "the columns are not those of the model"),
        ("values", ["columns", 0, "values"], 3, "the values do not add up"),
        ("values", ["columns", 0, "residuals", "counts", 0], 99, "the values do not add up"),
        ("values", ["columns", 0, "residuals", "exponent"], 340, "a histogram is malformed"),
        ("values", ["columns", 0, "errors"], 1e20, "a histogram is malformed"),
        ("values", ["columns", 0, "absolutes"], 1e20, "the sums of residuals contradict each other"),
        ("values", ["pooled"], True, "the columns are not those of the model"),
    ],
)
def test_tallies_of_others_are_guilty(case: str, path: list[Any], new: Any, why: str) -> None:
    head, make = CASES[case]
    outputs, labels = make(40)
    forged = msgspec.convert(
        changed(msgspec.to_builtins(of(head, outputs, labels)), path, new), ClassTally | ValueTally
    )
    found = mistake_in(forged, head, 40)
    assert found.startswith(why)
    assert bool(found) == bool(why)


@pytest.mark.parametrize(
    ("path", "new"), [(["true", 0], -1), (["true", 0], 2**60), (["squares"], 1e300), (["more"], 1)]
)
def test_types_bound_every_number(path: list[Any], new: Any) -> None:
    forged = changed(msgspec.to_builtins(of(BINARY, *binary(40))), path, new)
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(forged, ClassTally | ValueTally)


def test_a_kind_of_its_own_does_not_fit_the_model() -> None:
    assert mistake_in(of(VALUES, [1.0], [1.0]), BINARY, 1) == "they are those of a regression"
    assert mistake_in(of(BINARY, [1.0], [1.0]), VALUES, 1).startswith("they are those of another classifier")
    assert add_tallies([of(VALUES, [1.0], [1.0]), of(BINARY, [1.0], [1.0])]) is None
    assert add_tallies([]) is None
