"""Tests predictions for files as users bring them, through the command."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from onnx import TensorProto, helper, numpy_helper
from pyarrow import parquet
from typer.testing import CliRunner

from fedpipe.cli.main import app
from fedpipe.commands.predict import Answers, columns_of, predict_file
from fedpipe.data.schema import Column
from fedpipe.errors import DataError, InputError
from fedpipe.registry.card import Card
from fedpipe.registry.prediction import predict
from tests.served import PATIENTS, onnx_model, patients, softmax

ILL = [0.99330715, 0.26894143, 0.95257413, 0.5]
RAW = """age,smoker,sex,seen,diagnosis
49,yes,m,1970-01-01,ill
49,,f,,healthy
53,0,,NA,ill
48,1,f,1970-01-01,healthy
"""


@pytest.fixture
def model(tmp_path: Path) -> str:
    """A model of patients, as a file."""
    (tmp_path / "model.onnx").write_bytes(patients())
    return str(tmp_path / "model.onnx")


def written(folder: Path, text: str | bytes, name: str = "d.csv") -> Path:
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder / name


def shares(answers: Answers) -> Any:
    return answers.prediction.outputs[:, 0]


def reordered(order: list[int]) -> str:
    return "".join(",".join(line.split(",")[i] for i in order) + "\n" for line in RAW.splitlines())


@pytest.mark.parametrize(
    "text",
    [
        RAW, reordered([3, 1, 4, 0, 2]), reordered([4, 2, 0, 1, 3]), reordered([0, 1, 2, 3]),
        RAW.replace(",", ";"), RAW.encode("utf-8-sig"), RAW.encode("utf-16"), RAW.replace(",", ", "),
    ],
)  # fmt: skip
def test_raw_rows_are_read_by_the_names_of_their_columns(text: str | bytes, model: str, tmp_path: Path) -> None:
    answers = predict_file(model, written(tmp_path, text))
    np.testing.assert_allclose(shares(answers), ILL, rtol=1e-5)
    assert [answers.prediction.name(row) for row in range(3)] == ["ill", "healthy", "ill"]
    assert answers.prediction.probabilities is not None
    np.testing.assert_allclose(answers.prediction.probabilities[:2], [ILL[0], 1 - ILL[1]], rtol=1e-5)
    assert answers.remarks == ()


def test_parquet_and_arrays_give_the_same(model: str, tmp_path: Path) -> None:
    columns = {
        "seen": pa.array([date(1970, 1, 1), None, None, date(1970, 1, 1)]),
        "sex": pa.array(["m", "f", None, "f"]).dictionary_encode(),
        "diagnosis": pa.array(["ill", "healthy", "ill", "healthy"]),
        "smoker": pa.array([True, None, False, True]),
        "age": pa.array([49, 49, 53, 48], pa.int32()),
        "__index_level_0__": pa.array([5, 6, 7, 8]),
    }
    parquet.write_table(pa.table(columns), tmp_path / "d.parquet")
    answers = predict_file(model, tmp_path / "d.parquet")
    np.testing.assert_allclose(shares(answers), ILL, rtol=1e-5)
    assert (answers.remarks, answers.accuracy) == ((), 1.0)
    np.savez(tmp_path / "columns.npz", age=[49, 49, 53, 48], smoker=[1, np.nan, 0, 1], sex=["m", "f", "", "f"],
             seen=["1970-01-01", "", "", "1970-01-01"])  # fmt: skip
    np.testing.assert_allclose(shares(predict_file(model, tmp_path / "columns.npz")), ILL, rtol=1e-5)
    numbers = [[49, 1, 0], [49, np.nan, np.nan], [53, 0, np.nan], [48, 1, 0]]
    np.savez(tmp_path / "inputs.npz", numbers=numbers, categories=[["m"], ["f"], [""], ["f"]], y=[1, 0, 1, 1])
    answers = predict_file(model, tmp_path / "inputs.npz")
    np.testing.assert_allclose(shares(answers), ILL, rtol=1e-5)
    assert answers.accuracy == 0.75
    names = ["ill", "healthy", "unknown", ""]
    np.savez(tmp_path / "named.npz", numbers=numbers, categories=[["m"], ["f"], [""], ["f"]], y=names)
    answers = predict_file(model, tmp_path / "named.npz")
    assert (answers.accuracy, int(answers.labelled.sum())) == (1.0, 2)


def test_a_table_without_a_header_is_taken_in_the_models_order_with_a_remark(model: str, tmp_path: Path) -> None:
    answers = predict_file(model, written(tmp_path, "49,1,m,1970-01-01\n"), header=False)
    np.testing.assert_allclose(shares(answers), ILL[:1], rtol=1e-5)
    assert "has no header: its columns are taken in the order 'age', 'smoker', 'sex', 'seen'" in answers.remarks[0]


def test_values_that_the_model_does_not_know_are_remarked(model: str, tmp_path: Path) -> None:
    """Capitals instead of small letters would be a wrong diagnosis for each patient, without a word."""
    text = RAW.replace(",m,", ",M,").replace(",f,", ",F,")
    (remark,) = predict_file(model, written(tmp_path, text)).remarks
    assert "the model does not know" in remark
    assert "values of 'sex' in" in remark
    assert "it knows 'f', 'm'" in remark


def test_other_columns_are_named(model: str, tmp_path: Path) -> None:
    text = "".join(f"{extra},{line}\n" for extra, line in zip(["ward", *"ABCD"], RAW.splitlines(), strict=True))
    answers = predict_file(model, written(tmp_path, text))
    np.testing.assert_allclose(shares(answers), ILL, rtol=1e-5)
    assert "the model does not take 'ward' of" in answers.remarks[0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (RAW.replace("age", "Age"), r"the column 'age' is missing\. Rename 'Age' to 'age'"),
        (RAW.replace("smoker", "smokers"), "the column 'smoker' is missing. Rename 'smokers' to 'smoker'"),
        (
            RAW.replace("sex", "ward"),
            "the column 'sex' is missing. Add it: the model takes 'age', 'smoker', 'sex', 'seen'",
        ),
        ("ward,bed\n1,2\n", "4 columns are missing: 'age', 'smoker', 'sex', 'seen'"),
        (RAW.replace("48,", "old,"), r"d\.csv: column 'age', row 4 \(line 5\): 'old' is not a number"),
        (
            RAW.replace("53,", ","),
            r"column 'age', row 3 \(line 4\): the cell is empty, but no value of this column was missing",
        ),
        (RAW.replace("yes", "often"), r"column 'smoker', row 1 \(line 2\): 'often' is not a boolean"),
        (RAW.replace("NA", "1.2.1970"), r"column 'seen', row 3 \(line 4\): '1\.2\.1970' is not a date"),
        (RAW.replace("53", "1e39"), "cannot hold the value 1e\\+39"),
        ("1,2\n", "a row has 2 cells, but the model takes 4 columns. Add a header"),
    ],
)
def test_tables_that_do_not_fit(text: str, message: str, model: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message) as raised:
        predict_file(model, written(tmp_path, text))
    assert raised.value.remedy


def test_predictions_are_written_in_the_order_of_the_rows(model: str, tmp_path: Path) -> None:
    path = written(tmp_path, RAW)
    for name in ("out.csv", "out.json", "out.parquet", "out.npz"):
        done = CliRunner().invoke(app, ["predict", model, str(path), "-o", str(tmp_path / name)])
        assert done.exit_code == 0, done.output
        assert "accuracy 1.0000 over 4 examples" in done.output
    rows = list(csv.DictReader((tmp_path / "out.csv").read_text().splitlines()))
    assert [row["prediction"] for row in rows] == ["ill", "healthy", "ill", "healthy"]
    assert list(rows[0]) == ["prediction", "probability", "probability of healthy", "probability of ill", "label"]
    np.testing.assert_allclose([float(row["probability of ill"]) for row in rows], ILL, rtol=1e-5)
    np.testing.assert_allclose(
        [float(row["probability"]) for row in rows], np.maximum(ILL, 1 - np.array(ILL)), rtol=1e-5
    )
    loaded = json.loads((tmp_path / "out.json").read_text())
    assert [row["label"] for row in loaded] == ["ill", "healthy", "ill", "healthy"]
    table = parquet.read_table(tmp_path / "out.parquet")
    assert table.column_names == list(rows[0])
    with np.load(tmp_path / "out.npz") as arrays:
        np.testing.assert_array_equal(arrays["classes"], [1, 0, 1, 0])
    for name, message in (
        ("out.txt", "cannot be written in this format"),
        ("no/out.csv", "there is no such folder"),
    ):
        done = CliRunner().invoke(app, ["predict", model, str(path), "-o", str(tmp_path / name)])
        assert done.exit_code != 0
        assert isinstance(done.exception, InputError | SystemExit)
        assert message in f"{done.exception} {done.output}"


def test_outputs_whose_names_are_taken(tmp_path: Path) -> None:
    value = helper.make_tensor_value_info
    nodes = [helper.make_node("Identity", ["x"], [name]) for name in ("probability", "prediction", "label")]
    outputs = [value(name, TensorProto.FLOAT, ["n", 1]) for name in ("probability", "prediction", "label")]
    graph = helper.make_graph(nodes, "g", [value("x", TensorProto.FLOAT, ["n", 1])], outputs)
    (tmp_path / "m.onnx").write_bytes(onnx_model(graph, Card(classes=("no", "yes"))))
    assert columns_of(predict_file(str(tmp_path / "m.onnx"), written(tmp_path, "x\n0.25\n"))) == {
        "prediction": ["no"], "probability": [0.75], "probability of no": [0.75], "probability of yes": [0.25],
        "output prediction": [0.25], "output label": [0.25],
    }  # fmt: skip


def test_several_inputs_and_outputs_by_name(tmp_path: Path) -> None:
    nodes = [helper.make_node("Add", ["a", "b"], ["sum"]), helper.make_node("Concat", ["a", "b"], ["both"], axis=1),
             helper.make_node("Identity", ["word"], ["echo"])]  # fmt: skip
    value = helper.make_tensor_value_info
    inputs = [value(name, TensorProto.FLOAT, ["n", 1]) for name in "ab"] + [value("word", TensorProto.STRING, ["n"])]
    outputs = [value("sum", TensorProto.FLOAT, ["n", 1]), value("both", TensorProto.FLOAT, ["n", 2]),
               value("echo", TensorProto.STRING, ["n"])]  # fmt: skip
    (tmp_path / "m.onnx").write_bytes(onnx_model(helper.make_graph(nodes, "g", inputs, outputs)))
    path = written(tmp_path, "b,word,a\n2,NA,1\n4,ü,3\n")
    found = columns_of(predict_file(str(tmp_path / "m.onnx"), path))
    assert found == {"sum": [3, 7], "both[0]": [1, 3], "both[1]": [2, 4], "echo": ["", "ü"]}
    np.savez(tmp_path / "d.npz", a=[[1], [3]], b=[[2], [4]], word=["NA", "ü"])
    found = columns_of(predict_file(str(tmp_path / "m.onnx"), tmp_path / "d.npz"))
    assert found == {"sum": [3, 7], "both[0]": [1, 3], "both[1]": [2, 4], "echo": ["NA", "ü"]}
    done = CliRunner().invoke(app, ["predict", str(tmp_path / "m.onnx"), str(path)])
    assert done.exit_code == 0, done.output
    for word in ("sum", "both", "echo", "ü", "[3. 4.]"):
        assert word in done.output
    done = CliRunner().invoke(app, ["predict", str(tmp_path / "m.onnx"), str(path), "-o", str(tmp_path / "o.npz")])
    with np.load(tmp_path / "o.npz") as arrays:
        assert arrays["echo"].tolist() == ["", "ü"]
    np.savez(tmp_path / "d.npz", a=[[1]], b=[[2], [4]], word=["x", "y"])
    with pytest.raises(DataError, match="the inputs differ in their number of examples: 'a' 1, 'b' 2"):
        predict_file(str(tmp_path / "m.onnx"), tmp_path / "d.npz")
    np.savez(tmp_path / "d.npz", a=[[1]], word=["x"])
    with pytest.raises(
        DataError, match=r"there is no array 'b'\. Name its arrays as the inputs of the model: 'a', 'b'"
    ):
        predict_file(str(tmp_path / "m.onnx"), tmp_path / "d.npz")


def test_a_model_that_does_not_name_its_columns_takes_them_in_order(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(softmax(card=Card(classes=("r", "g", "b"))))
    answers = predict_file(str(tmp_path / "m.onnx"), written(tmp_path, "w,x,y,z,label\n1,2,3,4,g\n"))
    expected = predict(tmp_path / "m.onnx", [[1, 2, 3, 4]])
    assert "the model does not name its columns" in answers.remarks[0]
    np.testing.assert_array_equal(answers.prediction.outputs, expected.outputs)
    assert answers.labels is not None
    assert answers.labels.tolist() == [1]
    answers = predict_file(str(tmp_path / "m.onnx"), written(tmp_path, "w,x,y,z\n1,2,3,4\n"))
    np.testing.assert_array_equal(answers.prediction.outputs, expected.outputs)
    assert answers.labels is None  # without y, the row would be too short
    for text, message in (("1,2,3,\n", "a row has 3 features"), ("1,2,,3\n", "column '3', row 1 .* is not a number")):
        with pytest.raises(DataError, match=message):
            predict_file(str(tmp_path / "m.onnx"), written(tmp_path, text))


def test_a_regression_gives_numbers_and_columns_of_numbers_alone_are_one_input(tmp_path: Path) -> None:
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], "g", [value("x", TensorProto.FLOAT, ["n", 2])],
        [value("y", TensorProto.FLOAT, ["n", 1])], [numpy_helper.from_array(np.float32([[1], [10]]), "w")],
    )  # fmt: skip
    card = Card(columns=(Column(name="a", kind="number"), Column(name="b", kind="number")), label="price")
    (tmp_path / "m.onnx").write_bytes(onnx_model(graph, card))
    answers = predict_file(str(tmp_path / "m.onnx"), written(tmp_path, "b,price,a\n2,21.5,1\n4,43,3\n"))
    assert columns_of(answers) == {"y": [21, 43], "label": ["21.5", "43.0"]}
    assert answers.accuracy is None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([[np.nan, 1, 2, 3]], "input 'x', example 0: a value is NaN or infinite"),
        ([["1", "2", "3", "4"]], "takes numbers"),
        ([[1e39, 1, 2, 3]], "which cannot hold the value 1e\\+39"),
        (np.zeros((1, 4), complex), "takes numbers"),
        (np.zeros((1, 5)), r"the features have shape \(1, 5\)"),
    ],
)
def test_features_that_a_model_must_not_get(values: Any, message: str, tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(softmax())
    with pytest.raises(DataError, match=message):
        predict(tmp_path / "m.onnx", values)


@pytest.mark.parametrize(
    ("dtype", "bad"),
    [("UINT8", 256), ("UINT8", -1), ("INT64", 1.5), ("INT64", 2.0**53 + 2), ("BOOL", 2), ("INT32", np.nan)],
)
def test_whole_numbers_are_not_cut_off(dtype: str, bad: float, tmp_path: Path) -> None:
    value = helper.make_tensor_value_info
    kind = getattr(TensorProto, dtype)
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", [value("x", kind, ["n"])],
                              [value("y", kind, ["n"])])  # fmt: skip
    (tmp_path / "m.onnx").write_bytes(onnx_model(graph))
    assert predict(tmp_path / "m.onnx", np.array([1.0, 0.0])).outputs.tolist() == [1, 0]
    with pytest.raises(DataError, match="which cannot hold the value"):
        predict(tmp_path / "m.onnx", np.array([1.0, bad]))


def test_inputs_by_name(model: str) -> None:
    good: dict[str, Any] = {"numbers": [[49, 1, 0]], "categories": [["m"]]}
    assert predict(model, good).names == PATIENTS.classes
    changes: list[Callable[[], Any]] = [
        lambda: predict(model, [[1, 2, 3]]),
        lambda: predict(model, {"numbers": [[49, 1, 0]]}),
        lambda: predict(model, {**good, "more": [[1]]}),
        lambda: predict(model, {**good, "categories": [[1]]}),
        lambda: predict(model, {**good, "categories": np.array([[None]])}),
    ]
    messages = ["Give an array for each of them", "input 'categories' is missing", "no input 'more'", "takes strings",
                "a value of type NoneType"]  # fmt: skip
    for call, message in zip(changes, messages, strict=True):
        with pytest.raises(InputError, match=message):
            call()


def test_columns_by_name_in_python(model: str) -> None:
    table: dict[str, Any] = {
        "seen": [date(1970, 1, 1), None, np.datetime64("NaT"), "1970-01-01"], "sex": ["m", "f", None, "f"],
        "age": np.array([49, 49, 53, 48]), "smoker": [True, None, "no", 1],
    }  # fmt: skip
    np.testing.assert_allclose(predict(model, table).outputs[:, 0], ILL, rtol=1e-5)
    days = np.array(["1970-01-01", "NaT", "NaT", "1970-01-01"], "datetime64[ns]")
    np.testing.assert_allclose(predict(model, {**table, "seen": days}).outputs[:, 0], ILL, rtol=1e-5)
    for changes, message in (
        ({"ward": [1] * 4}, "the model does not take 'ward'. Leave other columns out"),
        ({"age": [1]}, r"the columns differ in shape: 'age' \(1,\), 'smoker' \(4,\)"),
        ({"age": ["x"] * 4}, r"the features: column 'age', row 1: 'x' is not a number"),
    ):
        with pytest.raises(DataError, match=message):
            predict(model, {**table, **changes})
    del table["age"]
    with pytest.raises(DataError, match="the column 'age' is missing"):
        predict(model, table)
