from __future__ import annotations

from fractions import Fraction
from functools import partial
from typing import Any

import hypothesis.extra.numpy as hnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpipe.aggregation.rule import average as combined
from fedpipe.aggregation.rule import largest
from fedpipe.aggregation.rules.mean import RULES, mean
from fedpipe.errors import WeightsError

average = partial(combined, rule=mean)
VALUES = st.integers(1, 6).flatmap(
    lambda n: st.tuples(
        hnp.arrays(np.float32, (n, 4), elements=st.floats(-1e6, 1e6, width=32)),
        st.lists(st.integers(1, 10_000), min_size=n, max_size=n),
    )
)


@given(VALUES)
def test_the_mean_is_that_of_exact_fractions(case: tuple[np.ndarray, list[int]]) -> None:
    """An oracle without floating point: sums of fractions, divided once."""
    values, weights = case
    expected = [
        float(sum(Fraction(float(v)) * w for v, w in zip(column, weights, strict=True)) / sum(weights))
        for column in values.T
    ]
    np.testing.assert_allclose(mean(iter(values), weights), expected, rtol=1e-12, atol=1e-9)


@given(VALUES)
def test_in_memory_it_is_the_same(case: tuple[np.ndarray, list[int]]) -> None:
    values, weights = case
    found = average([{"w": v} for v in values], weights)
    np.testing.assert_array_equal(found["w"], mean(iter(values), weights).astype(np.float32))


def test_equal_values_stay_what_they_are() -> None:
    value = np.float32([0.1, 1e-30, -7.5])
    np.testing.assert_array_equal(average([{"w": value}] * 3, [1, 2, 3])["w"], value)


def test_large_arrays_are_cut_into_blocks() -> None:
    rng = np.random.default_rng(0)
    updates = [{"w": rng.normal(size=(300, 1001)).astype(np.float32), "n": np.int64(k)} for k in range(3)]
    found = average(updates, [1.0, 2.0, 3.0])
    expected = sum(u["w"].astype(np.float64) * (k + 1) for k, u in enumerate(updates)) / 6
    np.testing.assert_array_equal(found["w"], expected.astype(np.float32))
    assert found["n"] == 2
    assert found["w"].flags.c_contiguous


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_dtypes_are_kept(dtype: Any) -> None:
    found = average([{"w": np.array([1, 2], dtype)}, {"w": np.array([3, 6], dtype)}], [1, 1])
    assert found["w"].dtype == np.dtype(dtype)
    np.testing.assert_array_equal(found["w"].astype(float), [2, 4])


def test_scalars_and_empty_arrays() -> None:
    updates = [
        {"s": np.float32(1), "e": np.zeros((0, 3), np.float32)},
        {"s": np.float32(2), "e": np.zeros((0, 3), np.float32)},
    ]
    found = average(updates, [1, 3])
    assert found["s"] == np.float32(1.75)
    assert found["e"].shape == (0, 3)


@pytest.mark.parametrize("weights", [[0, 1], [-1, 2], [np.nan, 1], [np.inf, 1]])
def test_weights_must_be_positive_and_finite(weights: list[float]) -> None:
    with pytest.raises(WeightsError, match="positive and finite"):
        mean(iter(np.ones((2, 1))), weights)


def test_what_does_not_fit_together_is_refused() -> None:
    with pytest.raises(WeightsError, match="update 1 has other"):
        average([{"w": np.zeros(2)}, {"w": np.zeros(3)}], [1, 1])
    with pytest.raises(WeightsError, match="2 updates with 1 weights"):
        average([{"w": np.zeros(2)}] * 2, [1])
    with pytest.raises(WeightsError, match="0 updates"):
        average([], [])
    with pytest.raises(WeightsError, match="nothing to average"):
        mean(iter([]), [])
    with pytest.raises(WeightsError, match="nothing to compare"):
        largest(iter([]))


def test_the_largest_of_booleans_is_any() -> None:
    np.testing.assert_array_equal(largest(iter([np.array([True, False]), np.array([False, False])])), [True, False])


def test_the_table_names_the_rules() -> None:
    assert {"mean": mean} == RULES
