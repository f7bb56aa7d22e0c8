"""Whole runs with learners in NumPy: everything but TensorFlow, in seconds."""

from __future__ import annotations

import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import fedpipe
from fedpipe.commands.check import check
from fedpipe.commands.explore import explore
from fedpipe.commands.run import fetch_results, run
from fedpipe.engine.local import Event
from fedpipe.errors import DataError, InputError
from fedpipe.rounds.history import history
from fedpipe.rounds.plan import RunPlace
from tests.commands.runs import ROOT, store_of
from tests.federations import change
from tests.served import serving


@pytest.fixture
def file(numpy_digits: Path) -> Path:
    return numpy_digits / "federation.yaml"


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


def test_a_run_without_an_export(file: Path, tmp_path: Path) -> None:
    change(file.parent, **{"export: {opset: 17}": "export: none"})
    assert fedpipe.check(file)
    summary = fedpipe.run(file, out=tmp_path / "out", parameters={"rounds": 1}).summary
    assert summary["onnx"] == {}
    assert summary["evaluation"]["central"]["metrics"]["loss"] > 0
    assert not (tmp_path / "out" / "model.onnx").exists()
    assert not list(store_of(file.parent / "store").below("models").keys())
    origin = fedpipe.export(file, tmp_path / "exported.onnx")  # by an explicit wish, with the defaults
    assert origin["opset"] == 17


def test_results_that_do_not_fit_on_the_disk(file: Path, tmp_path: Path) -> None:
    """They stay in the store, and the folder keeps no part of a file."""
    done = run(file, store=f"file://{tmp_path}/store", out=tmp_path / "out", training={"rounds": 1}, export="none")
    place = RunPlace(store=f"file://{tmp_path}/store", federation=done.summary["federation"], run=done.summary["run"])
    (tmp_path / "small").mkdir()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, ((tmp_path / "out" / "summary.json").stat().st_size, hard))
    try:
        with pytest.raises(InputError, match=r"small/report\.html: cannot be written: File too large\. Choose"):
            fetch_results(place, tmp_path / "small")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in (tmp_path / "small").iterdir()] == ["summary.json"]
    assert fetch_results(place, tmp_path / "small") == done.summary


def test_a_second_run_continues_from_the_first(file: Path, tmp_path: Path) -> None:
    """Under a name of its own: other settings under the same name are refused."""
    fedpipe.run(file, out=tmp_path / "out", parameters={"rounds": 2, "learning_rate": "0.1"})
    with pytest.raises(InputError, match=r"training\.learning_rate: 0\.1 -> 0\.0"):
        fedpipe.run(file, out=tmp_path / "out", parameters={"rounds": 2})
    summary = fedpipe.run(file, name="run-2", out=tmp_path / "out", parameters={"rounds": 1}).summary
    first, second = (history(store_of(file.parent / "store"), name) for name in ("run-1", "run-2"))
    assert second[0].weights == first[-1].weights
    assert summary["onnx"]["path"] == "models/digits/2/model.onnx"
    origin = fedpipe.export(file, tmp_path / "exported.onnx")
    assert origin["weights"] == second[-1].weights
    assert (tmp_path / "exported.onnx").read_bytes() == (tmp_path / "out" / "model.onnx").read_bytes()


def test_a_finished_run_without_test_parts_repeats_nothing(file: Path, tmp_path: Path) -> None:
    """A shard has nothing to test however often it is tried; own data may have something the next time."""
    np.savez(file.parent / "own.npz", x=np.zeros((40, 8, 8, 1), np.float32), y=np.zeros(40, int))
    own = "  - name: hospital-b\n    data: own.npz\n  - name: hospital-c\n"
    parts = "parts: {train: 1.0, vote: 0.0, test: 0.0}"
    change(file.parent, **{"parts: {train: 0.8, vote: 0.1, test: 0.1}": parts, "rounds: 10": "rounds: 1"})
    change(file.parent, **{"  - name: hospital-b\n  - name: hospital-c\n": own})
    events: list[Event] = []
    fedpipe.run(file, out=tmp_path / "out")
    fedpipe.run(file, out=tmp_path / "out", listener=events.append)
    again = {e.inputs["learner"]: e.what for e in events if e.task.step == "learn" and e.what in ("found", "done")}
    assert again == {f"hospital-{k}": "done" if k == "b" else "found" for k in "abcde"}


