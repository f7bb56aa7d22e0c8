"""Runs the learners of examples/frameworks from the file to the server."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

import fedpipe
from fedpipe.commands.check import check
from tests.commands.runs import ROOT
from tests.federations import change
from tests.served import serving

FOLDER = ROOT / "examples" / "frameworks"
ROBUST = """averaging
  before: [{name: nearest_neighbour_mixing, byzantine: 1}]
  rule: median
  vote: {rule: all_vote}"""


def copied(folder: Path, model: str, file: str = "federation.yaml") -> Path:
    """Copy an example with its data, and return its folder."""
    for name in ("digits.py", file, model):
        shutil.copy(FOLDER / name, folder)
    (folder / file).rename(folder / "federation.yaml")
    subprocess.run([sys.executable, folder / "digits.py"], check=True)
    return folder


def trained_and_served(folder: Path, model: str) -> dict[str, Any]:
    """Check an example, train it in a session with a robust rule and votes, predict with it and serve it.

    Returns:
        The summary of the run, whose predictions are right for most digits and those of the server.
    """
    file = change(copied(folder, model), **{
        "scikit_learn.py:learner": f"{model}:learner", "rounds: 10": "rounds: 4", "name: averaging": f"name: {ROBUST}",
        "vote: 0.1, test: 0.1": "vote: 0.2, test: 0.1", "train: 0.8": "train: 0.7",
    })  # fmt: skip
    assert "input (None, 64), learner of model.py" in str(check(file))
    summary = fedpipe.run(file, out=folder / "out").summary
    assert [entry["vote"]["voters"] for entry in summary["rounds"]] == [0, 5, 5, 5, 5]
    assert summary["evaluation"]["central"]["metrics"]["accuracy"] > 0.85
    assert summary["onnx"]["max_abs_difference"] < 1e-5
    with np.load(folder / "digits.npz") as data:
        x, y = data["x"], data["y"]
    found = fedpipe.predict(folder / "out" / "model.onnx", x)
    assert np.mean(found.classes == y) > 0.85
    with serving(folder / "server", "--store", f"file://{folder}/store/digits") as server:
        server.wait_for("digits", 1)
        row = {"name": "x", "shape": [2, 64], "datatype": "FP32", "data": x[:2].ravel().tolist()}
        answer = server.post("/v2/models/digits/infer", json={"inputs": [row]}).json()
    np.testing.assert_allclose(answer["outputs"][0]["data"], np.ravel(found.outputs[0][:2]), atol=1e-5)
    return summary
