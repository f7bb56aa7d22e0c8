from __future__ import annotations

import numpy as np
import pytest

from fedpipe.data.ports import cast, chosen, fed, made_up, ports_of
from fedpipe.errors import ModelError
from fedpipe.rounds.plan import Port

AGE, IMAGE, TOWN = (
    Port("age", "float32", (None, 1)),
    Port("image", "float32", (None, 2, 2)),
    Port("town", "string", (None, 1)),
)
X = {"image": np.zeros((5, 2, 2)), "town": np.array(["a"] * 5, object), "age": np.arange(5)}


def test_arrays_by_name_in_the_order_of_the_model() -> None:
    found = fed([AGE, IMAGE, TOWN], X)
    assert list(found) == ["age", "image", "town"]
    assert found["age"].tolist() == [[0], [1], [2], [3], [4]]  # a last dimension of 1 is added
    assert found["town"].shape == (5, 1)
    given = cast([AGE, IMAGE, TOWN], found)
    assert [given[name].dtype for name in given] == [np.float32, np.float32, object]


def test_arrays_by_position() -> None:
    ports = [Port(f"p{k}", "float32", (None,)) for k in range(12)]
    found = fed(ports, {str(k): np.full(2, k) for k in sorted(range(12), key=str)})
    assert [found[f"p{k}"][0] for k in range(12)] == list(range(12))


@pytest.mark.parametrize("name", ["", "0", "age"])
def test_one_array(name: str) -> None:
    assert list(fed([AGE], {name: np.zeros((2, 1))} if name else np.zeros((2, 1)))) == ["age"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["age"], "named 'age', but the model has 'age', 'town': missing are 'town'. Return a dict with these names"),
        (["age", "city"], "missing are 'town'; unknown are 'city'"),
        (["age", "town", "more"], "'age', 'town': unknown are 'more'"),
        (["0", "1", "2"], "unknown are '0', '1', '2'. Return a dict with these names, or a tuple of 2 arrays"),
        ([""], "the features are one array without a name, but the model has 'age', 'town'. Return a dict"),
    ],
)
def test_names_that_do_not_fit(given: list[str], message: str) -> None:
    with pytest.raises(ModelError) as refused:
        chosen(["age", "town"], given, "features")
    assert message in str(refused.value)


def test_an_output_without_a_loss_needs_no_labels() -> None:
    assert chosen(["kind", "days"], ["kind"], "labels", ["days"]) == {"kind": "kind"}
    assert chosen(["kind", "days"], [""], "labels", ["kind"]) == {"days": ""}
    assert chosen(["kind", "days"], ["0", "1"], "labels", ["kind"]) == {"kind": "0", "days": "1"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": np.zeros((5, 3, 2))}, r"the features 'image' have shape (3, 2), but the model takes (2, 2)"),
        ({"age": np.array(["x"] * 5, object)}, "the features 'age' are text, but the model takes numbers"),
        ({"town": np.zeros(5)}, "the features 'town' are numbers, but the model takes text"),
    ],
)
def test_arrays_that_do_not_fit(change: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(ModelError) as refused:
        fed([AGE, IMAGE, TOWN], {**X, **change})
    assert message in str(refused.value)


def test_ports_of_examples() -> None:
    assert ports_of({"1": np.zeros((2, 3)), "0": np.zeros(2, np.int64)}) == (
        Port("input_0", "int64", (None,)),
        Port("input_1", "float64", (None, 3)),
    )
    assert ports_of({"town": X["town"]}) == (Port("town", "string", (None,)),)


def test_made_up_examples_fit() -> None:
    ports = [AGE, IMAGE, TOWN, Port("codes", "int32", (None, None))]
    found = made_up(ports, 20, 0, ["north", "south"])
    assert list(fed(ports, found)) == ["age", "image", "town", "codes"]
    assert set(found["town"].reshape(-1)) == {"north", "south", ""}
    assert set(found["codes"].reshape(-1)) == {0, 1}
