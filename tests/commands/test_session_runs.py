"""Whole sessions as a user starts them: learned digits, killed processes, stop and watch, S3."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from random import Random
from typing import Any

import pytest

import fedpipe
from fedpipe.commands.stop import stop
from fedpipe.commands.watch import watch
from fedpipe.engine.local import Event
from fedpipe.errors import FedpipeError, InputError, NotFoundError, QuorumError
from fedpipe.rounds.history import history, read_head
from fedpipe.store import open_store
from tests import servers
from tests.federations import change

pytestmark = [pytest.mark.heavy, pytest.mark.xdist_group("runs")]


def final(store: Path) -> Any:
    found = read_head(open_store(str(store)).below("digits"))
    assert found is not None
    return found[0]


def children(process: int) -> list[int]:
    """All processes below one, by the kernel's table."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                if parent == process:
                    found += [int(folder.name), *children(int(folder.name))]
    return found


def test_fifty_rounds_killed_ten_times_end_with_the_same_digest(digits: Path, tmp_path: Path) -> None:
    """5 learners, one session: the engine or one of its workers dies at random moments, and the command is repeated."""
    file = change(digits, **{"rounds: 10": "rounds: 50", "local_epochs: 2": "local_epochs: 1"})
    undisturbed = fedpipe.run(file, out=tmp_path / "out").summary
    command = [sys.executable, "-m", "fedpipe", "run", str(file), "--store", str(tmp_path / "killed")]
    random, kills = Random(5), 0
    store = open_store(str(tmp_path / "killed")).below("digits")
    done = [0]

    def rounds_done() -> int:
        while store.size(f"runs/run-1/{done[0]}/record") is not None:
            done[0] += 1
        return done[0]

    while kills < 10:
        process = subprocess.Popen(
            [*command, "--out", str(tmp_path / "o")], stdout=subprocess.DEVNULL, start_new_session=True
        )
        goal = min(48, rounds_done() + random.randint(1, 4))
        while rounds_done() < goal:
            assert process.poll() is None
            time.sleep(0.02)
        time.sleep(random.uniform(0, 0.3))
        if kills % 2:  # a worker that trains: the engine starts another and the learner resumes
            workers = [c for c in children(process.pid) if b"forkserver" in Path(f"/proc/{c}/cmdline").read_bytes()]
            leaves = [c for c in workers if not children(c)]
            os.kill(random.choice(leaves), signal.SIGKILL)
            kills += 1
            time.sleep(random.uniform(0.5, 1.5))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        kills += 1
    again = fedpipe.run(file, store=str(tmp_path / "killed"), out=tmp_path / "o").summary
    assert [r["record"] for r in again["rounds"]] == [r["record"] for r in undisturbed["rounds"]]
    assert final(tmp_path / "killed") == final(digits / "store")
    assert again["rounds"][-1]["metrics"]["accuracy"] > 0.95


def test_stop_and_watch(digits: Path) -> None:
    file = change(digits, **{"rounds: 10": "rounds: 1000"})
    told: list[tuple[str, str]] = []
    watcher = threading.Thread(
        target=watch, args=(file, "run-1"), kwargs={"listener": lambda *x: told.append(x), "again": 0.2}
    )
    store = open_store(str(digits / "store")).below("digits")
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
    events: list[Event] = []
    summary = fedpipe.run(file, out=digits / "out", listener=events.append).summary
    stopper.join()
    watcher.join(10)
    assert not watcher.is_alive()
    assert summary["ending"] == "stopped"
    assert 3 <= summary["rounds"][-1]["round"] < 100
    assert summary["evaluation"]["central"]
    assert "session ended: stopped on request" in (digits / "out" / "report.html").read_text()
    lines = [line for line, _ in told if line]
    assert sum(line.startswith("round ") for line in lines) == summary["rounds"][-1]["round"] + 1
    assert "5 learners" in lines[1]
    assert "train " in lines[1]
    assert "aggregate " in lines[1]
    assert lines[-1] == "the session ended: stopped on request"
    assert any("awaiting" in state for _, state in told)
    with pytest.raises(InputError, match="has ended already"):
        stop(file, "run-1")
    following = fedpipe.run(file, name="run-2", out=digits / "out2", parameters={"rounds": 1}).summary
    assert following["rounds"][0]["metrics"]["accuracy"] > summary["rounds"][0]["metrics"]["accuracy"]


def test_a_learner_that_never_trains_ends_it_below_the_quorum(digits: Path) -> None:
    """Its data is not there: dropped at every try; HEAD stays, and the same run resumes once it is repaired."""
    quorum = {"min_learners: 3, deadline: 600": "min_learners: 5, deadline: 600, retries: 1"}
    file = change(digits, **quorum, **{"  - name: hospital-e\n": "  - name: hospital-e\n    data: own.npz\n"})
    with pytest.raises(
        QuorumError, match=r"round 1: 4 of 5 learners took part, the quorum is 5 \(hospital-e: "
    ) as caught:
        fedpipe.run(file, out=digits / "out", parameters={"rounds": 2})
    assert caught.value.exit_code == 3
    assert final(digits / "store").round == 0
    with pytest.raises(InputError, match=r"made with other settings \(training.rounds: 2 -> 10\)"):
        fedpipe.run(file, out=digits / "out")
    (digits / "own.npz").write_bytes((digits / "digits.npz").read_bytes())
    summary = fedpipe.run(file, out=digits / "out", parameters={"rounds": 2}).summary
    assert [len(r["learners"]) for r in summary["rounds"]] == [5, 5]


