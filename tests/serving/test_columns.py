"""Tests requests that give the columns of a table by name."""

from __future__ import annotations

import itertools
import json
from typing import Any

import msgspec
import numpy as np
import pytest

from fedpipe.registry.prediction import open_model, predict
from fedpipe.serving.protocol import parse
from fedpipe.serving.tensors import RequestError, to_bytes
from tests.served import PATIENTS, patients

MODEL = open_model(patients())
COLUMNS: dict[str, tuple[str, list[Any]]] = {
    "age": ("FP64", [49.5, 51]),
    "smoker": ("BOOL", [True, None]),
    "sex": ("BYTES", ["m", None]),
    "seen": ("BYTES", ["1970-01-02", ""]),
}
NUMBERS = np.float32([[49.5, 1, 1], [51, np.nan, np.nan]])


def tensors(nested: bool = False, **changes: Any) -> list[dict[str, Any]]:
    columns = {name: value for name, value in {**COLUMNS, **changes}.items() if value is not None}
    return [
        {"name": name, "datatype": datatype, "shape": [len(data), 1] if nested else [len(data)],
         "data": [[value] for value in data] if nested else data}
        for name, (datatype, data) in columns.items()
    ]  # fmt: skip


def feed(inputs: list[dict[str, Any]], binary: bytes = b"") -> dict[str, Any]:
    head = json.dumps({"inputs": inputs}).encode()
    return parse(head + binary, str(len(head)), MODEL.inputs, MODEL.outputs, card=PATIENTS).feed


def test_columns_in_any_order_give_the_matrices() -> None:
    for inputs in itertools.permutations(tensors()):
        found = feed(list(inputs))
        np.testing.assert_array_equal(found["numbers"], NUMBERS)
        assert found["numbers"].dtype == np.float32
        assert found["categories"].tolist() == [["m"], [""]]
    np.testing.assert_array_equal(feed(tensors(nested=True))["numbers"], NUMBERS)


@pytest.mark.parametrize(
    ("name", "datatype", "data"),
    [
        ("age", "BYTES", ["49.5", "51"]), ("age", "FP32", [49.5, 51]), ("smoker", "INT64", [1, None]),
        ("smoker", "FP32", [1.0, None]), ("smoker", "BYTES", ["yes", "NA"]), ("smoker", "UINT8", [1, None]),
        ("seen", "BYTES", ["1970-01-02T00:00:00Z", None]),
    ],
)  # fmt: skip
def test_a_column_in_other_datatypes(name: str, datatype: str, data: list[Any]) -> None:
    np.testing.assert_array_equal(feed(tensors(**{name: (datatype, data)}))["numbers"], NUMBERS)


def test_columns_in_binary_data() -> None:
    ages, sexes = np.float64([49.5, 51]), np.array(["m", ""], object)
    rest = tensors(age=None, sex=None)
    inputs = [
        {"name": "sex", "datatype": "BYTES", "shape": [2], "parameters": {"binary_data_size": len(to_bytes(sexes))}},
        {"name": "age", "datatype": "FP64", "shape": [2, 1], "parameters": {"binary_data_size": 16}},
    ]
    found = feed([*inputs, *rest], to_bytes(sexes) + to_bytes(ages))
    np.testing.assert_array_equal(found["numbers"], NUMBERS)
    with pytest.raises(RequestError, match="1 bytes follow the last binary tensor"):
        feed([*inputs, *rest], to_bytes(sexes) + to_bytes(ages) + b"!")


