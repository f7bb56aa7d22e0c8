"""Trees of arrays: made from a user's values, stored and read back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpipe.data.examples import Examples, examples_joined
from fedpipe.data.parts import dump_examples, get_parts, load_examples, put_parts
from fedpipe.data.trees import pack_strings, tree_of, unpack_strings
from fedpipe.errors import CorruptError, DataError
from fedpipe.store.memory import MemoryStore

TEXT = st.text(st.characters(codec="utf-8"), max_size=8)


def strings(*values: str) -> np.ndarray:
    return np.array(values, object)


def test_a_tuple_becomes_numbered_arrays() -> None:
    made = tree_of((np.zeros((2, 3)), ["a", "b"]), "features", "a")
    assert isinstance(made, dict)
    assert list(made) == ["0", "1"]
    assert made["1"].tolist() == ["a", "b"]
    assert made["1"].dtype == object


def test_ragged_and_empty_values_are_refused() -> None:
    with pytest.raises(DataError, match="the features are ragged"):
        tree_of([[1, 2], [3]], "features", "a")
    with pytest.raises(DataError, match="the labels 'side' are ragged"):
        tree_of({"side": [[1, 2], [3]]}, "labels", "a")
    with pytest.raises(DataError, match="an empty table"):
        tree_of({}, "features", "a")


@given(st.lists(TEXT, max_size=6))
def test_strings_survive_packing(values: list[str]) -> None:
    array = strings(*values)
    assert unpack_strings(*pack_strings(array), "here").tolist() == values
    square = np.array([values, values], object).reshape(2, len(values))
    assert unpack_strings(*pack_strings(square), "here").tolist() == [values, values]


@pytest.mark.parametrize("ends", [[2, 1], [-1, 3], [1, 9], [1, 2]], ids=["falling", "negative", "beyond", "short"])
def test_ends_that_do_not_fit_are_refused(ends: list[int]) -> None:
    with pytest.raises(CorruptError, match="do not fill"):
        unpack_strings(np.frombuffer(b"abc", np.uint8), np.array(ends), "here")


def test_bytes_that_are_not_text_are_refused() -> None:
    with pytest.raises(CorruptError, match="not UTF-8"):
        unpack_strings(np.frombuffer(b"\xff", np.uint8), np.array([1]), "here")


def several() -> Examples:
    x = {"numbers": np.array([[1.0], [np.nan]], np.float32), "odd/name#text": strings("m", "")}
    return Examples(x, {"0": np.array([0, 1]), "1": np.array([0.5, 2.0])}, np.array([1, 2], np.float32))


def same(one: Examples, other: Examples) -> bool:
    return dump_examples(one) == dump_examples(other) and list(one.x) == list(other.x)


def test_several_arrays_strings_and_weights_are_read_as_they_were_written(store: MemoryStore) -> None:
    found = get_parts(store, put_parts(store, {"train": several()})[0])["train"]
    assert same(found, several())
    assert isinstance(found.x, dict)
    assert found.x["odd/name#text"].tolist() == ["m", ""]
    assert same(load_examples(dump_examples(several())), several())


def test_rows_and_joining() -> None:
    first, second = several().rows(slice(0, 1)), several().rows(np.array([1]))
    assert same(examples_joined([first, second]), several())
    light = Examples(second.x, second.y)
    assert examples_joined([first, light]).weight.tolist() == [1.0, 1.0]  # type: ignore[union-attr]
