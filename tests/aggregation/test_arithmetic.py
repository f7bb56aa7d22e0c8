from __future__ import annotations

import itertools
from fractions import Fraction

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpipe.aggregation.arithmetic import add_distances, largest, total
from fedpipe.errors import WeightsError

VALUES = st.integers(1, 6).flatmap(
    lambda n: st.tuples(
        hnp.arrays(np.float32, (n, 4), elements=st.floats(-1e6, 1e6, width=32)),
        st.lists(st.integers(1, 10_000), min_size=n, max_size=n),
    )
)


@given(VALUES)
def test_a_total_is_that_of_exact_fractions(case: tuple[np.ndarray, list[int]]) -> None:
    """An oracle without floating point."""
    values, weights = case
    expected = [sum(Fraction(float(v)) * w for v, w in zip(column, weights, strict=True)) for column in values.T]
    np.testing.assert_allclose(total(iter(values), weights), [float(e) for e in expected], rtol=1e-12, atol=1e-5)


def test_the_sum_is_that_of_the_tree() -> None:
    """((a + b) + (c + d)) + e, in float64: a sum from left to right would give other bits."""
    values = [np.float64([x]) for x in (1.0, 1e-16, 1e-16, 1e-16, -1.0)]
    assert total(iter(values), [1.0] * 5)[0] == ((1.0 + 1e-16) + (1e-16 + 1e-16)) + -1.0


@pytest.mark.parametrize("weights", [[0, 1], [-1, 2], [np.nan, 1], [np.inf, 1]])
def test_weights_must_be_positive_and_finite(weights: list[float]) -> None:
    with pytest.raises(WeightsError, match="positive and finite"):
        total(iter(np.ones((2, 1))), weights)


def test_nothing_has_no_total_and_no_largest() -> None:
    with pytest.raises(WeightsError, match="nothing to add"):
        total(iter([]), [])
    with pytest.raises(WeightsError, match="nothing to compare"):
        largest(iter([]))


def test_the_largest_of_booleans_is_any() -> None:
    np.testing.assert_array_equal(largest(iter([np.array([True, False]), np.array([False, False])])), [True, False])


@given(VALUES)
def test_distances_are_those_of_exact_fractions(case: tuple[np.ndarray, list[int]]) -> None:
    values, count = case[0], len(case[0])
    exact = [[Fraction(float(v)) for v in row] for row in values]
    expected = [[float(sum((a - b) ** 2 for a, b in zip(x, y, strict=True))) for y in exact] for x in exact]
    found = np.zeros((count, count))
    add_distances(list(values), found)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_distances_of_close_updates_do_not_cancel() -> None:
    """By inner products of float64, the distance of these would be 0 or worse: 1e16 has no digit for 1e-4."""
    values = np.float64([[1e8, 1e8], [1e8, 1e8 + 0.01]])
    found = np.zeros((2, 2))
    add_distances(list(values), found)
    np.testing.assert_allclose(found, [[0, 1e-4], [1e-4, 0]], rtol=1e-5)


@pytest.mark.parametrize("count", [1, 2, 5, 8, 33])
def test_distances_have_the_bits_of_their_definition(count: int) -> None:
    """Of each pair, one sum of squares after another, of 8192 values each: however many are subtracted at a time."""
    values = np.random.default_rng(count).normal(size=(count, 2**16 + 5)).astype(np.float32)
    found, wide = np.zeros((count, count)), values.astype(np.float64)
    add_distances(list(values), found)
    for one, other in itertools.combinations(range(count), 2):
        expected = 0.0
        for start in range(0, values.shape[1], 2**13):
            expected += np.square(wide[one, start : start + 2**13] - wide[other, start : start + 2**13]).sum()
        assert found[one, other] == found[other, one] == expected


def test_distances_of_many_values_add_up_over_blocks() -> None:
    values = np.random.default_rng(0).normal(size=(3, 20_001)).astype(np.float32)
    found = np.zeros((3, 3))
    for part in np.array_split(values, [7, 9_000], axis=1):
        add_distances(list(part), found)
    expected = ((values[:, None].astype(np.float64) - values[None]) ** 2).sum(axis=2)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
