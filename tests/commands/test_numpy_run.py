"""Whole runs with learners in NumPy: everything but TensorFlow, in seconds."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fedpipe
from fedpipe.commands.check import check
from fedpipe.commands.explore import explore
from fedpipe.commands.init import Algorithm, init
from fedpipe.commands.run import run
from fedpipe.engine.local import Event
from fedpipe.errors import DataError, InputError
from fedpipe.rounds.history import history
from fedpipe.store import Store, open_store
from tests.federations import change, use_numpy
from tests.served import serving

ROOT = Path(__file__).parents[2]


@pytest.fixture
def file(digits: Path) -> Path:
    return use_numpy(digits)


@pytest.fixture
def collective(tmp_path: Path) -> Path:
    init(tmp_path / "collective", Algorithm.collective, force=False)
    return change(use_numpy(tmp_path / "collective").parent, **{"rounds: 20": "rounds: 6"})


def store_of(folder: Path) -> Store:
    return open_store(str(folder)).below("digits")


def records(summary: dict[str, Any]) -> list[str]:
    return [entry["record"] for entry in summary["rounds"]]


def blocked(folder: Path) -> dict[str, str]:
    """An environment in which TensorFlow and Keras cannot be imported."""
    folder.mkdir()
    for name in ("tensorflow", "keras"):
        (folder / f"{name}.py").write_text(f"raise SystemError('{name} was imported')\n")
    return {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT / 'src'}"}


def test_from_the_file_to_a_served_model_without_tensorflow(file: Path, tmp_path: Path) -> None:
    """No step imports it, the export's worker neither; the model learns digits, and is served."""
    command = [sys.executable, "-m", "fedpipe", "run", str(file), "--out", str(tmp_path / "out")]
    done = subprocess.run(command, env=blocked(tmp_path / "blocked"), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    summary = fedpipe.run(file, out=tmp_path / "again").summary
    assert len(summary["rounds"]) == 10
    assert summary["rounds"][-1]["metrics"]["test_accuracy"] > 0.9
    assert summary["evaluation"]["central"]["metrics"]["accuracy"] > 0.9
    assert summary["onnx"]["max_abs_difference"] < 1e-6
    with np.load(file.parent / "digits.npz") as data:
        x, y = data["x"], data["y"]
    found = fedpipe.predict(tmp_path / "out" / "model.onnx", x)
    assert np.mean(found.classes == y) > 0.9
    with serving(tmp_path / "server", "--store", f"file://{file.parent}/store/digits") as server:
        server.wait_for("digits", 1)
        row = {"name": "features", "shape": [1, 8, 8, 1], "datatype": "FP32", "data": x[:1].ravel().tolist()}
        answer = server.post("/v2/models/digits/infer", json={"inputs": [row]}).json()
    np.testing.assert_allclose(answer["outputs"][0]["data"], found.outputs[0], atol=1e-5)


def test_a_session_single_steps_and_a_resumed_run_make_the_same_records(file: Path, tmp_path: Path) -> None:
    """One history, byte for byte: undisturbed, in steps, killed in the middle, and found again."""
    change(file.parent, **{"rounds: 10": "rounds: 40"})
    whole = fedpipe.run(file, out=tmp_path / "out").summary
    command = [sys.executable, "-m", "fedpipe", "run", str(file), "--store", str(tmp_path / "killed")]
    killed = store_of(tmp_path / "killed")
    with subprocess.Popen([*command, "--out", str(tmp_path / "o")], stdout=subprocess.DEVNULL) as process:
        while killed.size("runs/run-1/5/record") is None:
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    assert killed.size("runs/run-1/40/record") is None
    events: list[Event] = []
    again = fedpipe.run(file, store=str(tmp_path / "killed"), out=tmp_path / "o", listener=events.append).summary
    assert records(again) == records(whole)
    assert again["onnx"]["digest"] == whole["onnx"]["digest"]
    assert killed.read("HEAD").data == store_of(file.parent / "store").read("HEAD").data
    assert {e.what for e in events if e.task.step in ("shard", "initialise")} == {"started", "found", "done"}
    change(file.parent, **{"rounds_per_step: all": "rounds_per_step: 1", "rounds: 40": "rounds: 2"})
    two = fedpipe.run(file, store=str(tmp_path / "steps"), out=tmp_path / "steps").summary
    assert [r["weights"] for r in two["rounds"]] == [r["weights"] for r in whole["rounds"][:2]]


def test_votes_in_a_session_and_in_single_steps(collective: Path, tmp_path: Path) -> None:
    session = fedpipe.run(collective, out=tmp_path / "out").summary
    assert session["rounds"][-1]["metrics"]["test_accuracy"] > 0.85
    for earlier, later in zip(session["rounds"], session["rounds"][1:], strict=False):
        assert later["vote"]["voters"] == 4
        assert (later["weights"] != earlier["weights"]) == later["vote"]["accepted"]
    change(collective.parent, **{"rounds_per_step: all": "rounds_per_step: 1"})
    steps = fedpipe.run(collective, store=str(tmp_path / "steps"), out=tmp_path / "steps").summary
    assert records(steps) == records(session)


def test_a_second_run_continues_from_the_first(file: Path, tmp_path: Path) -> None:
    fedpipe.run(file, out=tmp_path / "out", parameters={"rounds": 2})
    fedpipe.run(file, name="run-2", out=tmp_path / "out", parameters={"rounds": 1})
    first, second = (history(store_of(file.parent / "store"), name) for name in ("run-1", "run-2"))
    assert second[0].weights == first[-1].weights
    origin = fedpipe.export(file, tmp_path / "exported.onnx")
    assert origin["weights"] == second[-1].weights
    assert (tmp_path / "exported.onnx").read_bytes() == (tmp_path / "out" / "model.onnx").read_bytes()


def test_data_of_their_own_read_by_model_py(file: Path, tmp_path: Path) -> None:
    """Shown before the run, trained on in it; a learner whose data cannot be read is dropped."""
    model = file.parent / "model.py"
    load = "\n\ndef load(uri):\n    with np.load(uri) as data:\n        return data['x'][:300], data['y'][:300]\n"
    model.write_text(f"import numpy as np\n{model.read_text()}{load}")
    own = "  - name: hospital-b\n    data: digits.npz\n  - name: hospital-c\n    data: none.npz\n"
    change(file.parent, **{"  - name: hospital-b\n  - name: hospital-c\n": own, "rounds: 10": "rounds: 1"})
    looked = explore(file, tmp_path / "data.html")
    assert {view.learner: view.examples for view in looked.views}["hospital-b"] == 300
    assert "load(" in looked.left_out["hospital-c"]
    (entry,) = fedpipe.run(file, out=tmp_path / "out").summary["rounds"]
    assert "hospital-b" in entry["learners"]
    assert [d["learner"] for d in entry["dropped"]] == ["hospital-c"]


def test_mistakes_are_found_before_the_run(file: Path, tmp_path: Path) -> None:
    assert {"model": "650 parameters, input (None, 8, 8, 1), loss softmax"}.items() <= dict(check(file)).items()
    with pytest.raises(InputError, match=r"framework: cannot be simulated. TensorFlow Federated trains Keras models"):
        run(file, out=tmp_path / "out", simulation=True)
    model = file.parent / "model.py"
    model.write_text(model.read_text().replace("outputs=10", "outputs=7"))
    with pytest.raises(fedpipe.FedpipeError, match="the labels go from 0 to 9, the model has 7 outputs"):
        fedpipe.run(file, out=tmp_path / "out")
    change(file.parent, **{"  - name: hospital-b\n": "  - name: hospital-b\n    data: own.csv\n"})
    model.write_text(model.read_text().replace("outputs=7", "outputs=10"))
    with pytest.raises(DataError, match=r"'.*own.csv' has an unsupported format"):
        fedpipe.run(file, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
