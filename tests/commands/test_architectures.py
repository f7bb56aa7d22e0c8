"""Models of many kinds go through check, two rounds, export, prediction and a server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fedpipe
from fedpipe.data.trees import tree_of
from fedpipe.errors import ExportError
from fedpipe.federation.file import read_federation
from fedpipe.registry.export import run_onnx
from fedpipe.registry.prediction import open_model
from tests.architectures import ALL

pytestmark = [pytest.mark.heavy, pytest.mark.xdist_group("runs")]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("architectures")


@pytest.mark.parametrize("name", list(ALL))
def test_two_rounds(name: str, place: Path) -> None:
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
    arrays = architecture.arrays()
    features = {k.removeprefix("x/"): v for k, v in arrays.items() if k.startswith("x/")} or arrays["x"]
    opened = open_model(place / name / "out" / "model.onnx")
    outputs = run_onnx(place / name / "out" / "model.onnx", tree_of(features, "features", name))
    assert [len(output) for output in outputs] == [64] * len(opened.outputs)
    assert all(np.isfinite(output).all() for output in outputs)
