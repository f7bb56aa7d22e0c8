"""Tests that models are tried in a separate process before they are loaded."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from fedpipe.errors import CorruptError
from fedpipe.frameworks import cores
from fedpipe.registry.prediction import open_model
from fedpipe.registry.publication import ModelVersion
from fedpipe.serving import runtime
from fedpipe.serving.runtime import load, try_model
from tests.served import X, onnx_model, softmax

ENTRY = ModelVersion("m", 1)


def graph_of(nodes: list[object], shape: list[object], out: list[object], *constants: object) -> bytes:
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, "g", [value("x", TensorProto.FLOAT, shape)], [value("y", TensorProto.FLOAT, out)], list(constants)
    )
    return onnx_model(graph)


def test_a_loaded_model_answers_as_onnxruntime_does() -> None:
    loaded = load(ENTRY, softmax(), threads=1)
    np.testing.assert_array_equal(loaded.run({"x": X})["p"], open_model(softmax()).run({"x": X})[0])
    assert loaded.trial.batches


def test_whether_examples_can_be_run_together_is_tried() -> None:
    fixed = graph_of([helper.make_node("Softmax", ["x"], ["y"], axis=1)], [2, 4], [2, 4])
    mean = graph_of([helper.make_node("ReduceMean", ["x"], ["y"], keepdims=0)], ["n", 4], ["m"])
    turned = graph_of([helper.make_node("Transpose", ["x"], ["y"])], ["n", 4], ["m", "n"])
    assert try_model(open_model(softmax())).batches
    for data in (fixed, mean, turned):
        assert not try_model(open_model(data)).batches


def test_dimensions_that_are_free_get_a_size_that_works() -> None:
    kernel = numpy_helper.from_array(np.ones((1, 1, 5), np.float32), "k")
    wide = graph_of([helper.make_node("Conv", ["x", "k"], ["y"])], ["n", 1, "length"], ["n", 1, "rest"], kernel)
    assert try_model(open_model(wide)).batches


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is not an ONNX model"),
        (b"nonsense", "is not an ONNX model"),
        (softmax()[:-20], "is not an ONNX model"),
        (
            graph_of([helper.make_node("Nothing", ["x"], ["y"], domain="unknown")], ["n", 4], ["n", 4]),
            "is not an ONNX model",
        ),
    ],
)
def test_an_invalid_model_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(CorruptError, match=message):
        load(ENTRY, data, threads=1)


def test_a_model_that_takes_all_memory_is_refused() -> None:
    size = numpy_helper.from_array(np.int64([2**20, 2**14]), "size")
    huge = graph_of(
        [
            helper.make_node("ConstantOfShape", ["size"], ["big"], value=numpy_helper.from_array(np.float32([1]))),
            helper.make_node("ReduceSum", ["big"], ["sum"], keepdims=0),
            helper.make_node("Add", ["x", "sum"], ["y"]),
        ],
        ["n", 4],
        ["n", 4],
        size,
    )
    with pytest.raises(CorruptError, match="m version 1: "):
        load(ENTRY, huge, threads=1)


def test_a_model_that_never_answers_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    value = helper.make_tensor_value_info
    body = helper.make_graph(
        [helper.make_node("Identity", ["go_in"], ["go_out"]), helper.make_node("Add", ["a_in", "a_in"], ["a_out"])],
        "body",
        [
            value("i", TensorProto.INT64, []),
            value("go_in", TensorProto.BOOL, []),
            value("a_in", TensorProto.FLOAT, [1, 4]),
        ],
        [value("go_out", TensorProto.BOOL, []), value("a_out", TensorProto.FLOAT, [1, 4])],
    )
    go = numpy_helper.from_array(np.bool_(True), "go")
    endless = graph_of([helper.make_node("Loop", ["", "go", "x"], ["y"], body=body)], [1, 4], [1, 4], go)
    monkeypatch.setattr(runtime, "TRIAL_SECONDS", 3.0)
    with pytest.raises(CorruptError, match="does not answer within 3 s"):
        load(ENTRY, endless, threads=1)


def test_a_model_that_refers_to_other_files_is_refused() -> None:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="pyproject.toml")
    tensor.external_data.add(key="length", value="16")
    outside = graph_of([helper.make_node("Add", ["x", "w"], ["y"])], ["n", 4], ["n", 4], tensor)
    with pytest.raises(CorruptError, match="External data"):
        load(ENTRY, outside, threads=1)


def test_a_model_of_text_is_loaded() -> None:
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "g",
        [value("x", TensorProto.STRING, ["n"])],
        [value("y", TensorProto.STRING, ["n"])],
    )
    loaded = load(ENTRY, onnx_model(graph), threads=1)
    assert loaded.trial.batches
    assert loaded.run({"x": np.array(["a", "ü"], object)})["y"].tolist() == ["a", "ü"]


def test_a_model_of_other_values_is_refused() -> None:
    sequence = helper.make_tensor_sequence_value_info("x", TensorProto.FLOAT, ["n"])
    length = helper.make_tensor_value_info("y", TensorProto.INT64, [])
    graph = helper.make_graph([helper.make_node("SequenceLength", ["x"], ["y"])], "g", [sequence], [length])
    with pytest.raises(CorruptError, match=r"'x' is a seq\(tensor\(float\)\), not an array of numbers or strings"):
        load(ENTRY, onnx_model(graph), threads=1)


def test_an_invalid_card_is_refused() -> None:
    model = helper.make_model(
        helper.make_graph(
            [helper.make_node("Identity", ["x"], ["y"])],
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    model.metadata_props.add(key="fedpipe.card", value='{"classes": 3}')
    with pytest.raises(CorruptError, match="not a valid card"):
        load(ENTRY, model.SerializeToString(), threads=1)


def test_cores_are_at_least_one() -> None:
    assert cores() >= 1
