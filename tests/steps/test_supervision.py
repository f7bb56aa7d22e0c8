"""Tests the parent that supervises a step in its pod, on real processes that are killed."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from fedpipe.commands.compile import compile as compile_to
from fedpipe.errors import InputError
from fedpipe.rounds.history import history
from fedpipe.sessions.board import poll_board
from fedpipe.steps.supervision import check_volume
from fedpipe.store import Store, open_store
from tests.processes import LIMIT
from tests.steps.pods import Pods

FEDERATION = """
name: small
store: store
framework: numpy
learners: [{name: a, data: a.npz}, {name: b, data: b.npz}, {name: c, data: c.npz}]
data: {parts: {train: 0.6, vote: 0.2, test: 0.2}}
training: {rounds: 3, batch_size: 8}
quorum: {min_learners: 2, deadline: 120, retries: 0}
export: none
"""
MODEL = '''
"""A model whose data kills the process that reads it, as often as the file FLAGS/<learner> says."""
import os, pathlib, signal, sys
import numpy as np
from fedpipe.learners.numpy import Linear

def build():
    return Linear(features=(4,), outputs=3, loss="softmax", learning_rate=0.5)

def die_at_the_end(uri):
    """Dies once the last round is committed, in the test of its model."""
    folder = pathlib.Path(uri).parent
    flag = pathlib.Path(uri).with_suffix(".last")
    if flag.exists() and (folder / "store/small/runs/r1/3/record").exists():
        left = int(flag.read_text())
        flag.write_text(str(left - 1))
        if left > 0:
            os.kill(os.getpid(), signal.SIGKILL)

def load(uri):
    die_at_the_end(uri)
    path = pathlib.Path(uri)
    flag = path.with_suffix("")
    if flag.exists():
        how, left = flag.read_text().split()
        if int(left) > 0:
            flag.write_text(f"{how} {int(left) - 1}")
            os.kill(os.getpid(), signal.SIGKILL) if how == "kill" else os._exit(int(how))
    with np.load(path) as data:
        return data["x"], data["y"]
'''


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A federation of three learners with data of their own, compiled."""
    rng = np.random.default_rng(0)
    for name in ("a", "b", "c"):
        x = rng.normal(size=(60, 4)).astype(np.float32)
        np.savez(tmp_path / f"{name}.npz", x=x, y=np.argmax(x[:, :3], axis=1))
    (tmp_path / "federation.yaml").write_text(FEDERATION)
    (tmp_path / "model.py").write_text(MODEL)
    compile_to(tmp_path / "federation.yaml", tmp_path / "pipeline.yaml")
    return tmp_path


@pytest.fixture
def pods(folder: Path) -> Iterator[Pods]:
    made = Pods(folder / "pipeline.yaml", folder / "outputs", {"run": "r1", "store": f"file://{folder}/store"})
    yield made
    for process in made.processes.values():
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        process.communicate()


def store_of(folder: Path) -> Store:
    return open_store(f"file://{folder}/store").below("small")


def succeeded(pods: Pods) -> bool:
    return {name: one.code for name, one in pods.run().items()} == dict.fromkeys([t.name for t in pods.graph.tasks], 0)


