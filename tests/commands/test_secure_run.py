"""Runs with secure sums: on this machine, and in a process for each step of which two learners are killed."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

import fedpipe
from fedpipe.cli.main import app
from fedpipe.compiled.graph import Graph, Task, read_graph, resolve
from fedpipe.engine.local import Engine, _collected, _outputs
from fedpipe.errors import CorruptError, InputError, StoreError
from fedpipe.identity.signing import COORDINATOR
from fedpipe.rounds.history import history
from fedpipe.steps.contract import execute
from fedpipe.store import keys, open_store
from fedpipe.store.base import Credentials
from fedpipe.store.s3 import MinioStore
from tests import servers
from tests.commands.runs import store_of

NAMES = tuple(f"hospital-{letter}" for letter in "abcdefghij")


def secure(folder: Path, names: tuple[str, ...] = NAMES, *, rounds: int = 6) -> Path:
    """Turns the federation of a folder into one with secure sums."""
    path = folder / "federation.yaml"
    content = yaml.safe_load(path.read_text())
    content["learners"] = [{"name": name} for name in names]
    content["algorithm"] = {"name": "averaging", "secure": {}}
    content["training"]["rounds"] = rounds
    content["data"]["shards"]["minimum"] = 40
    content["quorum"] = {"deadline": 600}
    path.write_text(yaml.safe_dump(content))
    return path


def enrol(file: Path, names: tuple[str, ...] = NAMES) -> None:
    for name in names:
        fedpipe.enroll(file, name)


def secret_of(path: Path) -> dict[str, str]:
    """Returns the content of a Secret that `enroll` wrote."""
    return {key: base64.b64decode(value).decode() for key, value in yaml.safe_load(path.read_text())["data"].items()}


def last_metrics(store: Path) -> dict[str, float]:
    """Returns the metrics of the last round of run-1, in a store."""
    return history(store_of(store), "run-1")[-1].metrics


class TestOnThisMachine:
    FEW = NAMES[:4]

    def test_gives_the_model_of_plain_averaging(self, numpy_digits: Path, tmp_path: Path) -> None:
        file = secure(numpy_digits, self.FEW, rounds=3)
        enrol(file, self.FEW)
        result = fedpipe.run(file, out=tmp_path / "out")
        plain = fedpipe.run(
            file, out=tmp_path / "plain", store=str(tmp_path / "other"), algorithm={"secure": None}
        )  # fmt: skip
        assert abs(result.metrics["accuracy"] - plain.metrics["accuracy"]) <= 0.005
        ours, theirs = last_metrics(numpy_digits / "store"), last_metrics(tmp_path / "other")
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-3)
        assert ours["clipped"] == 0.0
        verified = fedpipe.verify(file, "run-1")
        assert [(one.round, one.learners) for one in verified] == [(1, 4), (2, 4), (3, 4)]
        page = (tmp_path / "out" / "report.html").read_text()
        assert "16 bits, at least 3 learners" in page

    def test_a_changed_vector_is_not_verified(self, numpy_digits: Path, tmp_path: Path) -> None:
        file = secure(numpy_digits, self.FEW, rounds=1)
        enrol(file, self.FEW)
        fedpipe.run(file, out=tmp_path / "out")
        store = store_of(numpy_digits / "store")
        record = history(store, "run-1")[1]
        assert record.secure
        vector = json.loads(store.read("runs/run-1/1/members").data)["vectors"]["hospital-a"]
        key = f"learners/hospital-a/objects/{vector.removeprefix('sha256:')}"
        store.replace(key, b"\0" * (store.size(key) or 0))
        with pytest.raises(CorruptError, match="round 1 cannot be verified: an object has changed"):
            fedpipe.verify(file, "run-1")

    def test_a_plain_run_has_nothing_to_verify(self, numpy_digits: Path, tmp_path: Path) -> None:
        file = numpy_digits / "federation.yaml"
        fedpipe.run(file, out=tmp_path / "out", training={"rounds": 1})
        with pytest.raises(InputError, match="has no secure sums to verify"):
            fedpipe.verify(file, "run-1")


class TestBeforeARun:
    """Mistakes are found before anything is trained or written."""

    FEW = NAMES[:3]

    def refused(self, file: Path, match: str) -> None:
        with pytest.raises(InputError, match=match) as caught:
            fedpipe.run(file)
        assert caught.value.where == "algorithm.secure"
        assert caught.value.remedy
        assert not list(store_of(file.parent / "store").keys("runs/"))

    def test_nobody_is_enrolled(self, numpy_digits: Path) -> None:
        self.refused(secure(numpy_digits, self.FEW), "needs the public key of the administrator")

    def test_one_is_not_enrolled(self, numpy_digits: Path) -> None:
        file = secure(numpy_digits, self.FEW)
        enrol(file, self.FEW[:2])
        self.refused(file, "the roster has no key of hospital-c")
        fedpipe.enroll(file, "hospital-c")
        assert fedpipe.roster(file).learners == self.FEW
        assert ("roster", "3 learners, of which a sum has 3 at least") in [
            (found.subject, found.what) for found in fedpipe.check(file)
        ]

    def test_one_was_revoked(self, numpy_digits: Path) -> None:
        file = secure(numpy_digits, self.FEW)
        enrol(file, self.FEW)
        fedpipe.revoke(file, "hospital-b")
        self.refused(file, "the roster has no key of hospital-b")

    def test_one_too_many(self, numpy_digits: Path) -> None:
        file = secure(numpy_digits, NAMES[:4])
        enrol(file, NAMES[:4])
        self.refused(secure(numpy_digits, self.FEW), "the roster has hospital-d, but the plan does not")

    def test_no_roster(self, numpy_digits: Path) -> None:
        file = secure(numpy_digits, self.FEW)
        enrol(file, self.FEW)
        store_of(numpy_digits / "store").delete("roster")
        self.refused(file, "there is no roster")

    def test_a_roster_of_another_administrator(self, numpy_digits: Path) -> None:
        file = secure(numpy_digits, self.FEW)
        enrol(file, self.FEW)
        for path in (numpy_digits / "keys").glob("_administrator.*"):
            path.rename(path.with_suffix(f"{path.suffix}.old"))
        roster = store_of(numpy_digits / "store").read("roster").data
        fedpipe.roster(file)
        store_of(numpy_digits / "store").replace("roster", roster)
        self.refused(file, "the roster is signed with another key")

    def test_a_key_is_missing(self, numpy_digits: Path) -> None:
        file = secure(numpy_digits, self.FEW)
        enrol(file, self.FEW)
        (numpy_digits / "keys" / "hospital-a.key").unlink()
        with pytest.raises(InputError, match="its key is missing"):
            fedpipe.run(file)

    def test_nobody_to_sign_for(self, numpy_digits: Path) -> None:
        with pytest.raises(InputError, match="no learner is enrolled"):
            fedpipe.roster(secure(numpy_digits, self.FEW))


class Pods:
    """Runs a compiled pipeline with a process for each step of a session, as pods do.

    Args:
        graph: the pipeline.
        folder: for its files.
        keys: folder of the keys.
    """

    def __init__(self, graph: Graph, folder: Path, keys: Path) -> None:
        self.graph, self.folder, self.keys = graph, folder, keys
        self.parameters = {**graph.parameters, "run": "run-1"}
        self.results: dict[str, Mapping[str, Any]] = {}
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def begin(self, held: Mapping[str, Path]) -> None:
        """Starts all processes; those in `held` stop before the training that HELD says."""
        order = ("shard", "initialise", "learn", "coordinate")
        for task in sorted(self.graph.tasks, key=lambda task: order.index(task.step) if task.step in order else 9):
            if task.step in ("learn", "coordinate"):
                self._start(task, held.get(task.name))
            elif task.after <= self.results.keys():
                made = self._input(task)
                execute(task.step or "", made)
                self.results[task.key] = _collected(task, made)

    def _input(self, task: Task) -> dict[str, Any]:
        inputs = resolve(task, self.parameters, self.results, "job")
        return {"inputs": inputs, "outputs": _outputs(task, self.folder / task.key)}

    def _start(self, task: Task, held: Path | None = None) -> None:
        command = [sys.executable, "-m", "fedpipe", "step", task.step or "", json.dumps(self._input(task))]
        environment = {**os.environ, "FEDPIPE_KEYS": str(self.keys)} | ({"HELD": str(held)} if held else {})
        with (self.folder / f"{task.key}.log").open("ab") as log:
            made = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        self.processes[task.name] = made

    def restart(self, name: str) -> None:
        """Kills a process, and starts another in its place, as Kubernetes does."""
        os.killpg(self.processes[name].pid, signal.SIGKILL)
        self.processes[name].wait()
        (task,) = (task for task in self.graph.tasks if task.name == name)
        self._start(task)

    def until(self, reached: Callable[[], bool]) -> None:
        """Waits for a moment of the session."""
        started, coordinator = time.monotonic(), self.processes["coordinate"]
        while not reached():
            assert coordinator.poll() is None, (self.folder / "coordinate.log").read_text()
            assert time.monotonic() - started < 300
            time.sleep(0.005)

    def end(self) -> None:
        for process in self.processes.values():
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


HELD = """import os
import time
from pathlib import Path

