"""Whole sessions as a user starts them: stop and watch, quorum, early ends, S3, and many learners."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import pytest

import fedpipe
from fedpipe.commands.stop import stop
from fedpipe.commands.watch import Seen, watch
from fedpipe.engine.local import Event
from fedpipe.errors import InputError, NotFoundError, QuorumError
from fedpipe.rounds.history import history, read_head
from fedpipe.store import Store
from tests import servers
from tests.commands.runs import records, store_of
from tests.federations import change


@pytest.fixture
def numpy_digits(numpy_digits: Path) -> Path:
    """Without an export, which takes longer than the rounds."""
    change(numpy_digits, **{"export: {opset: 17}": "export: none"})
    return numpy_digits


def head_of(store: Store) -> tuple[str, int]:
    found = read_head(store)
    assert found is not None
    return found[0].run, found[0].round


def test_stop_and_watch(numpy_digits: Path) -> None:
    file = change(numpy_digits, **{"rounds: 10": "rounds: 1000", "local_epochs: 2": "local_epochs: 20"})
    heard: list[Seen] = []
    watcher = threading.Thread(target=lambda: heard.extend(watch(file, "run-1", again=0.05, wait=True)))
    store = store_of(numpy_digits / "store")
    with pytest.raises(NotFoundError, match="there is no run 'run-1'"):
        stop(file, "run-1")

    def act() -> None:
        while store.size("runs/run-1/3/record") is None:
            time.sleep(0.05)
        assert "ends after round" in stop(file, "run-1")
        assert "was already asked" in stop(file, "run-1")

    stopper = threading.Thread(target=act)
    watcher.start()
    stopper.start()
    summary = fedpipe.run(file, out=numpy_digits / "out").summary
    stopper.join()
    watcher.join(60)
    assert not watcher.is_alive()
    assert summary["ending"] == "stopped"
    assert 3 <= summary["rounds"][-1]["round"] < 1000
    assert summary["evaluation"]["central"]
    assert "session ended: stopped on request" in (numpy_digits / "out" / "report.html").read_text()
    lines = [line for line in (seen.line for seen in heard) if line]
    assert sum(line.startswith("round ") for line in lines) == summary["rounds"][-1]["round"] + 1
    assert "5 learners" in lines[1]
    assert "train " in lines[1]
    assert "aggregate " in lines[1]
    assert lines[-1] == "the session ended: stopped on request"
    assert any("awaiting" in state for state in (seen.state for seen in heard))
    with pytest.raises(InputError, match="has ended already"):
        stop(file, "run-1")


def test_a_learner_that_never_trains_ends_it_below_the_quorum(numpy_digits: Path) -> None:
    """Its data is not there: dropped; nothing untrained is HEAD, and the same run begins when that is repaired."""
    quorum = {"min_learners: 3, deadline: 600": "min_learners: 5, deadline: 600, retries: 1"}
    file = change(numpy_digits, **quorum, **{"  - name: hospital-e\n": "  - name: hospital-e\n    data: own.npz\n"})
    with pytest.raises(
        QuorumError,
        match=r"round 1: 4 of 5 learners took part, the quorum is 5 \(hospital-e: there is no such dataset .*own\.npz\)",
    ) as caught:
        fedpipe.run(file, out=numpy_digits / "out", parameters={"rounds": 2})
    assert caught.value.exit_code == 3
    store = store_of(numpy_digits / "store")
    assert read_head(store) is None
    assert len(history(store, "run-1")) == 1
    (numpy_digits / "own.npz").write_bytes((numpy_digits / "digits.npz").read_bytes())
    summary = fedpipe.run(file, out=numpy_digits / "out", parameters={"rounds": 2}).summary
    assert [len(r["learners"]) for r in summary["rounds"]] == [5, 5]
    assert head_of(store) == ("run-1", 2)
    with pytest.raises(InputError, match=r"made with other settings \(training.rounds: 2 -> 10\). Use .* as run-2"):
        fedpipe.run(file, out=numpy_digits / "out")


@pytest.mark.usefixtures("s3_keys")
def test_sessions_on_an_s3_server_that_dies_in_the_middle(numpy_digits: Path, tmp_path: Path) -> None:
    """Two sessions of a compiled pipeline on MinIO give the bytes of one session in a folder."""
    file = change(numpy_digits, **{"rounds: 10": "rounds: 4"})
    folder = fedpipe.run(file, out=tmp_path / "out").summary
    change(numpy_digits, **{"rounds_per_step: all": "rounds_per_step: 2"})
    fedpipe.compile_pipeline(fedpipe.read_federation(file), tmp_path / "pipeline.yaml")
    server = servers.Killable("minio", tmp_path / "minio")
    uri, started, closed = f"s3://tests/sessions?endpoint=http://127.0.0.1:{server.port}", list[str](), list[int]()

    def listen(event: Event) -> None:
        if event.what == "started":
            started.append(event.task.name)
        if event.moment and event.moment.record:
            closed.append(event.moment.record.round)
            if closed == [1]:
                server.stop()
                server.start()

    try:
        s3 = fedpipe.run(tmp_path / "pipeline.yaml", store=uri, out=tmp_path / "s3", listener=listen).summary
        store = store_of(uri)
        assert records(s3) == records(folder)
        assert store.read("HEAD").data == store_of(numpy_digits / "store").read("HEAD").data
        assert [r.round for r in history(store, "run-1")] == [0, 1, 2, 3, 4]
        for number in range(1, 5):
            (key,) = store.keys(f"learners/hospital-a/runs/run-1/{number}/tensorboard/")
            assert "tfevents" in key
    finally:
        server.stop()
    assert closed == [1, 2, 3, 4]
    assert started.index("1-2 coordinate") < started.index("3-end coordinate")
    assert not any(
        servers.SECRET_KEY in p.read_text(errors="replace") for p in (tmp_path / "s3").rglob("*") if p.is_file()
    )


def test_early_stopping_at_run_time(numpy_digits: Path) -> None:
    """A learning rate that destroys: the tests of the shared model get worse, and the session ends."""
    file = change(numpy_digits, **{"rounds: 10": "rounds: 30"})
    parameters = {"patience": 1, "learning_rate": 100.0}
    summary = fedpipe.run(file, out=numpy_digits / "out", parameters=parameters).summary
    assert summary["ending"] == "early_stopping"
    assert summary["rounds"][-1]["round"] < 30


def test_sixty_four_learners_in_one_session(numpy_digits: Path) -> None:
    """Small shards: every learner trains in every round."""
    learners = "".join(f"  - name: clinic-{number:02d}\n" for number in range(64))
    text = (numpy_digits / "federation.yaml").read_text()
    head, rest = text.split("learners:\n")
    text = f"{head}learners:\n{learners}\ntraining:{rest.split('training:')[1]}"
    text = text.replace("by: dirichlet, alpha: 1.0, minimum: 100", "by: iid").replace("rounds: 10", "rounds: 3")
    text = text.replace("min_learners: 3", "min_learners: 64").replace("batch_size: 16", "batch_size: 8")
    (numpy_digits / "federation.yaml").write_text(text)
    summary = fedpipe.run(numpy_digits / "federation.yaml", out=numpy_digits / "out").summary
    assert [len(r["learners"]) for r in summary["rounds"]] == [64, 64, 64]
    assert summary["rounds"][2]["loss"] < summary["rounds"][0]["loss"]
    assert json.loads((numpy_digits / "out" / "summary.json").read_text())["ending"] == "done"