@pytest.mark.parametrize(("inside", "code"), [(True, 2), (False, 0)])
def test_a_folder_of_another_machine_is_refused_in_a_cluster(
    folder: Path, inside: bool, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A form may still name one; each pod would have a store of its own."""
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    if inside:
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.96.0.1")
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:  # which is not mounted, as a folder in memory is
        store = Path(name, "store")
        pods = Pods(folder / "pipeline.yaml", folder / "outputs", {"run": "r1", "store": f"file://{store}"})
        ended = pods.run("shard")["shard"]
        assert ended.code == code
        assert (f"the store 'file://{store}' is a folder in this pod alone" in ended.log) == inside
        assert store.exists() != inside


def test_a_mounted_volume_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.96.0.1")
    check_volume("file:///dev/shm/store")
    check_volume("s3://bucket/prefix")
    with pytest.raises(InputError, match="Set it to an s3:// URI, or mount a volume there"):
        check_volume("file:///home/someone/store")


@pytest.mark.heavy
def test_a_process_that_dies_is_started_again_in_its_pod(folder: Path, pods: Pods) -> None:
    """Also when the code of a learner ends the process with an exit code."""
    (folder / "b").write_text("kill 2")
    (folder / "c").write_text("7 1")
    assert succeeded(pods), pods.ended
    again = "step learn failed and is tried again in 0.1 s: the process"
    log_b, log_c = pods.ended["learn b"].log, pods.ended["learn c"].log
    assert log_b.count(f"{again} was ended by SIGKILL, perhaps for lack of memory") == 2
    assert log_c.count(f"{again} ended with code 7") == 1
    assert not any("not tracked" in one.log for one in pods.ended.values())  # also those that start early
    records = history(store_of(folder), "r1")
    assert [len(record.updates) for record in records[1:]] == [3, 3, 3]
    shown = pods.ended["learn a"].output["artifacts"]["metrics"]["artifacts"][0]["metadata"]
    (last,) = [update for update in records[3].updates if update.learner == "a"]
    assert shown == {**last.metrics, "rounds": 3, "votes": 0, "examples": last.examples}
    assert shown["loss"] > 0


@pytest.mark.heavy
def test_a_learner_that_is_lost_does_not_fail_the_run(folder: Path, pods: Pods) -> None:
    (folder / "b").write_text("kill 1000")
    assert succeeded(pods), pods.ended
    log = pods.ended["learn b"].log
    assert "step learn: the run continues without this learner: the process was ended by SIGKILL" in log
    assert pods.ended["learn b"].output["parameterValues"] == {"trained": 0, "voted": 0}
    records = history(store_of(folder), "r1")
    assert [{u.learner for u in record.updates} for record in records[1:]] == [{"a", "c"}] * 3
    (lost,) = records[1].dropped
    assert (lost.learner, lost.why) == ("b", "the process was ended by SIGKILL, perhaps for lack of memory")
    assert [[(one.learner, one.why) for one in record.dropped] for record in records[2:]] == [
        [("b", "away since round 1")]
    ] * 2  # no deadline has passed


@pytest.mark.heavy
def test_a_learner_that_dies_in_the_test_of_the_last_model(folder: Path, pods: Pods) -> None:
    """One dies once and tests again; one dies always and is left out, with the reason; no step of theirs has failed."""
    (folder / "b.last").write_text("1")
    (folder / "c.last").write_text("1000")
    assert succeeded(pods), pods.ended
    assert "step learn failed and is tried again" in pods.ended["learn b"].log
    assert "step learn: the run continues without this learner" in pods.ended["learn c"].log
    assert sorted(pods.ended) == [
        "coordinate", "evaluate", "initialise", "learn a", "learn b", "learn c", "report", "shard"
    ]  # fmt: skip
    found = json.loads(store_of(folder).read("runs/r1/evaluation").data)
    assert set(found["learners"]) == {"a", "b"}
    assert found["left_out"] == {"c": "the process was ended by SIGKILL, perhaps for lack of memory"}
    assert found["federated"]["examples"] == sum(tested["examples"] for tested in found["learners"].values())
    records = history(store_of(folder), "r1")
    assert [{u.learner for u in record.updates} for record in records[1:]] == [{"a", "b", "c"}] * 3


@pytest.mark.heavy
def test_a_pod_that_is_lost_and_started_again_joins_the_session(folder: Path, pods: Pods) -> None:
    """As Kubeflow does with a pod that was deleted; one that starts after the session has nothing to do, and succeeds."""
    (task,) = [task for task in pods.graph.tasks if task.name == "learn b"]
    found: list[int] = []

    def lose_once() -> None:
        board = None
        while not (board and board[0].round == 2):
            board = poll_board(store_of(folder), "r1")
            time.sleep(0.01)
        lost = pods.processes["learn b"]
        lost.kill()
        lost.wait()
        again, _ = pods.start(task)
        again.communicate(timeout=60)
        found.append(again.returncode)

    thread = threading.Thread(target=lose_once)
    thread.start()
    ended = pods.run()
    thread.join()
    assert ended.pop("learn b").code == -signal.SIGKILL
    assert found == [0]
    assert {one.code for one in ended.values()} == {0}
    assert [len(record.updates) for record in history(store_of(folder), "r1")[1:]] == [3, 3, 3]
    late, output = pods.start(task)
    late.communicate(timeout=60)
    assert late.returncode == 0
    assert json.loads(output.read_text())["parameterValues"] == {"trained": 0, "voted": 0}


@pytest.mark.heavy
def test_learners_below_the_quorum_fail_the_run(folder: Path, pods: Pods) -> None:
    for name in ("b", "c"):
        (folder / name).write_text("kill 1000")
    ended = pods.run()
    assert ended["coordinate"].code == 3
    assert "HEAD stays at the last good round" in ended["coordinate"].log
    assert "tried again" not in ended["coordinate"].log
    assert "evaluate" not in ended


@pytest.mark.heavy
def test_a_coordinator_that_is_killed_is_started_again(folder: Path, pods: Pods) -> None:
    killed: list[int] = []

    def kill_once() -> None:
        while not killed:
            board = poll_board(store_of(folder), "r1")
            if board and board[0].round == 2:
                killed.append(child_of(pods.processes["coordinate"].pid))
                os.kill(killed[0], signal.SIGKILL)
            time.sleep(0.01)

    thread = threading.Thread(target=kill_once)
    thread.start()
    assert succeeded(pods), pods.ended
    thread.join()
    assert "step coordinate failed and is tried again" in pods.ended["coordinate"].log
    assert [len(record.updates) for record in history(store_of(folder), "r1")[1:]] == [3, 3, 3]


def child_of(process: int) -> int:
    """Returns the process that works under a parent."""
    return int(Path(f"/proc/{process}/task/{process}/children").read_text().split()[0])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_the_work_ends_with_its_parent(pods: Pods, number: signal.Signals) -> None:
    pods.run("shard", "initialise")
    (task,) = [task for task in pods.graph.tasks if task.name == "coordinate"]
    process, _ = pods.start(task)
    child = 0
    while not child:
        with contextlib.suppress(IndexError):
            child = child_of(process.pid)
    time.sleep(0.5)
    process.send_signal(number)
    assert process.wait(LIMIT) == (128 + number if number == signal.SIGTERM else -number)
    end = time.monotonic() + LIMIT
    while Path(f"/proc/{child}").exists():
        assert time.monotonic() < end, "the work continues without its parent"
        time.sleep(0.05)


def test_a_mistake_is_not_tried_again(folder: Path, pods: Pods) -> None:
    pods.run("shard")
    (folder / "pipeline.yaml").write_text((folder / "pipeline.yaml").read_text().replace("def build", "def built"))
    wrong = Pods(folder / "pipeline.yaml", folder / "outputs", {"run": "r1", "store": f"file://{folder}/store"})
    ended = wrong.run("shard", "initialise")["initialise"]
    assert ended.code == 2
    assert "tried again" not in ended.log
    assert "build" in ended.log.splitlines()[-1]
