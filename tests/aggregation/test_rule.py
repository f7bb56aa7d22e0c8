from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fedpipe.aggregation import Columns, Distances, Sums
from fedpipe.aggregation.geometry import Geometry
from fedpipe.aggregation.rule import Mixture
from fedpipe.aggregation.rules.mean import AVERAGE, mean
from fedpipe.federation.rules import Mean


@pytest.mark.parametrize("result", [np.zeros(2, np.float32), np.zeros(3), np.float64(1)])
def test_a_rule_of_columns_returns_float64_for_each_coordinate(result: Any) -> None:
    with pytest.raises(TypeError, match=r"a rule of columns returned float\d\d\["):
        Columns(lambda _values, _weights: result).combined([np.zeros(2, np.float32)], [1.0])


@pytest.mark.parametrize("weights", [[], [0.0], [-1.0], [np.nan], [np.inf]])
def test_a_rule_of_distances_returns_weights_that_can_be_used(weights: list[float]) -> None:
    rule = Distances(lambda _geometry, _weights: Mixture(np.ones((len(weights), 2)), tuple(weights)), then=AVERAGE)
    with pytest.raises(ValueError, match="a rule of distances returned"):
        rule.mixed(Geometry(2, np.zeros((2, 2))), [1.0, 1.0])


@pytest.mark.parametrize("row", [[0.0, 0.0], [1.0, -1.0], [np.nan, 1.0], [np.inf, 1.0], [1.0], [1.0, 1.0, 1.0]])
def test_a_rule_of_distances_returns_mixtures_of_the_updates(row: list[float]) -> None:
    rule = Distances(lambda _geometry, _weights: Mixture(np.array([row]), (1.0,)), then=AVERAGE)
    with pytest.raises(ValueError, match=r"a rule of distances returned mixtures .* of 2 updates"):
        rule.mixed(Geometry(2, np.zeros((2, 2))), [1.0, 1.0])


def test_the_mean_divides_the_sum_by_the_weights() -> None:
    rule = mean(Mean())
    assert isinstance(rule, Sums)
    np.testing.assert_array_equal(rule.finish(np.array([6.0, 9.0]), 3.0), [2.0, 3.0])
