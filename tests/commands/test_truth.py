"""Whole runs from the file to the summary: second tries, mistakes of learners, lost objects, pipes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import fedpipe
from fedpipe.commands.compare import report
from fedpipe.commands.opened import find_run
from fedpipe.commands.plot import plot
from fedpipe.commands.stop import stop
from fedpipe.commands.tensorboard import copy_events
from fedpipe.commands.watch import watch
from fedpipe.engine.local import Event
from fedpipe.errors import ExportError, FedpipeError, NotFoundError, QuorumError
from fedpipe.rounds.history import read_head
from tests.commands.runs import store_of
from tests.federations import change
from tests.processes import COMMAND

MODEL = """
import numpy as np
from fedpipe.learners.numpy import Linear

def build():
    return Linear(features=(8, 8, 1), outputs=10, learning_rate=0.5)

def load(uri):
    with np.load("digits.npz") as data:
        x, y = data["x"][:300], data["y"][:300]
{mistake}
    return x, y
"""


@pytest.fixture
def file(numpy_digits: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two rounds with five learners, of which hospital-b has data of its own, read by `load`."""
    monkeypatch.chdir(numpy_digits)
    own = "  - name: hospital-b\n    data: own.npz\n"
    return change(numpy_digits, **{"rounds: 10": "rounds: 2", "  - name: hospital-b\n": own})


def write_model(file: Path, mistake: str = "") -> None:
    lines = "\n".join(f"    {line}" for line in mistake.splitlines())
    (file.parent / "model.py").write_text(MODEL.format(mistake=lines))


MISTAKES = {
    "missing file": ("open('/none')", "FileNotFoundError: [Errno 2] No such file or directory: '/none' (line"),
    "columns": ("x = x[:, :7]", "the features have shape (7, 8, 1), but the model takes (8, 8, 1)"),
    "text": ("x = np.array(['a'] * len(y))", "the features have shape ()"),
    "labels": ("y = y + 100", "the labels range from 100 to 109, but the model has 10 outputs"),
    "few": ("x, y = x[:3], y[:3]", "fewer than a batch"),
    "none": ("x, y = x[:0], y[:0]", "hospital-b"),
    "lengths": ("y = y[:-1]", "hospital-b"),
    "return": ("return None", "NoneType"),
    "exit": ("raise SystemExit('no disk')", "SystemExit: no disk"),
    "interrupt": ("raise KeyboardInterrupt", "KeyboardInterrupt"),
    "memory": ("raise MemoryError", "MemoryError"),
    "own class": (
        "class Odd(BaseException): pass\nraise Exception('first line\\n\\nsecond')",
        "Exception: first line (line",
    ),
}


