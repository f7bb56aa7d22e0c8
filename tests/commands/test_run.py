"""Whole runs: from the federation file to a verified model, resumed, killed, on a folder and on S3."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fedpipe
from fedpipe.engine.local import Event
from fedpipe.errors import InputError, QuorumError
from fedpipe.reports.story import read_story
from fedpipe.rounds.history import history
from fedpipe.store import open_store
from tests import servers

pytestmark = [pytest.mark.heavy, pytest.mark.xdist_group("runs")]
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


def shorten(folder: Path, **changes: str) -> Path:
    """The federation of `fedpipe init`, with fewer rounds and other changes."""
    path = folder / "federation.yaml"
    text = path.read_text().replace("rounds: 10", "rounds: 2")
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    path.write_text(text)
    return path


def head(folder: Path) -> bytes:
    return open_store(str(folder / "store")).below("digits").read("HEAD").data


def test_from_the_file_to_a_verified_model(digits: Path) -> None:
    file = shorten(digits)
    events: list[Event] = []
    result = fedpipe.run(file, out=digits / "out", listener=events.append)
    summary = json.loads((digits / "out" / "summary.json").read_text())
    assert summary == result.summary
    assert list(summary) == ["federation", "run", "store", "rounds", "evaluation", "onnx", "seconds", "ending"]
    assert summary["ending"] == "done"
    assert (summary["federation"], summary["run"]) == ("digits", "run-1")
    for number, entry in enumerate(summary["rounds"], 1):
        assert list(entry) == ["round", "loss", "metrics", "learners", "dropped", "record", "weights", "seconds"]
        assert entry["round"] == number
        assert entry["learners"] == [f"hospital-{k}" for k in "abcde"]
        assert entry["dropped"] == []
        assert DIGEST.fullmatch(entry["record"])
        assert DIGEST.fullmatch(entry["weights"])
        assert {"accuracy", "test_accuracy", "test_loss"} <= entry["metrics"].keys()
        assert entry["seconds"] > 0
    assert summary["rounds"][1]["loss"] < summary["rounds"][0]["loss"]
    assert summary["evaluation"]["central"]["metrics"]["accuracy"] > 0.6
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
        assert np.mean(found.classes == data["y"]) > 0.6

    _check_resumed(digits, file, events)
    _check_export(digits, file, summary)


def _check_resumed(digits: Path, file: Path, first: list[Event]) -> None:
    """A second run of the same name repeats nothing, and changes no byte of what was committed."""
    before, again = head(digits), []
    started = time.monotonic()
    fedpipe.run(file, out=digits / "again", listener=again.append)
    assert time.monotonic() - started < 20
    assert head(digits) == before
    keras = {"initialise", "learn", "score", "evaluate", "export"}
    assert {e.what for e in again if e.task.step in keras and e.what != "started"} == {"found"}
    assert len(again) == len([e for e in first if e.moment is None])
    assert list(open_store(str(digits / "store")).below("digits/models/digits").keys()) == [
        "1/model.onnx",
        "1/origin.json",
    ]


def _check_export(digits: Path, file: Path, summary: dict[str, Any]) -> None:
    origin = fedpipe.export(file, digits / "exported.onnx")
    assert origin["digest"] == summary["onnx"]["digest"]
    assert (digits / "exported.onnx").read_bytes() == (digits / "out" / "model.onnx").read_bytes()


def test_killed_in_the_middle_and_run_again_it_ends_with_the_same_head(digits: Path, tmp_path: Path) -> None:
    """The whole engine with its workers, ended by SIGKILL at two moments, then resumed."""
    file = shorten(digits)
    undisturbed = fedpipe.run(file, out=tmp_path / "out").summary
    command = [
        sys.executable,
        "-m",
        "fedpipe",
        "run",
        str(file),
        "--store",
        str(tmp_path / "killed"),
        "--out",
        str(tmp_path / "o"),
    ]
    for lines in (4, 9):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
        assert process.stdout is not None
        for _ in range(lines):
            process.stdout.readline()
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
    again = fedpipe.run(file, store=str(tmp_path / "killed"), out=tmp_path / "o").summary
    assert [r["record"] for r in again["rounds"]] == [r["record"] for r in undisturbed["rounds"]]
    assert again["onnx"]["digest"] == undisturbed["onnx"]["digest"]
    killed = open_store(str(tmp_path / "killed")).below("digits")
    assert killed.read("HEAD").data == head(digits)


@pytest.mark.usefixtures("s3_keys")
def test_on_s3_it_is_the_same_run(digits: Path, minio_server: servers.Server, tmp_path: Path) -> None:
    """The compiled pipeline on a real MinIO and on a folder: one history, byte for byte."""
    file = shorten(digits)
    fedpipe.compile_pipeline(fedpipe.read_federation(file), digits / "pipeline.yaml")
    uri = f"s3://tests/run?endpoint={minio_server.endpoint}"
    on_s3 = fedpipe.run(digits / "pipeline.yaml", store=uri, out=tmp_path / "s3").summary
    on_disk = fedpipe.run(file, out=tmp_path / "disk").summary
    assert [r["record"] for r in on_s3["rounds"]] == [r["record"] for r in on_disk["rounds"]]
    assert open_store(uri).below("digits").read("HEAD").data == head(digits)
    assert not any("secret" in p.read_text(errors="replace") for p in (tmp_path / "s3").rglob("*") if p.is_file())


def test_a_learner_without_data_is_dropped_and_the_run_goes_on(digits: Path, tmp_path: Path) -> None:
    file = shorten(digits, **{"- name: hospital-b": f"- name: hospital-b\n    data: {tmp_path}/absent.npz"})
    result = fedpipe.run(file, out=tmp_path / "out")
    for entry in result.summary["rounds"]:
        assert entry["learners"] == [f"hospital-{k}" for k in "acde"]
        assert [d["learner"] for d in entry["dropped"]] == ["hospital-b"]
        assert "no such dataset" in entry["dropped"][0]["why"]
    assert "there is no such dataset" in (tmp_path / "out" / "report.html").read_text()


def test_below_the_quorum_it_stops_and_says_who_is_missing(digits: Path, tmp_path: Path) -> None:
    file = shorten(
        digits,
        **{
            "- name: hospital-b": f"- name: hospital-b\n    data: {tmp_path}/absent.npz",
            "min_learners: 3": "min_learners: 5",
        },
    )
    with pytest.raises(
        QuorumError, match=r"round 1: 4 of 5 learners took part, the quorum is 5 \(hospital-b: there is no such"
    ):
        fedpipe.run(file, out=tmp_path / "out")
    story = read_story(open_store(str(digits / "store")).below("digits"), "run-1")
    assert len(story.records) == 1


def test_another_setting_under_the_same_name_is_refused(digits: Path, tmp_path: Path) -> None:
    file = shorten(digits)
    fedpipe.run(file, out=tmp_path / "out", parameters={"learning_rate": "0.01"})
    with pytest.raises(InputError, match=r"training\.learning_rate: 0\.01 -> 0\.0"):
        fedpipe.run(file, out=tmp_path / "out")
    second = fedpipe.run(file, out=tmp_path / "out2", name="run-2").summary  # continues from HEAD
    first = read_story(open_store(str(digits / "store")).below("digits"), "run-1")
    records = history(open_store(str(digits / "store")).below("digits"), "run-2")
    assert records[0].weights == first.records[-1].weights
    assert second["onnx"]["path"] == "models/digits/2/model.onnx"


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # kfp's own
def test_our_components_in_a_pipeline_of_somebody_else(digits: Path, tmp_path: Path) -> None:
    example = Path(__file__).parents[2] / "examples" / "compose.py"
    subprocess.run([sys.executable, example, digits / "federation.yaml", tmp_path / "mine.yaml"], check=True)
    events: list[Event] = []
    fedpipe.run(tmp_path / "mine.yaml", out=tmp_path / "out", listener=events.append)
    (told,) = [e.result for e in events if e.task.name == "tell" and e.result]
    assert re.fullmatch(r"hospital-a offers update sha256:[0-9a-f]{64}\n?", told["parameterValues"]["message"])
