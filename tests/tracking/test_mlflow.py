"""Runs in a real MLflow server: curves, files, resumption without a doubled point, and KFP's own runs as parents."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

import fedpipe
from fedpipe.federation.tracking import Tracking
from fedpipe.reports.story import read_story, summarise
from fedpipe.rounds.beginning import begin
from fedpipe.rounds.closing import close_round
from fedpipe.rounds.history import history
from fedpipe.rounds.manifests import Record
from fedpipe.rounds.plan import current_plan
from fedpipe.steps.supervision import main
from fedpipe.store import LocalStore, MemoryStore, Store
from fedpipe.tracking.mlflow import find_place, open_run
from fedpipe.tracking.points import Point, points_of, unsent
from fedpipe.tracking.tracker import Tracker
from tests.commands.runs import store_of
from tests.federations import PlusOneLearner, change, fresh, make_federation, make_plan, play, play_round
from tests.tracking.faulty import answering, losing
from tests.tracking.mlflow_server import MlflowServer, told

pytestmark = [pytest.mark.heavy, pytest.mark.xdist_group("mlflow")]


def expected(store: Store, run: str) -> dict[str, list[tuple[int, float]]]:
    """The shared curves by another road: the summary of the run."""
    found: dict[str, list[tuple[int, float]]] = {}
    for one in summarise(read_story(store, run))["rounds"]:
        for name, value in {"loss": one["loss"], **one["metrics"]}.items():
            found.setdefault(name, []).append((one["round"], value))
    return found


def assert_whole(mlflow: MlflowServer, run: Any, store: Store, name: str) -> None:
    """Each curve has each point once, and the shared ones are those of the summary."""
    curves = mlflow.curves(run)
    for key, curve in curves.items():
        steps = [step for step, _ in curve]
        assert steps == sorted(set(steps)), key
    for key, wanted in expected(store, name).items():
        later = [point for point in curves[key] if point[0] > 0]
        assert [step for step, _ in later] == [step for step, _ in wanted], key
        assert [value for _, value in later] == pytest.approx([value for _, value in wanted]), key


def test_a_run_with_its_curves_settings_and_files(
    mlflow: MlflowServer, numpy_digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow.url)
    out = tmp_path / "out"
    result = fedpipe.run(numpy_digits / "federation.yaml", out=out, parameters={"rounds": 3, "learning_rate": 0.05})
    store = store_of(numpy_digits / "store")
    (run,) = mlflow.runs("digits", federation="digits", run="run-1")
    assert run["info"]["status"] == "FINISHED"
    assert run["info"]["run_name"] == "run-1"
    assert (
        result.tracked
        == f"MLflow: {mlflow.url}/#/experiments/{run['info']['experiment_id']}/runs/{run['info']['run_id']}"
    )
    assert_whole(mlflow, run, store, "run-1")
    parameters, tags = told(run["data"]["params"]), told(run["data"]["tags"])
    assert (parameters["training.rounds"], parameters["training.learning_rate"]) == ("3", "0.05")
    assert tags["fedpipe.record"] == result.summary["rounds"][-1]["record"]
    assert tags["fedpipe.model_digest"] == result.summary["onnx"]["digest"]
    latest = {metric["key"]: float(metric["value"]) for metric in run["data"]["metrics"]}
    for kind in ("central", "federated"):
        measured = result.summary["evaluation"][kind]["metrics"]
        assert latest[f"evaluation/{kind}/accuracy"] == pytest.approx(measured["accuracy"])
    assert len(mlflow.curve(run, "learners/hospital-e/loss")) == 3
    files = mlflow.artifacts(run)
    assert files["model.onnx"] == (out / "model.onnx").read_bytes()
    assert files["report.html"] == (out / "report.html").read_bytes()
    assert json.loads(files["summary.json"]) == result.summary

    fedpipe.run(numpy_digits / "federation.yaml", out=out, parameters={"rounds": 3, "learning_rate": 0.05})
    list(fedpipe.watch(numpy_digits / "federation.yaml", "run-1"))
    (again,) = mlflow.runs("digits")
    assert mlflow.curves(again) == mlflow.curves(run)
    assert again["info"]["status"] == "FINISHED"


def test_watch_sends_what_the_pods_could_not(
    mlflow: MlflowServer, numpy_digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run itself knows no server; so does the command line, on whose output the page stands."""
    change(numpy_digits, **{"rounds: 10": "rounds: 2", "name: digits": "name: watched"})
    fedpipe.run(numpy_digits / "federation.yaml", out=tmp_path / "out")
    assert mlflow.runs("watched") == []
    command = [sys.executable, "-m", "fedpipe", "watch", "run-1", "-f", str(numpy_digits / "federation.yaml")]
    environment = {**os.environ, "MLFLOW_TRACKING_URI": mlflow.url, "MLFLOW_EXPERIMENT_NAME": "by watch"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert f"MLflow: {mlflow.url}/#/experiments/" in done.stdout
    (run,) = mlflow.runs("by%20watch")
    assert_whole(mlflow, run, LocalStore(numpy_digits / "store").below("watched"), "run-1")
    assert set(mlflow.artifacts(run)) == {"report.html", "summary.json", "model.onnx"}
    assert run["info"]["status"] == "FINISHED"


def test_a_simulation_sends_its_rounds(
    mlflow: MlflowServer, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow.url)
    change(
        digits, **{"rounds: 10": "rounds: 2", "local_epochs: 2": "local_epochs: 1", "name: digits": "name: rehearsed"}
    )
    result = fedpipe.simulate(digits / "federation.yaml", out=tmp_path / "out")
    (run,) = mlflow.runs("rehearsed", federation="rehearsed", run="simulation-1")
    assert run["info"]["status"] == "FINISHED"
    assert result.tracked.startswith(f"MLflow: {mlflow.url}/#/")
    losses = [point["loss"] for point in result.summary["rounds"]]
    assert [value for step, value in mlflow.curve(run, "loss") if step] == pytest.approx(losses)


def test_the_file_names_server_and_experiment(
    mlflow: MlflowServer, numpy_digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They count before those of the environment."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_RUN_ID", "of-another-server")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "77")
    tracking = {"mlflow": mlflow.url, "experiment": "named in the file"}
    result = fedpipe.run(numpy_digits / "federation.yaml", out=tmp_path, training={"rounds": 1}, tracking=tracking)
    assert result.tracked.startswith(f"MLflow: {mlflow.url}/#/")
    (run,) = mlflow.runs("named%20in%20the%20file")
    assert "mlflow.parentRunId" not in told(run["data"]["tags"])


