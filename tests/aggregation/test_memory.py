from __future__ import annotations

from functools import partial
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from fedpipe.aggregation import combine_arrays, make_rule
from fedpipe.errors import WeightsError
from fedpipe.federation.rules import Mean
from tests.aggregation.registered import Closest, closest

average = partial(combine_arrays, rule=make_rule(Mean()))


def test_equal_values_stay_what_they_are() -> None:
    value = np.float32([0.1, 1e-30, -7.5])
    np.testing.assert_array_equal(average([{"w": value}] * 3, [1, 2, 3])["w"], value)


def test_updates_without_weight_leave_nothing() -> None:
    updates = [{"w": np.float32([x]), "n": np.int64(n)} for x, n in ((1, 5), (100, 900), (2, 6))]
    found = combine_arrays(updates, [1, 1, 3], rule=closest(Closest(share=0.7)))
    assert found == {"w": np.float32([1.75]), "n": np.int64(6)}


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


def test_what_does_not_fit_together_is_refused() -> None:
    with pytest.raises(WeightsError, match="update 1 has other"):
        average([{"w": np.zeros(2)}, {"w": np.zeros(3)}], [1, 1])
    with pytest.raises(WeightsError, match="2 updates with 1 weights"):
        average([{"w": np.zeros(2)}] * 2, [1])
    with pytest.raises(WeightsError, match="0 updates"):
        average([], [])
