from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from fedpipe.errors import DataError, InputError
from fedpipe.registry.prediction import predict


@pytest.fixture
def softmax(tmp_path: Path) -> Path:
    """Builds an ONNX model by hand: softmax over three features."""
    node = helper.make_node("Softmax", ["x"], ["p"], axis=1)
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3])],
        [helper.make_tensor_value_info("p", TensorProto.FLOAT, ["n", 3])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    return tmp_path / "m.onnx"


def test_classes_and_probabilities(softmax: Path) -> None:
    found = predict(softmax, [[0.0, 2.0, 1.0], [5, 0, 0]])
    assert found.classes is not None
    assert found.probabilities is not None
    assert list(found.classes) == [1, 0]
    np.testing.assert_allclose(found.probabilities[0], np.exp(2) / np.exp([0, 2, 1]).sum(), rtol=1e-6)


def test_features_that_do_not_fit(softmax: Path) -> None:
    with pytest.raises(DataError, match=r"the features have shape \(2, 4\), but the model takes \('n', 3\)"):
        predict(softmax, np.zeros((2, 4)))
    with pytest.raises(DataError, match=r"the features differ in length\. Give each example the same shape"):
        predict(softmax, [[1.0, 2.0, 3.0], [1.0, 2.0]])


def test_invalid_models(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no such file"):
        predict(tmp_path / "absent.onnx", [[1]])
    (tmp_path / "m.onnx").write_text("nonsense")
    with pytest.raises(InputError, match="is not an ONNX model"):
        predict(tmp_path / "m.onnx", [[1]])


def test_no_use_is_reported_to_the_makers_of_onnxruntime(softmax: Path, tmp_path: Path) -> None:
    """By default onnxruntime notes an identity of this machine, and sends events over the network."""
    cache = tmp_path / "cache"
    code = (
        "import sys\nfrom pathlib import Path\nfrom fedpipe.registry.prediction import predict\n"
        "print(predict(Path(sys.argv[1]), [[0.0, 2.0, 1.0]]).classes)"
    )
    kept = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    done = subprocess.run(
        [sys.executable, "-c", code, softmax],
        env={**kept, "XDG_CACHE_HOME": str(cache), "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[1]"
    assert not list(cache.rglob("*"))
    assert not list(tmp_path.rglob("*deviceid*"))