@pytest.mark.usefixtures("s3_keys")
def test_sessions_on_s3_one_after_the_other(digits: Path, minio_server: servers.Server) -> None:
    """Two sessions of two rounds on MinIO give the records of one session in a folder."""
    file = change(digits, **{"rounds: 10": "rounds: 4"})
    folder = fedpipe.run(file, out=digits / "out").summary
    change(digits, **{"rounds_per_step: all": "rounds_per_step: 2"})
    uri = f"s3://tests/sessions?endpoint={minio_server.endpoint}"
    events: list[Event] = []
    s3 = fedpipe.run(file, store=uri, out=digits / "s3", listener=events.append).summary
    assert [r["record"] for r in s3["rounds"]] == [r["record"] for r in folder["rounds"]]
    names = [e.task.name for e in events if e.what == "started"]
    assert names.index("1-2 coordinate") < names.index("3-end coordinate")
    store = open_store(uri).below("digits")
    for number in range(1, 5):
        (key,) = store.keys(f"learners/hospital-a/runs/run-1/{number}/tensorboard/")
        assert "tfevents" in key
    assert [r.round for r in history(store, "run-1")] == [0, 1, 2, 3, 4]


def test_early_stopping_at_run_time(digits: Path) -> None:
    """A learning rate that destroys: the tests of the shared model get worse, and the session ends."""
    file = digits / "federation.yaml"
    summary = fedpipe.run(file, out=digits / "out", parameters={"patience": 1, "learning_rate": 3.0}).summary
    assert summary["ending"] == "early_stopping"
    assert summary["rounds"][-1]["round"] < 10


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("deadline: 600", "deadline: 1.0e-7", r"quorum.deadline: 1e-07 s is shorter than one request to the store"),
        ("rounds: 10\n", "rounds: 10\n  early_stopping: {patience: 2, metric: test_acuracy, minimise: false}\n",
         r"training.early_stopping.metric: 'acuracy' is neither the loss nor a compiled metric. Did you mean 'accuracy'"),
    ],
)  # fmt: skip
def test_mistakes_change_nothing(digits: Path, old: str, new: str, message: str) -> None:
    file = change(digits, **{old: new})
    with pytest.raises(FedpipeError, match=message) as caught:
        fedpipe.run(file, out=digits / "out")
    assert caught.value.exit_code == 2
    assert not list((digits / "store").rglob("record"))
    assert not (digits / "out").exists()


def test_sixty_four_learners_in_one_session(digits: Path) -> None:
    """Small shards, two workers: every learner trains in every round."""
    learners = "".join(f"  - name: clinic-{number:02d}\n" for number in range(64))
    text = (digits / "federation.yaml").read_text()
    head, rest = text.split("learners:\n")
    text = f"{head}learners:\n{learners}\ntraining:{rest.split('training:')[1]}"
    text = text.replace("by: dirichlet, alpha: 1.0, minimum: 100", "by: iid").replace("rounds: 10", "rounds: 3")
    text = text.replace("min_learners: 3", "min_learners: 64").replace("batch_size: 16", "batch_size: 8")
    (digits / "federation.yaml").write_text(text)
    summary = fedpipe.run(digits / "federation.yaml", out=digits / "out").summary
    assert [len(r["learners"]) for r in summary["rounds"]] == [64, 64, 64]
    assert summary["rounds"][2]["loss"] < summary["rounds"][0]["loss"]
    assert json.loads((digits / "out" / "summary.json").read_text())["ending"] == "done"


@pytest.mark.usefixtures("s3_keys")
def test_every_step_in_a_process_of_its_own_as_in_containers(digits: Path, minio_server: servers.Server) -> None:
    """`fedpipe step NAME JSON` for each task, as KFP's launcher starts it: the records of the local engine."""
    from fedpipe.compiled.graph import read_graph
    from fedpipe.engine.local import Engine

    file = change(digits, **{"rounds: 10": "rounds: 2", "  - name: hospital-d\n": "", "  - name: hospital-e\n": ""})
    expected = fedpipe.run(file, out=digits / "out").summary
    fedpipe.compile_pipeline(fedpipe.read_federation(file), digits / "pipeline.yaml")
    graph = read_graph(digits / "pipeline.yaml")
    tasks = tuple(t._replace(command=("env", *t.command)) if t.step else t for t in graph.tasks)
    assert {t.step for t in tasks} == {None}
    uri = f"s3://tests/containers?endpoint={minio_server.endpoint}"
    parameters = {**graph.parameters, "store": uri, "run": "run-1"}
    Engine(graph._replace(tasks=tasks), parameters, folder=digits / "containers", workers=8).run()
    records = history(open_store(uri).below("digits"), "run-1")
    assert [r.ref.record for r in records[1:]] == [r["record"] for r in expected["rounds"]]
    log = (digits / "containers" / "logs" / "coordinate.log").read_text()
    assert "round 1 train: asking hospital-a, hospital-b, hospital-c" in log
    assert "the session ends after round 2: all rounds are done" in log
    assert "round 2 hospital-b epoch 1: " in (digits / "containers" / "logs" / "learn-hospital-b.log").read_text()
