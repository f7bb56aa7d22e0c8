from __future__ import annotations

import contextlib
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpipe.errors import FederationError, ModelError
from fedpipe.federation.preprocessing import applied, check_functions, parse


def test_a_chain_of_calls() -> None:
    steps = parse("repeat(5).shuffle(100, seed=1).map(flat).batch(20, drop_remainder=True).prefetch(10)")
    assert [step.name for step in steps] == ["repeat", "shuffle", "map", "batch", "prefetch"]
    assert steps[1].arguments == {"buffer_size": 100, "seed": 1}
    assert steps[3].arguments == {"batch_size": 20, "drop_remainder": True}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not an expression"),
        ("repeat(", "is not an expression"),
        ("3", "'3' is not a call"),
        ("repeat", "'repeat' is not a call"),
        ("window(3)", "there is no 'window'"),
        ("dataset.repeat(3)", "'dataset' is not a call"),
        ("__import__('os').system('x')", "there is no 'system'"),
        ("repeat()", r"missing a required argument: 'count'; write repeat\(count: int\)"),
        ("repeat(1, 2)", "too many positional arguments"),
        ("repeat(2.5)", "count cannot be 2.5"),
        ("repeat(0)", "count cannot be 0"),
        ("repeat(-1)", "'-1' is neither a number nor a name"),
        ("repeat(True)", "count cannot be True"),
        ("shuffle(10, sed=1)", "unexpected keyword argument 'sed'"),
        ("map('flat')", "function cannot be 'flat'"),
        ("map(lambda x: x)", "neither a number nor a name"),
        ("batch(2).batch(3)", "batch is listed twice"),
        ("batch(2).shuffle(3)", "after batch, only"),
        ("repeat(9999999999999)", "count cannot be"),
    ],
)
def test_mistakes_show_what_is_allowed(text: str, message: str) -> None:
    with pytest.raises(FederationError, match=message) as caught:
        parse(text)
    assert "Chain calls of map, take, shuffle, repeat, batch, prefetch" in str(caught.value.remedy)


@given(st.text(max_size=60))
def test_any_text_is_read_or_refused(text: str) -> None:
    with contextlib.suppress(FederationError):
        assert parse(text)


def test_a_function_that_model_py_lacks() -> None:
    with pytest.raises(ModelError, match="there is no function 'flat'"):
        check_functions(parse("map(flat)"), SimpleNamespace())  # type: ignore[arg-type]


class TestOnTensorFlow:
    def batches(self, text: str, **functions: Any) -> list[list[float]]:
        import tensorflow as tf

        dataset = tf.data.Dataset.from_tensor_slices((np.arange(5.0), np.zeros(5)))
        made = applied(parse(text), dataset, SimpleNamespace(**functions), batch_size=2, seed=7)  # type: ignore[arg-type]
        return [x.tolist() for x, _ in made.as_numpy_iterator()]

    def test_without_a_batch_the_trainings_size_counts(self) -> None:
        assert self.batches("take(3)") == [[0, 1], [2]]

    def test_calls_happen_in_order(self) -> None:
        assert self.batches("take(3).repeat(2).batch(4).prefetch(1)") == [[0, 1, 2, 0], [1, 2]]
        assert self.batches("repeat(2).take(6).batch(10, drop_remainder=False)") == [[0, 1, 2, 3, 4, 0]]

    def test_functions_of_model_py(self) -> None:
        assert self.batches("map(double).batch(5)", double=lambda x, y: (2 * x, y)) == [[0, 2, 4, 6, 8]]

    def test_a_seed_of_its_own_or_the_rounds(self) -> None:
        one, other = self.batches("shuffle(5).batch(5)"), self.batches("shuffle(5, seed=7).batch(5)")
        assert one == other
        assert sorted(one[0]) == [0, 1, 2, 3, 4]