def test_the_matrices_themselves_with_null_for_a_missing_number() -> None:
    inputs = [
        {"name": "categories", "datatype": "BYTES", "shape": [2, 1], "data": ["m", ""]},
        {"name": "numbers", "datatype": "FP32", "shape": [2, 3], "data": [[49.5, 1, 1], [51, None, None]]},
    ]
    np.testing.assert_array_equal(feed(inputs)["numbers"], NUMBERS)
    inputs[1]["data"] = [[49.5, 1, 1], [None, 1, 1]]  # ages were never missing
    with pytest.raises(RequestError, match="input 'numbers' contains NaN or infinity"):
        feed(inputs)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"age": None}, "the column 'age' is missing. Add it: the model takes 'age', 'smoker', 'sex', 'seen'"),
        ({"age": None, "Age": COLUMNS["age"]}, "the column 'age' is missing. Rename 'Age' to 'age'"),
        ({"age": None, "sex": None}, "2 columns are missing: 'age', 'sex'"),
        ({"ward": ("INT64", [1, 2])}, "the model has no column 'ward'; it takes 'age', 'smoker', 'sex', 'seen'"),
        ({"age": ("FP64", [1.0])}, r"column 'smoker' has shape \[2\], but a column is \[n\] or \[n, 1\]"),
        ({"age": ("FP64", [None, 1.0])}, r"column 'age', row 1: the cell is empty"),
        (
            {"age": ("BYTES", ["1", "x"])},
            r"column 'age', row 2: 'x' is not a number\. Correct the cell: the model takes",
        ),
        ({"age": ("BYTES", ["1", "1e39"])}, "cannot hold the value 1e\\+39"),
        ({"age": ("BYTES", ["1", "inf"])}, "'inf' is infinite"),
        ({"age": ("FP128", [1, 2])}, "column 'age' has datatype 'FP128'; use FP64"),
        ({"age": ("FP64", ["1", "2"])}, "the data of input 'age' is not FP64"),
        ({"smoker": ("INT64", [2, 0])}, "column 'smoker', row 1: 2 is not a boolean"),
        ({"seen": ("FP64", [1, 2])}, "column 'seen' is a date: send it as BYTES, for example 2024-01-31"),
        ({"seen": ("BYTES", ["1.2.24", ""])}, r"column 'seen', row 1: '1\.2\.24' is not a date"),
    ],
)
def test_columns_that_do_not_fit(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message) as refused:
        feed(tensors(**changes))
    assert refused.value.status == 400


def test_a_column_given_twice_and_too_many_values() -> None:
    with pytest.raises(RequestError, match="column 'age' is given twice"):
        feed([*tensors(), tensors()[0]])
    head = json.dumps({"inputs": [{**one, "shape": [2**30]} for one in tensors()]}).encode()
    with pytest.raises(RequestError, match="at most") as refused:
        parse(head, None, MODEL.inputs, MODEL.outputs, card=PATIENTS)
    assert refused.value.status == 413


def test_a_column_with_the_name_of_an_input() -> None:
    """A table of a hospital has a column `numbers`; the matrices have that name too."""
    renamed = {"age": "numbers", "seen": "categories"}
    columns = tuple(msgspec.structs.replace(c, name=renamed.get(c.name, c.name)) for c in PATIENTS.columns)
    card = msgspec.structs.replace(PATIENTS, columns=columns)
    model = open_model(patients(card))

    def feed_of(inputs: list[dict[str, Any]]) -> dict[str, Any]:
        head = json.dumps({"inputs": inputs}).encode()
        return parse(head, str(len(head)), model.inputs, model.outputs, card=card).feed

    by_name = [{**one, "name": renamed.get(one["name"], one["name"])} for one in tensors()]
    for inputs in itertools.permutations(by_name):
        np.testing.assert_array_equal(feed_of(list(inputs))["numbers"], NUMBERS)
    with pytest.raises(RequestError, match="the column 'smoker' is missing"):
        feed_of([one for one in by_name if one["name"] != "smoker"])
    matrices = [
        {"name": "numbers", "datatype": "FP32", "shape": [1, 3], "data": [49.5, 1, 1]},
        {"name": "categories", "datatype": "BYTES", "shape": [1, 1], "data": ["m"]},
    ]
    np.testing.assert_array_equal(feed_of(matrices)["numbers"], NUMBERS[:1])
    table = {one["name"]: one["data"] for one in by_name}
    asked = predict(model, table).outputs
    np.testing.assert_array_equal(asked, predict(MODEL, {name: data for name, (_, data) in COLUMNS.items()}).outputs)
