"""Models of many kinds go through check, two rounds, export, prediction and a server."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fedpipe
from fedpipe.data.ports import TEXT, cast, fed
from fedpipe.data.trees import Tree, tree_of
from fedpipe.errors import ExportError
from fedpipe.federation.file import read_federation
from fedpipe.registry.export import run_onnx
from fedpipe.registry.prediction import OnnxModel, open_model
from fedpipe.rounds.plan import Port
from fedpipe.serving.tensors import DATATYPES
from tests.architectures import ALL
from tests.served import serving

pytestmark = [pytest.mark.heavy, pytest.mark.xdist_group("runs")]


@pytest.mark.parametrize("name", list(ALL))
def test_two_rounds(name: str, tmp_path: Path) -> None:
    """Each is checked, trained, exported, predicts, and is served from the raw values that load returned."""
    place = tmp_path
    architecture = ALL[name]
    if architecture.remarks:
        with pytest.raises(ExportError) as refused:
            fedpipe.check(architecture.write(place / f"{name}-exported", name, export={}))
        assert all(part in str(refused.value) for part in architecture.remarks)
    file = architecture.write(place / name, name)
    fedpipe.check(file)
    result = fedpipe.run(file, out=place / name / "out", workers=1)
    rounds: list[Any] = result.summary["rounds"]
    assert [entry["learners"] for entry in rounds] == [["a", "b"], ["a", "b"]]
    assert rounds[0]["weights"] != rounds[1]["weights"]
    assert np.isfinite(result.summary["evaluation"]["federated"]["metrics"]["loss"])
    if read_federation(file).exported is None:
        assert not (place / name / "out" / "model.onnx").exists()
        return
    opened = open_model(place / name / "out" / "model.onnx")
    outputs = run_onnx(place / name / "out" / "model.onnx", _features(name))
    assert [len(output) for output in outputs] == [64] * len(opened.outputs)
    assert all(np.isfinite(output).all() for output in outputs)
    _check_served(place, name)


def _check_served(place: Path, name: str) -> None:
    """Compares the answer of a server with that of the file."""
    file = place / "models" / name / "1" / "model.onnx"
    file.parent.mkdir(parents=True)
    shutil.copy(place / name / "out" / "model.onnx", file)
    features = {k: v[:3] for k, v in _fed(name, open_model(file)).items()}
    inputs = [
        {"name": k, "shape": list(v.shape), "datatype": DATATYPES[v.dtype], "data": v.reshape(-1).tolist()}
        for k, v in features.items()
    ]
    expected = open_model(file).run(features)
    with serving(place / "server", "--models", str(place / "models")) as server:
        server.wait_for(name, 1)
        answer = server.post(f"/v2/models/{name}/infer", json={"inputs": inputs}).json()
    assert len(answer["outputs"]) == len(expected)
    for output, values in zip(answer["outputs"], expected, strict=True):
        np.testing.assert_allclose(output["data"], values.reshape(-1), rtol=1e-4, atol=1e-5)


def _fed(name: str, opened: OnnxModel) -> dict[str, Any]:
    ports = [Port(s.name, TEXT if s.dtype == object else s.dtype.name, tuple(s.shape)) for s in opened.inputs]
    return cast(ports, fed(ports, _features(name)))


def _features(name: str) -> Tree:
    arrays = ALL[name].arrays()
    given = {k.removeprefix("x/"): v for k, v in arrays.items() if k.startswith("x/")} or arrays["x"]
    return tree_of(given, "features", name)
