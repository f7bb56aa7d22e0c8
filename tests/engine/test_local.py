"""Tests the local engine with small graphs of other containers, and its worker processes."""

from __future__ import annotations

import gc
import os
import signal
import socket
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import pytest

from fedpipe.compiled.graph import Graph, Task, parse_graph
from fedpipe.engine.local import Engine, Event
from fedpipe.engine.workers import Worker, Workers, start_server
from fedpipe.errors import Failure, FedpipeError, InputError, QuorumError, StepError, WorkerDiedError
from tests.processes import LIMIT


def graph(tasks: dict[str, dict[str, Any]]) -> Graph:
    """Builds a graph of shell commands with these `after` and `inputs`."""
    spec: dict[str, Any] = {
        "pipelineInfo": {"name": "p"},
        "deploymentSpec": {"executors": {}},
        "components": {},
        "root": {
            "dag": {"tasks": {}},
            "inputDefinitions": {"parameters": {"n": {"parameterType": "STRING", "defaultValue": "7"}}},
        },
    }
    for key, task in tasks.items():
        command = ["sh", "-c", task["run"]]
        spec["deploymentSpec"]["executors"][f"e-{key}"] = {
            "container": {"image": "alpine", "command": command, "args": task.get("args", [])}
        }
        outputs = {"parameters": {o: {"parameterType": "STRING"} for o in task.get("outputs", [])}}
        spec["components"][f"c-{key}"] = {"executorLabel": f"e-{key}", "outputDefinitions": outputs}
        spec["root"]["dag"]["tasks"][key] = {
            "taskInfo": {"name": key},
            "componentRef": {"name": f"c-{key}"},
            "dependentTasks": task.get("after", []),
            "inputs": {"parameters": task.get("inputs", {})},
            "retryPolicy": {"maxRetryCount": 0},
        }
    return parse_graph(spec)


OUT = "{{$.outputs.parameters['o'].output_file}}"


def test_outputs_reach_the_next_task(tmp_path: Path) -> None:
    tasks = {
        "one": {
            "run": 'echo "$0" > "$1"',
            "args": ["{{$.inputs.parameters['n']}}", OUT],
            "outputs": ["o"],
            "inputs": {"n": {"componentInputParameter": "n"}},
        },
        "two": {
            "run": 'printf "%s and more" "$0" > "$1"',
            "args": ["{{$.inputs.parameters['x']}}", OUT],
            "outputs": ["o"],
            "inputs": {"x": {"taskOutputParameter": {"producerTask": "one", "outputParameterKey": "o"}}},
        },
    }
    results = Engine(graph(tasks), {"n": "hello"}, folder=tmp_path).run()
    assert results["two"]["parameterValues"]["o"].split() == ["hello", "and", "more"]


def test_tasks_run_concurrently(tmp_path: Path) -> None:
    """Runs two tasks that wait for each other's file, so that they only end if both run at once."""
    wait = 'touch "$0"; for i in $(seq 1000); do [ -e "$1" ] && exit 0; sleep 0.1; done; exit 1'
    one, two = str(tmp_path / "one"), str(tmp_path / "two")
    tasks = {"a": {"run": wait, "args": [one, two]}, "b": {"run": wait, "args": [two, one]}}
    Engine(graph(tasks), {}, folder=tmp_path, workers=2).run()


def test_a_task_waits_for_those_before_it(tmp_path: Path) -> None:
    events: list[Event] = []
    tasks = {"b": {"run": "true", "after": ["a"]}, "a": {"run": "sleep 0.2"}}
    Engine(graph(tasks), {}, folder=tmp_path, listener=events.append).run()
    assert [(e.what, e.task.name) for e in events] == [("started", "a"), ("done", "a"), ("started", "b"), ("done", "b")]
    assert events[1].seconds >= 0.2


def test_a_failing_container_names_its_log(tmp_path: Path) -> None:
    with pytest.raises(StepError, match=r"step 'a' ended with code 3. See its log: .*a\.log"):
        Engine(graph({"a": {"run": "echo why; exit 3"}}), {}, folder=tmp_path).run()
    assert "why" in (tmp_path / "logs" / "a.log").read_text()


def test_a_missing_output(tmp_path: Path) -> None:
    with pytest.raises(StepError, match="step 'a' did not write output 'o'"):
        Engine(graph({"a": {"run": "true", "outputs": ["o"]}}), {}, folder=tmp_path).run()


def test_a_command_that_does_not_exist(tmp_path: Path) -> None:
    made = graph({"a": {"run": "true"}})
    task = made.tasks[0]._replace(command=("no-such-command",))
    with pytest.raises(InputError, match="Run it on a cluster, in its container alpine"):
        Engine(made._replace(tasks=(task,)), {}, folder=tmp_path).run()


