"""The vector of a secure sum: changes, counts and metrics of several learners add up, whatever the model has."""

from __future__ import annotations

import functools
import math
from typing import ClassVar

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpipe.errors import WeightsError
from fedpipe.learners.framework import Arrays
from fedpipe.secure.masks import CHUNK
from fedpipe.secure.numbers import GROUP, Grid, Words, pack
from fedpipe.secure.vector import Counts, Vector, scale_of
from fedpipe.weights import layout_of

NAMES = ("auc", "loss", "test_auc")
EMPTY: Arrays = {}


def encoded(vector: Vector, base: Arrays, new: Arrays, counts: Counts, seed: int = 0) -> Words:
    """All words of a learner's vector."""
    return np.concatenate(list(vector.encode(base, new, 1.0, counts, np.random.default_rng(seed))))


def added(vectors: list[Words]) -> Words:
    return functools.reduce(np.add, vectors)


def counted(*counts: Counts, bits: int = 16, metrics: tuple[str, ...] = NAMES) -> Counts:
    """The numbers in the sum of learners that change nothing."""
    vector = Vector(Grid(bits, 1.0, 64), layout_of(EMPTY), metrics)
    return vector.counts(added([encoded(vector, EMPTY, EMPTY, one) for one in counts]), len(counts))


def one(examples: int = 10, tested: int = 5, auc: float = 0.5, loss: float = 1.0, test_auc: float = 0.5) -> Counts:
    return Counts(examples, tested, 0, {"auc": auc, "loss": loss, "test_auc": test_auc})


class TestChanges:
    BASE: ClassVar[Arrays] = {
        "a": np.linspace(-1, 1, 2 * CHUNK + 3, dtype=np.float32),
        "b": np.ones((), np.float64),
        "c": np.zeros((0, 4), np.float32),
        "d": np.full((3, 3), 2, ml_dtypes.bfloat16),
        "e": np.ones(9, np.float16),
        "steps": np.int64(7),
    }

    def test_of_all_floats_are_summed(self) -> None:
        vector = Vector(Grid(24, 4.0, 3), layout_of(self.BASE), ())
        moved = [
            {name: (value + step).astype(value.dtype) for name, value in self.BASE.items()} for step in (0.5, -1.0, 2.0)
        ]
        total = added([encoded(vector, self.BASE, new, Counts(1, 0, 0, {}), k) for k, new in enumerate(moved)])
        assert total.size == vector.size
        assert len(pack(total, vector.grid.width)) == vector.bytes
        found: dict[str, list[float]] = {}
        for tensor, start, sums in vector.decode(total, 3):
            assert len(found.setdefault(tensor.name, [])) == start
            found[tensor.name] += sums.tolist()
        assert {name: len(values) for name, values in found.items()} == {"a": 2 * CHUNK + 3, "b": 1, "d": 9, "e": 9}
        assert all(np.abs(np.array(values) - 1.5).max() <= 3 * vector.grid.step for values in found.values())
        assert vector.values == 2 * CHUNK + 3 + 1 + 9 + 9

    def test_each_tensor_begins_at_a_whole_group(self) -> None:
        vector = Vector(Grid(16, 1.0, 3), layout_of(self.BASE), NAMES)
        chunks = vector.encode(self.BASE, self.BASE, 1.0, one(), np.random.default_rng(0))
        sizes = [words.size for words in chunks]
        assert sizes[:6] == [GROUP, CHUNK, CHUNK, GROUP, 2 * GROUP, 2 * GROUP], "the widest come first"
        assert max(sizes) <= CHUNK
        assert not [size for size in sizes if size % GROUP]

    def test_clipped_ones_are_counted(self) -> None:
        vector = Vector(Grid(16, 1.0, 3), layout_of({"w": np.zeros(4)}), (), follows=True)
        words = [
            encoded(vector, {"w": np.zeros(4)}, {"w": np.array(values)}, Counts(1, 0, 0, {}))
            for values in ([0.5, 1.0, 1.5, -9.0], [0.0, 0.0, 0.0, 2.0])
        ]
        counts = vector.counts(added(words), 2)
        assert counts.clipped == 3
        assert sum(counts.magnitudes) == 5, "those that are not zero"

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    def test_that_are_not_numbers_are_refused(self, value: float) -> None:
        base = {"w": np.zeros(4)}
        vector = Vector(Grid(16, 1.0, 3), layout_of(base), ())
        with pytest.raises(WeightsError, match="NaN or infinite"):
            encoded(vector, base, {"w": np.array([0, 0, value, 0])}, Counts(1, 0, 0, {}))
        with pytest.raises(WeightsError, match="NaN or infinite"):
            scale_of(base, {"w": np.array([0, 0, value, 0])}, ["w"], 1.0)

    def test_the_norm_is_that_of_all_tensors(self) -> None:
        base = {"a": np.zeros(CHUNK + 9, np.float32), "b": np.zeros(())}
        new = {"a": base["a"].copy(), "b": np.array(4.0)}
        new["a"][-1] = 3.0
        assert scale_of(base, new, ["a", "b"], 2.5) == 0.5
        assert scale_of(base, new, ["a", "b"], 6.0) == 1.0
        assert scale_of(base, new, ["a", "b"], 0.0) == 1.0, "no limit"
        assert scale_of(base, base, ["a", "b"], 1.0) == 1.0


class TestCounts:
    @given(st.lists(st.integers(0, 2**40), min_size=3, max_size=64), st.integers(8, 32))
    def test_of_examples_add_up(self, numbers: list[int], bits: int) -> None:
        found = counted(*[Counts(number, number // 2, 0, {}) for number in numbers], bits=bits, metrics=())
        assert (found.examples, found.tested) == (sum(numbers), sum(number // 2 for number in numbers))

    @given(st.lists(st.tuples(st.integers(1, 10**9), st.floats(-1e9, 1e9)), min_size=3, max_size=10))
    def test_metrics_are_means_over_the_examples(self, given: list[tuple[int, float]]) -> None:
        found = counted(*[one(examples, loss=loss) for examples, loss in given])
        expected = math.fsum(examples * loss for examples, loss in given) / sum(examples for examples, _ in given)
        assert found.metrics["loss"] == pytest.approx(expected, rel=1e-9, abs=2**-24)

    def test_those_of_tests_are_means_over_the_test_examples(self) -> None:
        assert counted(one(1, 3, test_auc=0.25), one(9, 1, test_auc=0.75)).metrics["test_auc"] == 0.375

    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    def test_a_metric_that_one_learner_cannot_measure_is_the_mean_of_the_others(self, value: float) -> None:
        found = counted(one(auc=0.5), one(auc=1.0), one(auc=value)).metrics
        assert found == {"auc": 0.75, "loss": 1.0, "test_auc": 0.5}

    def test_a_metric_of_fewer_than_half_is_left_out(self) -> None:
        assert counted(one(10, auc=0.5), one(10, auc=math.nan)).metrics.keys() == {"loss", "test_auc"}
        assert counted(one(tested=0)).metrics.keys() == {"auc", "loss"}

    def test_a_metric_beyond_all_bounds_counts_as_the_bound(self) -> None:
        assert counted(one(loss=1e300)).metrics["loss"] == 2.0**30
        assert counted(one(loss=-1e300)).metrics["loss"] == -(2.0**30)

    def test_the_largest_numbers_have_room(self) -> None:
        most = 2**53 - 1
        found = counted(one(most, most, loss=-(2.0**30)), one(most, most, loss=-(2.0**30)), bits=8)
        assert (found.examples, found.tested, found.metrics["loss"]) == (2 * most, 2 * most, -(2.0**30))