from fedpipe.learners.numpy import Linear


class Held(Linear):
    used = 0

    @property
    def learning_rate(self):  # read by the check of the model, then once in each training
        Held.used += 1
        held = Path(os.environ.get("HELD", "nothing"))
        if held.name == str(Held.used - 1):
            held.touch()
            while held.exists():
                time.sleep(0.01)
        return 0.5


def build():
    return Held(features=(8, 8, 1), outputs=10, loss="softmax")
"""
"""The model of `numpy_digits`. If the variable HELD is `FOLDER/n`, the n-th training in a process makes this file and
waits until it is gone."""


@pytest.mark.heavy
def test_two_of_ten_are_killed_in_the_middle_of_rounds(numpy_digits: Path, tmp_path: Path) -> None:
    """One dies while it trains in round 2, and one in round 3 when its vector is in the sum, before it reveals.

    Their pods start again. Another learner is held in its training of round 3, so that the second one dies in between.
    """
    file = secure(numpy_digits, rounds=4)
    (numpy_digits / "model.py").write_text(HELD)
    enrol(file)
    fedpipe.run(file, out=tmp_path / "plain", store=str(tmp_path / "other"), algorithm={"secure": None})
    compiled = tmp_path / "pipeline.yaml"
    fedpipe.compile(file, compiled)
    pods = Pods(read_graph(compiled), tmp_path, numpy_digits / "keys")
    pods.parameters["store"] = f"file://{numpy_digits / 'store'}"
    pods.parameters.setdefault("data", "")
    store = open_store(str(numpy_digits / "store")).below("digits")
    second, third = tmp_path / "2", tmp_path / "3"
    try:
        pods.begin({"learn hospital-c": second, "learn hospital-j": third})
        pods.until(second.exists)
        pods.restart("learn hospital-c")
        pods.until(third.exists)
        pods.until(lambda: store.size(keys.answer("hospital-g", "run-1", 3, "masked")) is not None)
        pods.restart("learn hospital-g")
        third.unlink()
        assert pods.processes["coordinate"].wait(300) == 0, (tmp_path / "coordinate.log").read_text()
    finally:
        pods.end()
    without = tuple(name for name in NAMES if name != "hospital-c")
    assert [record.contributors for record in history(store, "run-1")[1:]] == [NAMES, without, NAMES, NAMES]
    assert store.size(keys.answer("hospital-g", "run-1", 3, "revealed")) is None
    assert len(fedpipe.verify(file, "run-1")) == 4
    ours, theirs = last_metrics(numpy_digits / "store"), last_metrics(tmp_path / "other")
    assert ours["accuracy"] >= theirs["accuracy"] - 0.02


VARIABLES = {
    "accesskey": "AWS_ACCESS_KEY_ID", "secretkey": "AWS_SECRET_ACCESS_KEY", "signingkey": "FEDPIPE_SIGNING_KEY",
    "administrator": "FEDPIPE_ADMINISTRATOR",
}  # fmt: skip
"""Of each key of a Secret, the variable that a pod has it in."""


def by_command(*arguments: str) -> str:
    done = CliRunner().invoke(app, list(arguments))
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.mark.heavy
def test_each_party_with_its_own_user_on_minio(
    numpy_digits: Path, minio_server: servers.Server, s3_keys: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process for each step, with the variables of its Secret alone: users of learners and of the coordinator."""
    names, rounds = NAMES[:3], 2
    file = secure(numpy_digits, names, rounds=rounds)
    content = yaml.safe_load(file.read_text())
    content["store"] = f"s3://tests/secure?endpoint={minio_server.endpoint}"
    file.write_text(yaml.safe_dump(content))
    for name in (*names, "--coordinator"):
        by_command("enroll", name, "-f", str(file))
    assert "3 learners" in by_command("roster", "-f", str(file))
    secrets = {
        name: secret_of(numpy_digits / "keys" / f"{name}.secret.yaml") for name in (*names, COORDINATOR)
    }  # fmt: skip
    by_command("compile", str(file), "-o", str(numpy_digits / "pipeline.yaml"))
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")  # the root user's are not inherited
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")

    def running(task: Task) -> Task:
        owner = str(task.inputs.get("learner", {}).get("runtimeValue", {}).get("constant", COORDINATOR))
        given = (f"{VARIABLES[key]}={value}" for key, value in secrets[owner].items() if key in VARIABLES)
        return task._replace(command=("env", *given, *task.command))

    graph = read_graph(numpy_digits / "pipeline.yaml")
    graph = graph._replace(tasks=tuple(map(running, graph.tasks)))
    Engine(graph, {**graph.parameters, "run": "run-1"}, folder=numpy_digits / "pods", workers=8).run()

    def opened(owner: str) -> MinioStore:
        credentials = Credentials(secrets[owner]["accesskey"], secrets[owner]["secretkey"])
        return MinioStore("tests", "secure/digits", endpoint=minio_server.endpoint, credentials=credentials)

    store, mine = opened(COORDINATOR), opened(names[0])
    assert [record.contributors for record in history(store, "run-1")[1:]] == [names] * rounds
    for key in (keys.answer(names[1], "run-1", 1, "masked"), keys.answer(names[1], "run-1", 1, "revealed")):
        with pytest.raises(StoreError, match="refuses the credentials"):
            mine.read(key)
    for key in (keys.ROSTER, keys.listed("run-1", 1, "members"), keys.answer(names[1], "run-1", 1, "agreed")):
        with pytest.raises(StoreError, match="refuses the credentials"):
            mine.replace(key, b"{}")
    with pytest.raises(StoreError, match="refuses the credentials"):
        store.replace(keys.ROSTER, b"{}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", secrets[COORDINATOR]["accesskey"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secrets[COORDINATOR]["secretkey"])
    assert [one["round"] for one in json.loads(by_command("verify", "run-1", "-f", str(file), "--json"))] == [1, 2]