@pytest.mark.xdist_group("runs")  # all use one process with TensorFlow
class TestWorkers:
    @pytest.fixture(autouse=True)
    def _server(self) -> None:
        start_server()

    @pytest.mark.parametrize("delay", [0.0005, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1])
    @pytest.mark.filterwarnings("ignore::ResourceWarning")  # of an interrupted standard library
    @pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # it may be interrupted in __del__
    def test_ctrl_c_while_a_process_starts_leaves_no_error(self, delay: float) -> None:
        """The main thread is interrupted inside the start of the process; what has not begun cannot be killed.

        A process that has begun unseen ends with its pipe.
        """
        worker = Worker()

        def interrupt(number: int, frame: Any) -> None:
            raise KeyboardInterrupt

        before = signal.signal(signal.SIGALRM, interrupt)
        try:
            signal.setitimer(signal.ITIMER_REAL, delay)
            worker.call(os.getpid)
            signal.setitimer(signal.ITIMER_REAL, 0)
        except KeyboardInterrupt:
            pass
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        gc.collect()  # here, where the warnings are ignored, and not in another test
        worker.stop(for_good=True)
        with pytest.raises(WorkerDiedError, match="was ended"):
            worker.call(os.getpid)

    def test_an_interrupted_start_ends_the_server_and_the_next_awaits_another(self) -> None:
        """The server ends when a connection closes before the process is asked for, as after Ctrl-C."""
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(forkserver._forkserver._forkserver_address)  # type: ignore[attr-defined]
        worker = Worker()
        assert worker.call(max, 3, 5) == 5
        worker.stop()

    def test_a_result_is_returned(self) -> None:
        worker = Worker()
        assert worker.call(max, 3, 5) == 5
        assert worker.call(os.getpid) == worker.call(os.getpid) != os.getpid()
        worker.stop()

    def test_an_error_keeps_its_class_and_parts(self) -> None:
        worker = Worker()
        with pytest.raises(QuorumError, match="too few") as caught:
            worker.call(raise_quorum)
        assert caught.value.remedy == "wait"
        worker.stop()

    def test_a_bug_comes_with_its_traceback(self) -> None:
        worker = Worker()
        with pytest.raises(RuntimeError, match="ZeroDivisionError"):
            worker.call(divmod, 1, 0)
        worker.stop()

    def test_a_call_after_the_end_starts_nothing(self) -> None:
        workers, worker = Workers(), Worker()
        workers.stop()
        worker.stop(for_good=True)
        for call in (workers.call, worker.call):
            with pytest.raises(WorkerDiedError, match="ended"):
                call(os.getpid)

    def test_a_killed_worker_is_noticed_and_replaced(self, tmp_path: Path) -> None:
        worker = Worker()
        process = worker.call(os.getpid)
        with ThreadPoolExecutor(1) as pool:
            held = pool.submit(worker.call, hold, tmp_path)
            await_path(tmp_path / "held")
            os.kill(process, signal.SIGKILL)
            with pytest.raises(WorkerDiedError):
                held.result()
        assert worker.call(os.getpid) != process
        worker.stop()

    def test_the_warm_one_is_used_again_and_several_work_at_once(self, tmp_path: Path) -> None:
        with Workers() as workers:
            first = workers.call(os.getpid)
            assert workers.call(os.getpid) == first
            with ThreadPoolExecutor(1) as pool:
                held = pool.submit(workers.call, hold, tmp_path)
                await_path(tmp_path / "held")
                assert workers.call(os.getpid) != first
                (tmp_path / "free").touch()
                held.result()
            assert workers.call(os.getpid) == first
        with pytest.raises(ProcessLookupError):
            os.kill(first, 0)


class TestWithoutTensorFlow:
    def test_a_core_call_runs_in_this_process(self) -> None:
        with Workers() as workers:
            assert workers.call(os.getpid, environment="core") == os.getpid()
            with pytest.raises(QuorumError, match="too few"):
                workers.call(raise_quorum, environment="core")

    def test_a_worker_that_is_not_preloaded_is_a_fresh_python(self) -> None:
        """It imports what a call needs, reports errors like others, and ends with the rest."""
        with Workers(preload=False) as workers:
            process = workers.call(os.getpid)
            assert workers.call(imported, "tensorflow") is False
            with pytest.raises(QuorumError, match="too few"):
                workers.call(raise_quorum)
            assert workers.call(os.getpid) == process != os.getpid()
        with pytest.raises(ProcessLookupError):
            os.kill(process, 0)


def hold(folder: Path) -> None:
    """Keeps a worker busy until a file is there."""
    (folder / "held").touch()
    await_path(folder / "free")


def await_path(path: Path) -> None:
    end = time.monotonic() + LIMIT
    while not path.exists():
        assert time.monotonic() < end, path
        time.sleep(0.01)


def imported(name: str) -> bool:
    return name in sys.modules


def raise_quorum() -> None:
    raise QuorumError("too few", remedy="wait")


@pytest.mark.parametrize("kind", [FedpipeError, InputError, StepError])
def test_failures_become_errors_again(kind: type[FedpipeError]) -> None:
    made = Failure.of(kind("what", where="where", remedy="remedy")).error()
    assert type(made) is kind
    assert str(made) == "where: what. remedy"


def test_a_missing_extra_survives_too() -> None:
    from fedpipe.errors import MissingExtraError

    assert "fedpipe[keras]" in str(Failure.of(MissingExtraError("TensorFlow", "keras")).error())


def test_task_steps() -> None:
    task = graph({"a": {"run": "true"}}).tasks[0]
    assert task.step is None
    assert Task(**{**task._asdict(), "command": ("fedpipe", "step", "train")}).step == "train"
