"""Each rule: values that others published, and what its theory promises."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from fedpipe.aggregation import combine_arrays, make_rule
from fedpipe.aggregation.rules.bulyan import nearest_mean
from fedpipe.federation.rules import (
    Bucketing,
    Bulyan,
    CenteredClip,
    Clip,
    GeometricMedian,
    Krum,
    Mean,
    Median,
    MultiKrum,
    NearestNeighbourMixing,
    TrimmedMean,
    fewest_updates,
)
from tests.aggregation.registered import CASES, SURROUNDED, Case, Closest, closest, registered

ROWS = [(1, 2, 3), (-1, 4, -1), (2, 2, 3), (3, 1, 3)]


def combined(
    rule: Any, rows: Any, *, before: Sequence[Any] = (), base: Any = None, weights: Any = None, dtype: Any = np.float64
) -> Any:
    rows = [np.array(row, dtype) for row in rows]
    start = None if base is None else {"w": np.broadcast_to(np.array(base, dtype), rows[0].shape)}
    found = combine_arrays(
        [{"w": row} for row in rows], weights or [1.0] * len(rows), rule=make_rule(rule, before), base=start
    )
    return found["w"]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_published_values(dtype: Any) -> None:
    """Of TFF's and Flower's tests."""
    assert combined(TrimmedMean(share=0.25), [0.5, 1, 2, 100], dtype=dtype) == 1.5
    np.testing.assert_array_equal(combined(Median(), ROWS, dtype=dtype), [1.5, 2, 3])
    np.testing.assert_array_equal(combined(TrimmedMean(share=0.25), ROWS, dtype=dtype), [1.5, 2, 3])
    assert combined(Krum(byzantine=1), [0.2, 0.7, 1.0], dtype=dtype) == dtype(0.7)


@pytest.mark.parametrize("count", [*range(1, 24), 64, 65, 90])
def test_median_and_trimmed_mean_against_numpy(count: int) -> None:
    """Up to 64 learners are sorted by a network."""
    rows = np.random.default_rng(count).normal(size=(count, 9000)).astype(np.float32)
    rows[:, :50] = np.round(rows[:, :50])
    wide = rows.astype(np.float64)
    np.testing.assert_array_equal(combined(Median(), rows, dtype=np.float32), np.median(wide, axis=0).astype("f4"))
    cut = int(0.2 * count + 1e-9)
    expected = np.sort(wide, axis=0)[cut : count - cut].mean(axis=0).astype(np.float32)
    np.testing.assert_allclose(combined(TrimmedMean(share=0.2), rows, dtype=np.float32), expected, rtol=1e-6)


def krum_by_definition(rows: Any, f: int, keep: int) -> Any:
    """Blanchard et al. 2017, with loops."""
    scores = []
    for k, row in enumerate(rows):
        apart = sorted(float(((row - other) ** 2).sum()) for j, other in enumerate(rows) if j != k)
        scores.append(sum(apart[: len(rows) - f - 2]))
    first = sorted(range(len(rows)), key=lambda k: (scores[k], k))[:keep]
    return np.mean([rows[k] for k in sorted(first)], axis=0)


def bulyan_by_definition(rows: Any, f: int) -> Any:
    """El Mhamdi et al. 2018, with loops."""
    left, found = [np.array(row) for row in rows], []
    while len(found) < len(rows) - 2 * f:
        scores = []
        for k, row in enumerate(left):
            apart = sorted(float(((row - other) ** 2).sum()) for j, other in enumerate(left) if j != k)
            scores.append(sum(apart[: max(1, len(left) - f - 2)]))
        found.append(left.pop(int(np.argmin(scores))))
    result = []
    for values in np.array(found).T:
        middle = np.median(values)
        result.append(np.mean(sorted(values, key=lambda v, m=middle: (abs(v - m), v))[: len(rows) - 4 * f]))
    return np.array(result)


@pytest.mark.parametrize(("count", "f"), [(5, 1), (7, 2), (10, 3), (12, 1), (4, 0)])
def test_krum_against_its_definition(count: int, f: int) -> None:
    rows = np.random.default_rng(count).normal(size=(count, 40))
    np.testing.assert_array_equal(combined(Krum(byzantine=f), rows), krum_by_definition(rows, f, 1))
    for keep in range(1, count - f):
        found = combined(MultiKrum(byzantine=f, keep=keep), rows)
        np.testing.assert_allclose(found, krum_by_definition(rows, f, keep), rtol=1e-12)
    np.testing.assert_allclose(
        combined(MultiKrum(byzantine=f), rows), krum_by_definition(rows, f, count - f - 2), rtol=1e-12
    )


@pytest.mark.parametrize(("count", "f"), [(7, 1), (11, 2), (12, 2), (5, 0)])
def test_bulyan_against_its_definition(count: int, f: int) -> None:
    rows = np.random.default_rng(count).normal(size=(count, 40))
    np.testing.assert_allclose(combined(Bulyan(byzantine=f), rows), bulyan_by_definition(rows, f), rtol=1e-12)


def test_of_equally_near_values_the_smaller_counts() -> None:
    values = [np.array([float(x)]) for x in (0, 1, 2, 3, 4)]
    assert nearest_mean(values, 4) == [1.5]
    assert nearest_mean(values, 2) == [1.5]


def test_of_equal_scores_the_first_in_the_order_of_the_learners_counts() -> None:
    rows = [[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]
    for order in itertools.permutations(rows):
        np.testing.assert_array_equal(combined(Krum(byzantine=0), order), order[0])


@pytest.mark.parametrize("far", [1.0, 1e3, 1e9, 1e30])
@pytest.mark.parametrize(("count", "size"), [(5, 8), (10, 50), (25, 1000)])
def test_the_unit_vectors_from_a_geometric_median_add_up_to_nothing(count: int, size: int, far: float) -> None:
    rows = np.random.default_rng(size).normal(size=(count, size))
    rows[0] *= far
    found = combined(GeometricMedian(), rows)
    units = (found - rows) / np.linalg.norm(found - rows, axis=1, keepdims=True)
    assert np.linalg.norm(units.sum(axis=0)) < 1e-6


def test_a_geometric_median_of_numbers_is_their_median() -> None:
    assert combined(GeometricMedian(), [1.0, 2.0, 3.0, 50.0, 1e9], base=7.0) == pytest.approx(3.0, abs=1e-4)


def test_one_step_of_the_geometric_median_weighs_by_the_distance() -> None:
    """The first weights follow from the median of the squared distances, the update itself included."""
    rows = np.array([0.0, 1.0, 4.0, 6.0])
    shares = 1 / np.sqrt([8.5, 5.0, 6.5, 14.5])
    pulls = 1 / np.abs(shares @ rows / shares.sum() - rows)
    assert combined(GeometricMedian(iterations=1), rows) == pytest.approx(pulls @ rows / pulls.sum(), rel=1e-12)


def test_centred_clipping_against_its_formula() -> None:
    rows, centre = np.random.default_rng(3).normal(size=(6, 20)) * 3, np.full(20, 0.5)
    expected = centre.copy()
    for _ in range(4):
        apart = rows - expected
        expected = expected + (apart * np.minimum(1, 2 / np.linalg.norm(apart, axis=1, keepdims=True))).mean(axis=0)
    np.testing.assert_allclose(combined(CenteredClip(norm=2.0, iterations=4), rows, base=centre), expected, rtol=1e-10)


@pytest.mark.parametrize(
    ("step", "most"), [(Clip(norm=2.0), 2.0), (Clip(quantile=0.5), 5.0), (Clip(quantile=0.6), 13.0)]
)
def test_clipping_keeps_the_direction(step: Clip, most: float) -> None:
    """Changes of the norms 1, 5, 13 and 25; the mean is weighted by examples as ever."""
    base = np.array([1.0, -2.0])
    changes = np.array([[1.0, 0.0], [3.0, 4.0], [5.0, -12.0], [-7.0, 24.0]])
    expected = [c * min(1.0, most / np.linalg.norm(c)) for c in changes]
    found = combined(Mean(), base + changes, before=[step], base=base, weights=[1, 2, 3, 4])
    np.testing.assert_allclose(found, base + np.average(expected, axis=0, weights=[1, 2, 3, 4]), rtol=1e-12)


def test_scalars_are_clipped_too() -> None:
    """One norm over all arrays: 3 in the vector and 4 in the scalar are 5."""
    update = {"v": np.array([3.0]), "s": np.array(4.0), "n": np.int64(9)}
    found = combine_arrays([update], [1.0], rule=make_rule(Mean(), [Clip(norm=1.0)]))
    assert found["v"] == pytest.approx([0.6])
    assert found["s"] == pytest.approx(0.8)
    assert found["n"] == 9


def test_mixing_averages_the_nearest_with_itself() -> None:
    rows = [0.0, 1.0, 3.0, 100.0]
    mixed = [4 / 3, 4 / 3, 4 / 3, 104 / 3]
    assert combined(Median(), rows, before=[NearestNeighbourMixing(byzantine=1)]) == pytest.approx(np.median(mixed))
    assert combined(Mean(), rows, before=[NearestNeighbourMixing(byzantine=1)], weights=[1, 1, 1, 9]) == pytest.approx(
        np.mean(mixed)
    )


def test_buckets_are_redrawn_in_each_round() -> None:
    rows = [{"w": np.float64(2**k)} for k in range(6)]
    drawn = set()
    for number in range(20):
        rule = make_rule(Median(), [Bucketing(size=2)], number)
        middle = float(combine_arrays(rows, [1] * 6, rule=rule)["w"])
        assert middle == float(combine_arrays(rows, [1] * 6, rule=rule)["w"])
        assert (2 * middle).is_integer()
        assert bin(int(2 * middle)).count("1") == 2  # the sum of two
        drawn.add(middle)
    assert len(drawn) > 5


def test_the_last_bucket_may_be_smaller() -> None:
    rows = [4.0, 4.0, 4.0, 4.0, 4.0]
    assert combined(Mean(), rows, before=[Bucketing(size=2)]) == 4.0


def test_steps_are_composed_in_their_order() -> None:
    """Clipped first, the far update is near enough to be mixed; mixed first, it moves those that are clipped then."""
    rows, base = np.array([[1.0], [2.0], [3.0], [-1000.0]]), 0.0
    clip, mixing = Clip(norm=3.0), NearestNeighbourMixing(byzantine=1)
    clipped = [1.0, 2.0, 3.0, -3.0]
    one = combined(Mean(), rows, before=[clip, mixing], base=base)
    assert one == pytest.approx(np.mean([np.mean([1, 2, 3])] * 3 + [np.mean([-3, 1, 2])]))
    two = combined(Mean(), rows, before=[mixing, clip], base=base)
    assert two == pytest.approx(np.mean([2.0, 2.0, 2.0, -3.0]))
    assert combined(Mean(), rows, before=[clip], base=base) == pytest.approx(np.mean(clipped))


@pytest.mark.parametrize("case", [*CASES, *SURROUNDED], ids=lambda case: case.name)
def test_a_rule_with_its_steps_needs_what_the_settings_say(case: Case) -> None:
    """So a round that is left with fewer is refused by the rule too, not only by the quorum."""
    if not isinstance(case.rule, Closest):
        assert case.make().fewest == fewest_updates(case.before, case.rule)


def test_close_updates_far_from_the_base_keep_their_digits() -> None:
    """Their distances are 1e-7 of the change; in float32 products, all would be wrong."""
    rng = np.random.default_rng(5)
    near = 1000 + rng.normal(size=(7, 300)) * 1e-4
    for rule in (Krum(byzantine=2), MultiKrum(byzantine=2, keep=3), Bulyan(byzantine=1)):
        expected = combined(rule, near - 1000)
        np.testing.assert_allclose(combined(rule, near) - 1000, expected, atol=1e-9)
    median = combined(GeometricMedian(smoothing=1e-12), near)
    units = (median - near) / np.linalg.norm(median - near, axis=1, keepdims=True)
    assert np.linalg.norm(units.sum(axis=0)) < 1e-6


@pytest.fixture(autouse=True)
def _registered() -> Any:
    with registered(closest=closest):
        yield


def shape_of(case: Case, seed: int, size: int = 12) -> tuple[Any, Any]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(10, size)), rng.normal(size=size)


def applied(case: Case, rows: Any, base: Any, weights: Any = None) -> Any:
    return combine_arrays(
        [{"w": row} for row in rows], weights or [1.0] * len(rows), rule=case.make(), base={"w": base}
    )["w"]


@pytest.mark.parametrize("case", list(dict.fromkeys((*CASES, *SURROUNDED))), ids=lambda case: case.name)
class TestLaws:
    """Properties of every rule, alone and behind other steps."""

    @settings(max_examples=5, deadline=None)
    @given(seed=st.integers(0, 10**6))
    def test_learners_have_no_rank(self, case: Case, seed: int) -> None:
        """Apart from ties, which Bulyan's last choices always are, and from buckets, which are drawn by position."""
        ties = isinstance(case.rule, Bulyan) and case.rule.byzantine
        if ties or any(isinstance(step, Bucketing) for step in case.before):
            return
        rows, base = shape_of(case, seed)
        order = Random(seed).sample(range(10), 10)
        np.testing.assert_allclose(applied(case, rows[order], base), applied(case, rows, base), rtol=1e-9, atol=1e-9)

    @settings(max_examples=5, deadline=None)
    @given(seed=st.integers(0, 10**6), by=st.floats(-1e3, 1e3))
    def test_what_is_moved_together_moves_the_result(self, case: Case, seed: int, by: float) -> None:
        rows, base = shape_of(case, seed)
        moved = applied(case, rows + by, base + by)
        np.testing.assert_allclose(moved, applied(case, rows, base) + by, rtol=1e-7, atol=1e-7)

    @settings(max_examples=5, deadline=None)
    @given(seed=st.integers(0, 10**6), by=st.sampled_from([-64.0, -0.5, 0.001, 3.0, 1e6]))
    def test_what_is_scaled_scales_the_result(self, case: Case, seed: int, by: float) -> None:
        if case.fixed:
            return
        rows, base = shape_of(case, seed)
        longer = case
        if isinstance(case.rule, GeometricMedian):  # its smoothing is a length too
            longer = case._replace(rule=replace(case.rule, smoothing=case.rule.smoothing * abs(by)))
        scaled = applied(longer, rows * by, base * by)
        np.testing.assert_allclose(scaled / by, applied(case, rows, base), rtol=1e-5, atol=1e-5)

    @settings(max_examples=5, deadline=None)
    @given(seed=st.integers(0, 10**6), k=st.integers(0, 9))
    def test_the_number_of_examples_that_one_claims_moves_only_a_mean(self, case: Case, seed: int, k: int) -> None:
        rows, base = shape_of(case, seed)
        weights = [1.0] * 10
        weights[k] = 1e9
        same = np.array_equal(applied(case, rows, base, weights), applied(case, rows, base))
        assert same != (case.name in ("mean", "clip-mean") or (case.name == "closest" and not same))


@pytest.mark.parametrize("case", SURROUNDED, ids=lambda case: case.name)
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10**6), data=st.data())
def test_outliers_at_infinity_leave_the_result_among_the_others(case: Case, seed: int, data: Any) -> None:
    """The worst that some learners do is bounded by the others' own changes, however far they go."""
    rows, base = shape_of(case, seed)
    bad = data.draw(st.lists(st.integers(0, 9), min_size=1, max_size=case.byzantine, unique=True))
    good = np.delete(rows, bad, axis=0)
    reach = 1 + max(
        np.linalg.norm(good - base, axis=1).max(), 2 * np.linalg.norm(good - good.mean(axis=0), axis=1).max()
    )
    for far in (1e3, 1e8, 1e20, 1e30):
        together = data.draw(st.booleans())
        for k in bad:
            rows[k] = far * (1.0 if together else rows[k] / np.abs(rows[k]).max())
        distance = np.linalg.norm(applied(case, rows, base) - base)
        limit = 2000.0 * 10 if case.fixed else 6 * reach
        assert distance <= limit, (far, distance, limit)