def test_containers_send_their_rounds(
    mlflow: MlflowServer, numpy_digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The steps as pods run them: `fedpipe step NAME {executor input}`, of a run that finds its rounds committed."""
    tracking = {"experiment": "containers"}
    fedpipe.run(numpy_digits / "federation.yaml", out=tmp_path, training={"rounds": 2}, tracking=tracking)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow.url)
    uri = f"file://{numpy_digits / 'store'}"
    store = store_of(numpy_digits / "store")
    digest = current_plan(store, "run-1", history(store, "run-1")[0].plan).digest
    values = {"place": {"store": uri, "federation": "digits", "run": "run-1", "plan": digest}}
    wanted = {"outputFile": str(tmp_path / "output.json")}

    def step(name: str, **more: Any) -> Any:
        assert main([name, json.dumps({"inputs": {"parameterValues": {**values, **more}}, "outputs": wanted})]) == 0
        (run,) = mlflow.runs("containers")
        return run

    run = step("aggregate", round=2, base="")
    assert run["info"]["status"] == "RUNNING"
    assert [step for step, _ in mlflow.curve(run, "loss")] == [1, 2]
    assert "evaluation/central/loss" not in mlflow.curves(run)
    step("coordinate", job="j")
    run = step("report")
    assert run["info"]["status"] == "FINISHED"
    assert "evaluation/central/loss" in mlflow.curves(run)
    assert_whole(mlflow, run, store, "run-1")


class Rounds:
    """A run that is played a round at a time."""

    def __init__(self, name: str, rounds: int = 6) -> None:
        federation = make_federation(name=name, training={"rounds": rounds, "batch_size": 1})
        self.store, self.plan = MemoryStore(), make_plan(federation)
        self._learners = {learner.name: PlusOneLearner(k + 1, k + 1) for k, learner in enumerate(federation.learners)}
        self._record: Record = begin(self.store, self.plan, fresh)

    def play(self) -> None:
        number = self._record.round + 1
        play_round(self.store, self.plan, number, self._record.weights, self._learners)
        self._record = close_round(self.store, self.plan, number, self._record.weights)


def test_each_step_continues_the_same_run(mlflow: MlflowServer) -> None:
    """As pods of single steps do, each with a tracker of its own; and two at once."""
    run = Rounds("steps")
    for _ in range(6):
        with Tracker(run.store, "r1", Tracking(mlflow=mlflow.url), continues=True):
            run.play()
    (found,) = mlflow.runs("steps", run="r1")
    assert found["info"]["status"] == "RUNNING"
    trackers = [Tracker(run.store, "r1", Tracking(mlflow=mlflow.url)) for _ in range(4)]
    threads = [threading.Thread(target=lambda t=t: t.__enter__() and t.close("FINISHED")) for t in trackers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [tracker.outcome for tracker in trackers] == [trackers[0].outcome] * 4
    (found,) = mlflow.runs("steps", run="r1")
    assert_whole(mlflow, found, run.store, "r1")


def test_several_that_begin_at_once_make_one_run(mlflow: MlflowServer) -> None:
    run = Rounds("at-once")
    run.play()
    trackers = [Tracker(run.store, "r1", Tracking(mlflow=mlflow.url), continues=True) for _ in range(4)]
    for tracker in trackers:
        tracker.start()
        tracker.wake()
    for tracker in trackers:
        tracker.close(None)
    assert [tracker.failure for tracker in trackers] == [None] * 4
    (found,) = mlflow.runs("at-once", run="r1")
    assert_whole(mlflow, found, run.store, "r1")


@pytest.mark.parametrize("later", [-1, 1])
def test_of_two_that_create_at_once_the_first_is_kept(later: int, mlflow: MlflowServer) -> None:
    """The other one creates its run between our look and our own creation, and begins earlier or later."""
    run = Rounds(f"rival{later}")
    run.play()
    with Tracker(run.store, "r1", Tracking(mlflow=mlflow.url), continues=True):
        pass
    (other,) = mlflow.runs(f"rival{later}", run="r1")
    mlflow.ask("POST", "runs/delete", run_id=other["info"]["run_id"])

    def rival(path: str, count: int) -> bool:
        if path.endswith("search") and count == 1:
            info = other["info"]
            mlflow.ask(
                "POST",
                "runs/create",
                experiment_id=info["experiment_id"],
                start_time=info["start_time"] + later,
                tags=[tag for tag in other["data"]["tags"] if tag["key"].startswith("fedpipe.")],
            )
        return False

    with (
        answering(losing(mlflow.url, rival)) as between,
        Tracker(run.store, "r1", Tracking(mlflow=between.url), continues=True) as tracker,
    ):
        tracker.wake()
    assert tracker.failure is None
    (found,) = mlflow.runs(f"rival{later}", run="r1")
    assert found["info"]["start_time"] == other["info"]["start_time"] + min(later, 0)
    assert_whole(mlflow, found, run.store, "r1")


def test_a_process_whose_run_is_deleted_sends_it_again(mlflow: MlflowServer) -> None:
    run = Rounds("overtaken")
    run.play()
    with Tracker(run.store, "r1", Tracking(mlflow=mlflow.url), continues=True):
        pass
    (own,) = mlflow.runs("overtaken", run="r1")

    def delete(path: str, count: int) -> bool:
        if path.endswith("runs/get") and count == 1:
            mlflow.ask("POST", "runs/delete", run_id=own["info"]["run_id"])
        return False

    run.play()
    with (
        answering(losing(mlflow.url, delete)) as between,
        Tracker(run.store, "r1", Tracking(mlflow=between.url), continues=True) as tracker,
    ):
        tracker.wake()
    assert tracker.failure is None
    (found,) = mlflow.runs("overtaken", run="r1")
    assert found["info"]["run_id"] != own["info"]["run_id"]
    assert_whole(mlflow, found, run.store, "r1")


@pytest.mark.parametrize("lost", ["log-batch", "create", "search", "get", "update", "delete"])
def test_answers_that_are_lost_double_nothing(lost: str, mlflow: MlflowServer) -> None:
    """MLflow carries a request out, and its answer never arrives: the first one, and every third after it."""
    run = Rounds(f"lost-{lost}")
    with answering(losing(mlflow.url, lambda path, count: path.endswith(lost) and count % 3 == 1)) as between:
        for _ in range(6):
            with Tracker(run.store, "r1", Tracking(mlflow=between.url), continues=True) as tracker:
                run.play()
                tracker.wake()
    with Tracker(run.store, "r1", Tracking(mlflow=mlflow.url)):
        pass
    (found,) = mlflow.runs(f"lost-{lost}", run="r1")
    assert found["info"]["status"] == "FINISHED"
    assert_whole(mlflow, found, run.store, "r1")


def test_a_run_that_fails_and_is_repeated(mlflow: MlflowServer) -> None:
    run = Rounds("repeated")
    settings = Tracking(mlflow=mlflow.url)
    run.play()
    with pytest.raises(ZeroDivisionError), Tracker(run.store, "r1", settings):
        _ = 1 / 0
    (found,) = mlflow.runs("repeated")
    assert found["info"]["status"] == "FAILED"
    with Tracker(run.store, "r1", settings, continues=True):
        run.play()
    (found,) = mlflow.runs("repeated")
    assert found["info"]["status"] == "RUNNING"
    with pytest.raises(KeyboardInterrupt), Tracker(run.store, "r1", settings):
        raise KeyboardInterrupt
    (found,) = mlflow.runs("repeated")
    assert found["info"]["status"] == "KILLED"
    assert_whole(mlflow, found, run.store, "r1")


def test_another_try_from_other_weights_is_another_run(mlflow: MlflowServer, tmp_path: Path) -> None:
    """Its name is the same, its round 0 is not: points of both in one curve would be nonsense."""
    for folder, names in ((tmp_path / "a", ("a", "b")), (tmp_path / "b", ("a", "c"))):
        store, plan = LocalStore(folder), make_plan(make_federation(names, name="tries"))
        begin(store, plan, fresh)
        with Tracker(store, "r1", Tracking(mlflow=mlflow.url)):
            pass
    assert len(mlflow.runs("tries", run="r1")) == 2


class TestParents:
    """KFP's plugin makes a run for the pipeline and one for each step, and gives the step's id to the container."""

    @pytest.fixture
    def step(self, mlflow: MlflowServer, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
        experiment = mlflow.ask("POST", "experiments/create", name=f"KFP-{os.urandom(4).hex()}")["experiment_id"]
        whole = mlflow.ask("POST", "runs/create", experiment_id=experiment, start_time=1)["run"]["info"]["run_id"]
        parent = [{"key": "mlflow.parentRunId", "value": whole}]
        made = mlflow.ask("POST", "runs/create", experiment_id=experiment, start_time=1, tags=parent)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow.url)
        monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", experiment)
        monkeypatch.setenv("MLFLOW_RUN_ID", made["run"]["info"]["run_id"])
        return experiment, whole

    def test_the_run_is_below_that_of_the_pipeline(self, step: tuple[str, str], mlflow: MlflowServer) -> None:
        run = Rounds("nested")
        with Tracker(run.store, "r1", Tracking(), continues=True):
            run.play()
        experiment, whole = step
        condition = "tags.`fedpipe.run` = 'r1' and tags.`fedpipe.federation` = 'nested'"
        found = mlflow.ask("POST", "runs/search", experiment_ids=[experiment], filter=condition)["runs"]
        assert [told(one["data"]["tags"])["mlflow.parentRunId"] for one in found] == [whole]

    def test_a_parent_that_was_deleted_is_no_obstacle(
        self, step: tuple[str, str], mlflow: MlflowServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("MLFLOW_RUN_ID", "0" * 32)
        run = Rounds("orphan")
        with Tracker(run.store, "r1", Tracking(), continues=True) as tracker:
            run.play()
        assert tracker.failure is None


def test_values_that_no_json_has(mlflow: MlflowServer) -> None:
    place = find_place(Tracking(mlflow=mlflow.url))
    assert place is not None
    run = open_run(place, "diverged", "r1", {"fedpipe.run": "r1"}, 1)
    run.log([Point("loss", 1, math.nan), Point("norm", 1, math.inf)], milliseconds={1: 5})
    (found,) = mlflow.runs("diverged")
    curves = mlflow.curves(found)
    assert math.isnan(curves["loss"][0][1])
    assert curves["norm"][0][1] > 1e300


def test_hundred_learners_in_a_few_requests(mlflow: MlflowServer, store: MemoryStore) -> None:
    names = tuple(f"l{k}" for k in range(100))
    plan = make_plan(make_federation(names, name="hundred", training={"rounds": 12, "batch_size": 1}))
    play(store, plan)
    with (
        answering(losing(mlflow.url, lambda *_: False)) as between,
        Tracker(store, "r1", Tracking(mlflow=between.url)) as tracker,
    ):
        pass
    assert tracker.failure is None
    (run,) = mlflow.runs("hundred")
    story = read_story(store, "r1")
    points = unsent([point for number in range(13) for point in points_of(story, number)], {})
    assert {metric["key"] for metric in run["data"]["metrics"]} == {point.key for point in points}
    assert [step for step, _ in mlflow.curve(run, "learners/l99/loss")] == list(range(1, 13))
    batches = [path for _, path, _ in between.requests if path.endswith("log-batch")]
    assert len(batches) <= 2 + -(-len(points) // 900) + 1