@pytest.mark.parametrize(("mistake", "why"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_of_a_learner_drops_that_learner(file: Path, mistake: str, why: str) -> None:
    """With the cause, once per round, and nothing is retried."""
    write_model(file, mistake)
    change(file.parent, **{"export: {opset: 17}": "export: none"})  # an export takes longer than the rounds
    events: list[Event] = []
    summary = fedpipe.run(file, listener=events.append).summary
    assert [event.why for event in events if event.what == "retried"] == []
    for entry in summary["rounds"]:
        assert entry["learners"] == [f"hospital-{k}" for k in "acde"]
        (dropped,) = entry["dropped"]
        assert dropped["learner"] == "hospital-b"
        assert why in dropped["why"]
        assert "Traceback" not in dropped["why"]
    assert "hospital-b" in summary["evaluation"]["left_out"]


def test_when_all_make_it_each_is_named_and_a_mended_model_runs_by_the_same_command(file: Path) -> None:
    change(file.parent, **{f"  - name: hospital-{k}\n": f"  - name: hospital-{k}\n    data: own.npz\n" for k in "acde"})
    write_model(file, "raise ValueError('no such column: age')")
    with pytest.raises(QuorumError) as caught:
        fedpipe.run(file)
    assert "round 1: 0 of 5 learners took part" in str(caught.value)
    assert "hospital-a, hospital-b, hospital-c, hospital-d, hospital-e: load(" in str(caught.value)
    assert "ValueError: no such column: age (line 11)" in str(caught.value)
    assert "Repair the learners" in str(caught.value)
    assert read_head(store_of(file.parent / "store")) is None
    write_model(file)
    summary = fedpipe.run(file).summary
    assert [len(entry["learners"]) for entry in summary["rounds"]] == [5, 5]
    assert summary["begun_from"] is None
    again = fedpipe.run(file, name="run-2").summary
    assert again["begun_from"] == {"run": "run-1", "round": 2}


def test_another_model_of_other_layers_by_the_same_command(file: Path) -> None:
    """Nothing of the first try binds the second: neither its layout nor its settings nor its data."""
    write_model(file)
    model = (file.parent / "model.py").read_text()
    (file.parent / "model.py").write_text(model.replace("def load(uri):", "def load(uri):\n    raise OSError('x')"))
    change(file.parent, **{"min_learners: 3": "min_learners: 5"})
    with pytest.raises(QuorumError):
        fedpipe.run(file)
    (file.parent / "model.py").write_text(model.replace("outputs=10", "outputs=11"))
    change(file.parent, **{"rounds: 2": "rounds: 1", "batch_size: 16": "batch_size: 8"})
    summary = fedpipe.run(file).summary
    assert len(summary["rounds"]) == 1
    assert len(summary["rounds"][0]["learners"]) == 5


def test_the_tolerance_may_be_raised_as_the_message_advises(file: Path) -> None:
    write_model(file)
    fedpipe.run(file)
    change(file.parent, **{"opset: 17": "opset: 17, tolerance: 1.0e-30"})
    with pytest.raises(ExportError, match=r"Raise export.tolerance"):
        fedpipe.export(file, file.parent / "m.onnx")
    change(file.parent, **{"tolerance: 1.0e-30": "tolerance: 0.01"})
    fedpipe.export(file, file.parent / "m.onnx")
    events: list[Event] = []
    summary = fedpipe.run(file, listener=events.append).summary
    assert summary["onnx"]["path"] == "models/digits/1/model.onnx"
    done = {event.task.step: event.what for event in events if event.what in ("found", "done")}
    assert done["coordinate"] == "found"


def test_a_finished_run_repeats_by_real_processes(file: Path) -> None:
    """Twenty times: each ends well, and with the same summary; TensorFlow is nowhere."""
    write_model(file)
    fedpipe.run(file)
    folder = file.parent / "fedpipe-out" / "digits" / "run-1"
    first = json.loads((folder / "summary.json").read_text())
    running: list[subprocess.Popen[str]] = []
    for _ in range(10):
        running = [
            subprocess.Popen([COMMAND, "run", file, "--out", f"out-{k}"], stderr=subprocess.PIPE, text=True)
            for k in range(2)
        ]
        for process in running:
            _, err = process.communicate(timeout=120)
            assert process.returncode == 0, err
    assert {**json.loads(Path("out-1/summary.json").read_text()), "seconds": 0} == {**first, "seconds": 0}


LOST = {
    "a learner's folder": ("learners/hospital-a", None),
    "the plans and the code": ("objects", None),
    "HEAD": ("HEAD", "HEAD is missing"),
    "the record of round 2": ("runs/run-1/2/record", "the chain is broken at round 2"),
}


@pytest.mark.parametrize(("key", "message"), LOST.values(), ids=LOST)
def test_lost_objects(file: Path, key: str, message: str | None) -> None:
    """The same command makes them again, or the message has a remedy; so do reports and a following run."""
    write_model(file)
    fedpipe.run(file)
    path = file.parent / "store" / "digits" / key
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    commands: dict[str, Callable[[], Any]] = {
        "run": lambda: fedpipe.run(file),
        "next": lambda: fedpipe.run(file, name="run-2"),
        "report": lambda: report(file, "run-1", file.parent / "r.html"),
        "export": lambda: fedpipe.export(file, file.parent / "m.onnx"),
    }
    failed = {}
    for name, command in commands.items():
        try:
            command()
        except FedpipeError as error:
            failed[name] = error
    assert all(error.remedy for error in failed.values()), failed
    if message:
        assert message in str(failed["run"])
    elif key != "objects":
        assert "run" not in failed, failed


FOLLOWERS: dict[str, Callable[[Path], Any]] = {
    "watch": lambda file: list(watch(file, "rnu-1")),
    "plot": lambda file: plot(file, "rnu-1", file.parent / "p.html"),
    "report": lambda file: report(file, "rnu-1", file.parent / "r.html"),
    "stop": lambda file: stop(file, "rnu-1"),
    "tensorboard": lambda file: copy_events(file, "rnu-1", file.parent / "events"),
    "export": lambda file: fedpipe.export(file, file.parent / "m.onnx", name="rnu-1"),
    "find": lambda file: find_run(store_of(file.parent / "store"), "rnu-1"),
}


@pytest.mark.parametrize("command", FOLLOWERS.values(), ids=FOLLOWERS)
def test_a_run_that_does_not_exist(file: Path, command: Callable[[Path], Any]) -> None:
    with pytest.raises(NotFoundError, match=r"there is no run 'rnu-1'\. No run has begun here\."):
        command(file)
    write_model(file)
    fedpipe.run(file)
    with pytest.raises(NotFoundError, match=r"there is no run 'rnu-1'\. Runs: run-1\. Did you mean 'run-1'\?"):
        command(file)


IMPATIENT = """
import sys
from fedpipe.__main__ import main
from fedpipe.cli import text

text.SILENCE = 0.5
sys.exit(main())
"""
WAITING = """
import pathlib, time
for _ in range(12_000):
    if pathlib.Path("go").exists():
        break
    time.sleep(0.01)
"""


def test_a_pipe_hears_at_once_and_again(file: Path) -> None:
    """Progress is on standard error, the results are on standard output; a learner waits until we have heard of it."""
    write_model(file, WAITING)
    with subprocess.Popen(
        [sys.executable, "-c", IMPATIENT, "run", file.name], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        lines: list[str] = []
        awaited = 0
        for line in process.stderr:
            lines.append(line.strip())
            awaited += "still running" in line and "awaiting hospital-b" in line
            if awaited == 2:
                Path("go").touch()
        out = process.stdout.read()
    assert process.returncode == 0
    assert lines[0].endswith("reading federation.yaml")
    assert awaited >= 2
    assert [line.split(":")[0] for line in out.splitlines()] == ["central", "federated", "summary", "report", "model"]
