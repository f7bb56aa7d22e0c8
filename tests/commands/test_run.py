"""A whole run with Keras, as `make demo` starts it: from the federation file to a verified model."""

from __future__ import annotations

import contextlib
import json
import multiprocessing.forkserver
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fedpipe
from fedpipe.engine.local import Event
from fedpipe.rounds.history import history
from fedpipe.store import open_store

pytestmark = [pytest.mark.heavy, pytest.mark.xdist_group("runs")]
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


def workers() -> list[int]:
    """Returns the processes that the forkserver has forked: those that train."""
    server = multiprocessing.forkserver._forkserver._forkserver_pid  # type: ignore[attr-defined]
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if int((folder / "stat").read_text().rpartition(")")[2].split()[1]) == server:
                found.append(int(folder.name))
    return found


def test_from_the_file_to_a_verified_model(digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After round 1 all workers are killed: the engine starts others, and every learner continues."""
    monkeypatch.setattr("fedpipe.engine.local._LONGEST_WAIT", 0.1)
    file = digits / "federation.yaml"

    def listen(event: Event) -> None:
        if event.moment and event.moment.record and event.moment.record.round == 1:
            for process in workers():
                os.kill(process, signal.SIGKILL)

    result = fedpipe.run(file, out=digits / "out", listener=listen)
    logs = [path.read_text() for path in (digits / "out" / "logs").glob("learn-*.log")]
    assert any("works in a new process" in log for log in logs)
    summary = json.loads((digits / "out" / "summary.json").read_text())
    assert summary == result.summary
    assert list(summary) == [
        "federation",
        "run",
        "store",
        "begun_from",
        "rounds",
        "evaluation",
        "onnx",
        "seconds",
        "ending",
    ]
    assert summary["ending"] == "done"
    assert (summary["federation"], summary["run"]) == ("digits", "run-1")
    for number, entry in enumerate(summary["rounds"], 1):
        assert list(entry) == ["round", "loss", "metrics", "learners", "dropped", "record", "weights", "seconds",
                               "tests"]  # fmt: skip
        assert entry["round"] == number
        assert entry["learners"] == [f"hospital-{k}" for k in "abcde"]
        assert entry["dropped"] == []
        assert DIGEST.fullmatch(entry["record"])
        assert DIGEST.fullmatch(entry["weights"])
        assert {"accuracy", "test_accuracy", "test_loss"} <= entry["metrics"].keys()
        assert entry["seconds"] > 0
    assert summary["rounds"][9]["loss"] < summary["rounds"][0]["loss"]
    assert summary["evaluation"]["central"]["metrics"]["accuracy"] > 0.93
    assert list(summary["onnx"]) == ["path", "digest", "max_abs_difference", "opset"]
    assert summary["onnx"]["path"] == "models/digits/1/model.onnx"
    assert summary["onnx"]["max_abs_difference"] < 1e-4

    assert summary["store"] == f"file://{digits}/store"
    store = open_store(summary["store"]).below("digits")
    assert [r.ref.record for r in history(store, "run-1")][1:] == [r["record"] for r in summary["rounds"]]
    page = (digits / "out" / "report.html").read_text()
    for part in ("Learning", "Each learner", "confusion matrix", "labels of each learner", "steps over time", "<svg"):
        assert part in page
    assert "http://" not in re.sub(r'xmlns(:\w+)?="[^"]*"|"http://www\.w3\.org[^"]*"', "", page)  # nothing is loaded

    with np.load(digits / "digits.npz") as data:
        found = fedpipe.predict(digits / "out" / "model.onnx", data["x"])
        assert np.mean(found.classes == data["y"]) > 0.93

    _check_resumed(digits, file)
    _check_unchanged(digits, file)
    _check_export(digits, file, summary)


def _check_resumed(digits: Path, file: Path) -> None:
    """A second run of the same name repeats nothing, and changes no byte of what was committed."""
    store, again = open_store(str(digits / "store")).below("digits"), list[Event]()
    before = store.read("HEAD").data
    fedpipe.run(file, out=digits / "again", listener=again.append)
    assert store.read("HEAD").data == before
    keras = {"initialise", "learn", "evaluate", "export"}
    assert {e.what for e in again if e.task.step in keras and e.what != "started"} == {"found"}
    assert list(store.below("models/digits").keys()) == ["1/model.onnx", "1/origin.json"]


def _check_unchanged(digits: Path, file: Path) -> None:
    """A finished run, and the check of a model that has passed on these examples, import no TensorFlow."""
    mark, folder = digits / "imported", digits / "instead"
    folder.mkdir()
    (folder / "tensorflow.py").write_text(f"open({str(mark)!r}, 'w').close()\nraise ImportError")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), *filter(None, sys.path)])}
    for command in (["check", str(file)], ["run", str(file), "--out", str(digits / "again")]):
        done = subprocess.run(
            [sys.executable, "-m", "fedpipe", *command], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
    assert not mark.exists()


def _check_export(digits: Path, file: Path, summary: dict[str, Any]) -> None:
    origin = fedpipe.export(file, digits / "exported.onnx")
    assert origin["digest"] == summary["onnx"]["digest"]
    assert (digits / "exported.onnx").read_bytes() == (digits / "out" / "model.onnx").read_bytes()
