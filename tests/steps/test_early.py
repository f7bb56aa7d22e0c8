"""Tests steps of a session that start with the first one, as the processes of their pods."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from fedpipe.commands.compile import compile as compile_to
from fedpipe.commands.run import run
from fedpipe.compiled.graph import Graph, read_graph
from fedpipe.errors import InputError
from fedpipe.rounds.history import history
from fedpipe.rounds.timings import read_timings
from fedpipe.steps.contract import parse
from fedpipe.steps.early import is_early
from fedpipe.store import open_store
from tests.steps.pods import Pods

FEDERATION: dict[str, Any] = {
    "name": "small", "store": "store", "framework": "numpy", "learners": [{"name": name} for name in "abc"],
    "data": {"uri": "all.npz", "shards": {"by": "iid"}, "parts": {"train": 0.6, "vote": 0.2, "test": 0.2}},
    "training": {"rounds": 2, "batch_size": 8}, "quorum": {"min_learners": 2, "deadline": 60}, "export": "none",
}  # fmt: skip
MODEL = """
from fedpipe.learners.numpy import Linear

def build():
    return Linear(features=(4,), outputs=3, loss="softmax", learning_rate=0.5)
"""


def compiled(folder: Path, **more: Any) -> Graph:
    (folder / "model.py").write_text(MODEL)
    (folder / "federation.yaml").write_text(yaml.safe_dump({**FEDERATION, **more}))
    compile_to(folder / "federation.yaml", folder / "pipeline.yaml")
    return read_graph(folder / "pipeline.yaml")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(180, 4)).astype(np.float32)
    np.savez(tmp_path / "all.npz", x=x, y=np.argmax(x[:, :3], axis=1))
    compiled(tmp_path)
    return tmp_path


@contextlib.contextmanager
def pods_of(folder: Path, job: str = "job-1") -> Iterator[Pods]:
    made = Pods(folder / "pipeline.yaml", folder / job, {"run": "r1", "store": f"file://{folder}/store"}, job)
    yield made
    for process in made.processes.values():
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        process.communicate()


def before(graph: Graph) -> dict[str, set[str]]:
    names = {task.key: task.name for task in graph.tasks}
    return {task.name: {names[key] for key in task.after} for task in graph.tasks}


LEARN = ("learn a", "learn b", "learn c")


class TestGraph:
    def test_the_steps_of_a_session_start_with_the_first_one(self, folder: Path) -> None:
        found = before(compiled(folder))
        assert {name for name, steps in found.items() if not steps} == {"shard", "initialise", "coordinate", *LEARN}
        assert found["evaluate"] == {"shard", "initialise", "coordinate"}

    def test_those_of_a_later_session_when_the_earlier_one_has_ended(self, folder: Path) -> None:
        found = before(compiled(folder, training={"rounds": 4, "batch_size": 8, "rounds_per_step": 2}))
        assert found["1-2 learn a"] == found["1-2 coordinate"] == set()
        assert found["3-end learn a"] == found["3-end coordinate"] == {"initialise", "1-2 coordinate"}

    @pytest.mark.parametrize("early", [False, True])
    def test_each_in_its_turn_where_the_file_wants_it(self, folder: Path, early: bool) -> None:
        kinds = {kind: {"early": early} for kind in ("initialise", "coordinate", "learn")}
        found = before(compiled(folder, placement=kinds))
        wanted = ({"shard"}, {"initialise"}, {"initialise"}) if not early else (set(), set(), set())
        assert (found["initialise"], found["coordinate"], found["learn a"]) == wanted

    def test_one_learner_in_its_turn(self, folder: Path) -> None:
        late = {"name": "c", "placement": {"early": False}}
        found = before(compiled(folder, learners=[{"name": "a"}, {"name": "b"}, late]))
        assert (found["learn a"], found["learn c"]) == (set(), {"initialise"})

    def test_single_steps_wait_for_their_turn(self, folder: Path) -> None:
        found = before(compiled(folder, training={"rounds": 1, "batch_size": 8, "rounds_per_step": 1}))
        assert {name for name, steps in found.items() if not steps} == {"shard"}


def test_inputs_that_are_neither_early_nor_whole_are_refused() -> None:
    assert not is_early("learn", {"place": {}, "learner": "a"})
    assert not is_early("train", {"place": {}, "store": "memory://x"})
    with pytest.raises(InputError, match=r"step learn: .*store"):
        parse("learn", {"place": {}, "learner": "a"})


@pytest.mark.heavy
def test_a_run_of_pods_that_all_start_at_once_has_the_weights_of_a_run_here(folder: Path) -> None:
    with pods_of(folder) as pods:
        ended = pods.run()
        assert {name: one.code for name, one in ended.items()} == dict.fromkeys(before(pods.graph), 0), ended
    store = open_store(f"file://{folder}/store").below("small")
    records = history(store, "r1")
    assert [len(record.updates) for record in records[1:]] == [3, 3]
    alone = run(folder / "federation.yaml", store=str(folder / "alone"), out=folder / "out", name="r1")
    assert records[-1].weights == alone.summary["rounds"][-1]["weights"]
    first = {one.step: one.started for one in read_timings(store, "r1", ("a", "b", "c"))}
    assert first["shard"] <= first["initialise"] <= first["train"]
    with pods_of(folder, "job-2") as pods:  # a job that resumes an ended run
        assert {one.code for one in pods.run().values()} == {0}
    assert history(store, "r1") == records


@pytest.mark.heavy
@pytest.mark.parametrize("mistake", ["data", "model"])
def test_a_failure_of_the_first_steps_ends_those_that_wait(folder: Path, mistake: str) -> None:
    if mistake == "data":
        (folder / "all.npz").unlink()
    else:
        (folder / "model.py").write_text("def build():\n    raise ValueError('no such layer')\n")
        compile_to(folder / "federation.yaml", folder / "pipeline.yaml")
    with pods_of(folder) as pods:
        ended = pods.run()
    failed, cause = ("shard", "all.npz") if mistake == "data" else ("initialise", "no such layer")
    assert cause in ended[failed].log
    assert ended["shard"].code == (2 if mistake == "data" else 0)
    assert {name for name, one in ended.items() if one.code} == {failed, "initialise", "coordinate", *LEARN}
    for name in ("coordinate", *LEARN):
        assert "step initialise failed: " in ended[name].log
        assert cause in ended[name].log
        assert "Traceback" not in ended[name].log
    if mistake == "data":
        assert "step shard failed: " in ended["initialise"].log