def test_data_of_their_own_read_by_model_py(file: Path, tmp_path: Path) -> None:
    """Shown before the run, trained on in it; a learner whose data cannot be read is dropped, and the run continues."""
    model = file.parent / "model.py"
    load = "\n\ndef load(uri):\n    with np.load(uri) as data:\n        return data['x'][:300], data['y'][:300]\n"
    model.write_text(f"import numpy as np\n{model.read_text()}{load}")
    own = "  - name: hospital-b\n    data: digits.npz\n  - name: hospital-c\n    data: none.npz\n"
    change(file.parent, **{"  - name: hospital-b\n  - name: hospital-c\n": own, "rounds: 10": "rounds: 2"})
    looked = explore(file, tmp_path / "data.html")
    assert {view.learner: view.examples for view in looked.views}["hospital-b"] == 300
    assert "load(" in looked.left_out["hospital-c"]
    rounds = fedpipe.run(file, out=tmp_path / "out").summary["rounds"]
    assert [entry["learners"] for entry in rounds] == [[f"hospital-{k}" for k in "abde"]] * 2
    for entry in rounds:
        assert [d["learner"] for d in entry["dropped"]] == ["hospital-c"]
        assert "FileNotFoundError" in entry["dropped"][0]["why"]
    assert "FileNotFoundError" in (tmp_path / "out" / "report.html").read_text()


def test_mistakes_are_found_before_the_run(file: Path, tmp_path: Path) -> None:
    assert {"model": "650 parameters, input (None, 8, 8, 1), loss softmax"}.items() <= dict(check(file)).items()
    with pytest.raises(InputError, match=r"framework: cannot be simulated. TensorFlow Federated trains Keras models"):
        run(file, out=tmp_path / "out", simulation=True)
    change(file.parent, **{"deadline: 600": "deadline: 1.0e-7"})
    with pytest.raises(InputError, match=r"quorum.deadline: 1e-07 s is shorter than one request to the store"):
        fedpipe.run(file, out=tmp_path / "out")
    change(file.parent, **{"deadline: 1.0e-7": "deadline: 600"})
    change(file.parent, **{"  - name: hospital-b\n": "  - name: hospital-b\n    data: own.xlsx\n"})
    with pytest.raises(DataError, match=r"own\.xlsx: the file has an unsupported format"):
        fedpipe.run(file, out=tmp_path / "out")
    assert not list((file.parent / "store").rglob("record"))
    assert not (tmp_path / "out").exists()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # kfp's own
def test_our_components_in_a_pipeline_of_somebody_else(file: Path, tmp_path: Path) -> None:
    example = ROOT / "examples" / "compose.py"
    subprocess.run([sys.executable, example, file, tmp_path / "mine.yaml"], check=True)
    events: list[Event] = []
    fedpipe.run(tmp_path / "mine.yaml", out=tmp_path / "out", listener=events.append)
    (result,) = [e.result for e in events if e.task.name == "tell" and e.result]
    assert re.fullmatch(r"hospital-a offers update sha256:[0-9a-f]{64}\n?", result["parameterValues"]["message"])


def test_learning_rates_follow_their_schedules(file: Path, tmp_path: Path) -> None:
    """From the second round on, a millionth of the rate: the model stays where it is."""
    schedule, server = "schedule: {name: step, every: 1, by: 0.000001}", "momentum: 0.0}"
    text = file.read_text().replace("seed: 1\n", "seed: 1\n  learning_rate: 0.2\n")
    contents = {
        "none": text,
        "learners": text.replace("  seed: 1\n", f"  seed: 1\n  {schedule}\n"),
        "server": text.replace(server, f"{server}\n  {schedule}"),
    }
    losses = {}
    for name, content in contents.items():
        file.write_text(content)
        found = fedpipe.run(file, out=tmp_path / name, parameters={"rounds": 3}, store=str(tmp_path / f"{name}-store"))
        losses[name] = [r["metrics"]["test_loss"] for r in found.summary["rounds"]]
    assert len(set(contents.values())) == 3
    assert losses["none"][0] > losses["none"][2] + 0.05
    for name in ("learners", "server"):
        assert losses[name] == pytest.approx([losses["none"][0]] * 3, abs=1e-3)
