"""A cut network whose parts are apart: what each computes, and parts that do not fit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from fedpipe.cli.serving import _parts
from fedpipe.commands.predict import predict_file
from fedpipe.errors import InputError
from fedpipe.registry.joined import JoinedModel
from fedpipe.registry.prediction import open_model, predict

RANDOM = np.random.default_rng(3)
WEIGHTS = {name: RANDOM.normal(size=(4, 2)).astype(np.float32) for name in ("alice", "carol")}


def bottom(name: str, width: int = 2, outputs: int = 1) -> bytes:
    """x times a matrix; its input has the name that model.py gave it."""
    weights = numpy_helper.from_array(np.resize(WEIGHTS[name], (4, width)), "w")
    nodes = [helper.make_node("MatMul", ["x", "w"], [f"a{number}"]) for number in range(outputs)]
    results = [helper.make_tensor_value_info(f"a{n}", TensorProto.FLOAT, ["n", width]) for n in range(outputs)]
    given = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])]
    return written(helper.make_graph(nodes, "bottom", given, results, [weights]))


def top() -> bytes:
    """A softmax over the sum of both activations."""
    nodes = [helper.make_node("Add", ["carol", "alice"], ["s"]), helper.make_node("Softmax", ["s"], ["p"], axis=1)]
    given = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 2]) for name in ("carol", "alice")]
    result = [helper.make_tensor_value_info("p", TensorProto.FLOAT, ["n", 2])]
    return written(helper.make_graph(nodes, "top", given, result))


def written(graph: object) -> bytes:
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


def softmax(values: np.ndarray) -> np.ndarray:
    raised = np.exp(values)
    return np.asarray(raised / raised.sum(axis=1, keepdims=True))


ROWS = {name: RANDOM.normal(size=(5, 4)).astype(np.float32) for name in WEIGHTS}
EXPECTED = softmax(sum(ROWS[name] @ WEIGHTS[name] for name in WEIGHTS))


def test_features_of_all_parties_give_what_the_whole_network_would() -> None:
    joined = JoinedModel(open_model(top()), {name: open_model(bottom(name)) for name in WEIGHTS})
    assert [(spec.name, spec.shape) for spec in joined.inputs] == [("carol", (None, 4)), ("alice", (None, 4))]
    np.testing.assert_allclose(predict(joined, ROWS).outputs, EXPECTED, rtol=1e-5)


def test_activations_of_one_party_and_features_of_another(tmp_path: Path) -> None:
    """Carol sends activations; alice keeps her features."""
    (tmp_path / "top.onnx").write_bytes(top())
    (tmp_path / "alice.onnx").write_bytes(bottom("alice"))
    np.savez(tmp_path / "rows.npz", alice=ROWS["alice"], carol=ROWS["carol"] @ WEIGHTS["carol"])
    found = predict_file(tmp_path / "top.onnx", tmp_path / "rows.npz", parts={"alice": tmp_path / "alice.onnx"})
    np.testing.assert_allclose(found.prediction.outputs, EXPECTED, rtol=1e-5)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"alise": bottom("alice")}, "the top takes no activations of 'alise'. Did you mean 'alice'"),
        ({"alice": bottom("alice", width=3)}, r"returns rows of shape \[3\], but the top takes \[2\]"),
        ({"alice": bottom("alice", outputs=2)}, "the part of 'alice' has 1 inputs and 2 outputs"),
        ({"alice": top()}, "the part of 'alice' has 2 inputs and 1 outputs"),
    ],
)
def test_parts_that_do_not_fit(parts: dict[str, bytes], message: str) -> None:
    with pytest.raises(InputError, match=message):
        JoinedModel(open_model(top()), {name: open_model(data) for name, data in parts.items()})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["alice.onnx"], "'alice.onnx' is not PARTY=FILE or PARTY=URL"),
        (["alice="], "'alice=' is not PARTY=FILE"),
        (["=a.onnx"], "'=a.onnx' is not PARTY=FILE"),
        (["alice=a.onnx", "alice=b.onnx"], "alice has two parts"),
    ],
)
def test_options_that_name_no_part(given: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        _parts(given)


def test_a_url_may_have_an_equals_sign() -> None:
    assert _parts(["alice=http://host/v2?a=b"]) == {"alice": "http://host/v2?a=b"}
