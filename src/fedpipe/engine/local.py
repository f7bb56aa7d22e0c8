"""Runs a compiled pipeline on this machine, without Kubernetes."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, NamedTuple, get_args

from fedpipe.compiled.graph import Graph, Task, fill_command, resolve
from fedpipe.engine.meeting import Meeting
from fedpipe.engine.workers import CrashError, Workers, logged_to, run_logged, run_step
from fedpipe.errors import FedpipeError, InputError, StepError, StoreUnavailableError, WorkerDiedError
from fedpipe.federation.environments import Environment
from fedpipe.learners.assembly import warm_private_training
from fedpipe.learners.downloads import shared_downloads
from fedpipe.sessions.coordinator import Moment
from fedpipe.steps import WAITING
from fedpipe.steps.contract import Hands, find, give_up, ready, write_outputs
from fedpipe.steps.early import AWAITED
from fedpipe.store.concealment import environ

TaskResult = dict[str, Any]
"""Holds an executor output: `parameterValues` and `artifacts` with their metadata."""

_LONGEST_WAIT = 5.0
"""Most seconds between retries; the pipeline's own are meant for clusters, whose faults last longer."""
_GRACE = 3.0
"""Seconds that a failed or interrupted run waits for computations in its own process, which it cannot end."""


class Event(NamedTuple):
    """Reports that a task `started`, is `done` (`found` if it was done before), or will be `retried`.

    A session's coordinator also reports a `moment`; `metadata` then has the numbers of its round for the UI.
    """

    what: str
    task: Task
    seconds: float = 0.0
    inputs: Mapping[str, Any] = {}
    result: TaskResult | None = None
    why: str = ""
    total: int = 0
    moment: Moment | None = None
    metadata: Mapping[str, Any] = {}


Listener = Callable[[Event], None]


class Engine:
    """Runs the tasks of a graph, concurrently where the graph allows.

    Args:
        graph: the compiled pipeline.
        parameters: all parameters of the pipeline.
        folder: folder for logs.
        listener: receives events of each task; several threads may call it at once.
        workers: processes for the steps of each environment; the number of cores by default.
        processes: worker processes that are warm already; the engine ends them.
    """

    def __init__(
        self, graph: Graph, parameters: Mapping[str, Any], *, folder: Path, listener: Listener = lambda _: None,
        workers: int = 0, processes: Workers | None = None,
    ) -> None:  # fmt: skip
        self._graph, self._parameters, self._listener = graph, parameters, listener
        self._logs = folder / "logs"
        self._logs.mkdir(parents=True, exist_ok=True)
        self._count = workers or os.cpu_count() or 1
        self._job = f"local-{uuid.uuid4().hex[:12]}"
        self._processes = processes or Workers()
        self._stopped = threading.Event()
        self._cores = threading.Semaphore(self._count)
        self._meeting = Meeting()

    def run(self) -> dict[str, TaskResult]:
        """Runs all tasks and returns their results by key.

        Raises:
            FedpipeError: a step failed for good; finished steps stay done, and a second run resumes after them.
        """
        results: dict[str, TaskResult] = {}
        waiting = list(self._graph.tasks)
        awaited = {key for task in waiting for key in task.after}
        running: dict[Future[TaskResult], Task] = {}
        with (
            tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch,
            shared_downloads(),  # by steps that run in this process
            self._pools(running) as pool_of,
        ):
            for first in [task for task in waiting if _needs_warmth(task)][:1]:
                pool_of(first).submit(self._warm)
            while waiting or running:
                urgent = any(task.key in awaited for task in (*waiting, *running.values()))
                for task in [t for t in waiting if t.after <= results.keys()]:
                    if urgent and _is_core(task) and task.step not in WAITING and task.key not in awaited:
                        continue  # no task waits for it: leave the cores to tasks that others wait for
                    waiting.remove(task)
                    inputs = resolve(task, self._parameters, results, self._job)
                    future = pool_of(task).submit(self._attempt, task, inputs, Path(scratch) / task.key)
                    running[future] = task
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    task = running.pop(future)
                    results[task.key] = future.result()
        return results

    def _notify(self, what: str, task: Task, **more: Any) -> None:
        self._listener(Event(what, task, total=len(self._graph.tasks), **more))

    @contextlib.contextmanager
    def _pools(self, running: Mapping[Future[Any], Task]) -> Iterator[Callable[[Task], ThreadPoolExecutor]]:
        """Yields a function that returns a task's threads: core steps run in them, others wait for a worker process.

        All steps of a session must run at once, however many there are. Their threads wait, and at any time at most one
        computation per core runs.
        """
        waiting = sum(_waits(task) for task in self._graph.tasks)
        pools = {environment: ThreadPoolExecutor(self._count) for environment in get_args(Environment)}
        pools["waiting"] = ThreadPoolExecutor(max(1, waiting))

        def pool_of(task: Task) -> ThreadPoolExecutor:
            return pools["waiting" if _waits(task) else task.environment]

        try:
            yield pool_of
        finally:
            self._stopped.set()
            self._meeting.end()
            for pool in pools.values():
                pool.shutdown(wait=False, cancel_futures=True)
            self._processes.stop()
            wait(running, timeout=_GRACE)

    def _attempt(self, task: Task, inputs: dict[str, Any], scratch: Path) -> TaskResult:
        """Runs a task until it succeeds, fails with an error that a retry cannot fix, or has no retries left."""
        inputs = self._ready(task, inputs)
        self._notify("started", task, inputs=inputs["parameterValues"])
        for tried in range(task.retries + 1):
            started = time.monotonic()
            try:
                result, found = self._once(task, inputs, scratch)
            except (WorkerDiedError, StoreUnavailableError, CrashError) as error:
                lasting = isinstance(error, CrashError) and not error.transient
                if not self._stopped.is_set() and tried < task.retries and not lasting:
                    self._notify("retried", task, why=_reason(error))
                    self._stopped.wait(min(_LONGEST_WAIT, task.backoff * 2**tried))
                    continue
                result, found = self._given_up(task, inputs, scratch, error), False
            seconds = time.monotonic() - started
            self._notify(
                "found" if found else "done",
                task,
                seconds=seconds,
                inputs=inputs["parameterValues"],
                result=result,
            )
            return result
        raise AssertionError("unreachable")

    def _ready(self, task: Task, inputs: dict[str, Any]) -> dict[str, Any]:
        """Waits for what a task awaits that has started early, and returns its inputs with it."""
        if task.step is None:
            return inputs
        ready_input = ready(task.step, {"inputs": inputs}, self._sleep, patience=math.inf)
        completed: dict[str, Any] = ready_input["inputs"]
        return completed

    def _sleep(self, seconds: float) -> None:
        if self._stopped.wait(seconds):
            raise StepError("the run was stopped")

    def _given_up(self, task: Task, inputs: dict[str, Any], scratch: Path, error: Exception) -> TaskResult:
        """Drops a learner whose step cannot be done. Raises the final error of any other step."""
        if not isinstance(error, StoreUnavailableError) and not self._stopped.is_set() and task.step is not None:
            executor_input = {"inputs": inputs, "outputs": _outputs(task, scratch)}
            outputs = give_up(task.step, inputs["parameterValues"], _reason(error))
            if outputs is not None:
                write_outputs(outputs, executor_input["outputs"])
                return _collected(task, executor_input)
        raise self._final(task, error) from error

    def _final(self, task: Task, error: Exception) -> Exception:
        if isinstance(error, FedpipeError) and not isinstance(error, WorkerDiedError):
            return error
        log = self._log(task)
        with log.open("a") as file:
            file.write(f"{error}\n")
        return StepError(f"step {task.name!r} failed: {_reason(error)}", remedy=f"See its log: {log}")

    def _log(self, task: Task) -> Path:
        return self._logs / f"{re.sub(r'[^A-Za-z0-9-]+', '-', task.name)}.log"

    def _once(self, task: Task, inputs: dict[str, Any], scratch: Path) -> tuple[TaskResult, bool]:
        executor_input = {"inputs": inputs, "outputs": _outputs(task, scratch)}
        output = Path(executor_input["outputs"]["outputFile"])
        output.unlink(missing_ok=True)
        found = False
        if task.step is None:
            self._run_container(task, executor_input)
        else:
            with logged_to(self._log(task)):
                done = find(task.step, inputs["parameterValues"])
                if done is not None:
                    found = True
                    write_outputs(done, executor_input["outputs"])
                elif task.step in WAITING:
                    run_here(task.step, executor_input, self._hands(task, inputs["parameterValues"]))
                elif _is_core(task):
                    run_here(task.step, executor_input)
                else:
                    log, environment = str(self._log(task)), task.environment
                    self._processes.call(run_step, task.step, executor_input, log, environment=environment)
        return _collected(task, executor_input), found

    def _hands(self, task: Task, inputs: Mapping[str, Any]) -> Hands:
        """Returns hands for a waiting step: it waits here, computes in its environment, and reports its progress."""
        log, environment = str(self._log(task)), task.environment

        def call(function: Callable[..., Any], *arguments: Any) -> Any:
            with self._meeting.computing(), self._cores:
                return together(function, *arguments)

        def together(function: Callable[..., Any], *arguments: Any) -> Any:
            if self._stopped.is_set():
                raise StepError("the run was stopped")
            if environment == "core":
                return function(*arguments)
            return self._processes.call(run_logged, log, function, *arguments, environment=environment)

        pause = self._meeting.waiter(coordinates=task.step == "coordinate")

        def sleep(seconds: float) -> None:
            pause(seconds)
            if self._stopped.is_set():
                raise StepError("the run was stopped")

        def notify(moment: Moment, metadata: Mapping[str, Any]) -> None:
            if moment.what in ("opened", "ended"):
                self._meeting.move()
            self._notify("moment", task, inputs=inputs, moment=moment, metadata=metadata)

        return Hands(call, sleep, notify, together)

    def _warm(self) -> None:
        """Lets a worker of the tff environment import its packages while other steps run."""
        with contextlib.suppress(Exception):  # the first step reports the error
            self._processes.call(warm_private_training, environment="tff")

    def _run_container(self, task: Task, executor_input: dict[str, Any]) -> None:
        """Runs a container that is not a fedpipe step as a command on this machine."""
        command = [fill_command(part, executor_input) for part in (*task.command, *task.arguments)]
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
        with self._log(task).open("a") as log:
            try:
                done = subprocess.run(  # noqa: S603  (the user's own pipeline)
                    command,
                    env={**environ, "PATH": path},
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    check=False,
                )
            except (OSError, IndexError) as error:
                raise InputError(
                    f"step {task.name!r} cannot run on this machine: {error}",
                    remedy=f"Run it on a cluster, in its container {task.image}.",
                ) from error
        if done.returncode:
            raise StepError(
                f"step {task.name!r} ended with code {done.returncode}", remedy=f"See its log: {self._log(task)}"
            )


def _reason(error: Exception) -> str:
    """Returns the cause of an error in one line."""
    return error.reason if isinstance(error, CrashError) else str(error)


def _waits(task: Task) -> bool:
    """Returns whether the task waits for the work of tasks that run at the same time."""
    return task.step in WAITING or (task.step in AWAITED and "place" not in task.inputs)


def _is_core(task: Task) -> bool:
    return task.step is not None and task.environment == "core"


def _needs_warmth(task: Task) -> bool:
    """Returns whether the task trains privately; for TensorFlow Federated, preflight has warmed a worker already."""
    return task.step in ("train", "learn") and task.environment == "tff"


def run_here(name: str, executor_input: dict[str, Any], hands: Hands | None = None) -> None:
    """Runs a core step, or a waiting one, in this process."""
    from fedpipe.steps.contract import execute

    try:
        execute(name, executor_input, hands)
    except FedpipeError:
        raise
    except (Exception, SystemExit) as error:
        raise CrashError.of(error) from error


def _outputs(task: Task, scratch: Path) -> dict[str, Any]:
    scratch.mkdir(parents=True, exist_ok=True)

    def artifact(name: str, kind: str) -> dict[str, Any]:
        uri = str(scratch / f"{name}.artifact")
        return {"artifacts": [{"name": name, "type": {"schemaTitle": kind}, "uri": uri, "metadata": {}}]}

    return {
        "outputFile": str(scratch / "executor_output.json"),
        "parameters": {name: {"outputFile": str(scratch / name)} for name in task.outputs},
        "artifacts": {name: artifact(name, kind) for name, kind in task.artifacts.items()},
    }


def _collected(task: Task, executor_input: dict[str, Any]) -> TaskResult:
    """Returns the executor output, completed by the files that a container wrote instead."""
    outputs = executor_input["outputs"]
    path = Path(outputs["outputFile"])
    written = json.loads(path.read_text()) if path.exists() else {}
    values = dict(written.get("parameterValues", {}))
    for name, parameter in outputs["parameters"].items():
        file = Path(parameter["outputFile"])
        if name not in values and file.exists():
            values[name] = _as_json(file.read_text())
        if name not in values:
            raise StepError(f"step {task.name!r} did not write output {name!r}")
    return {"parameterValues": values, "artifacts": {**outputs["artifacts"], **written.get("artifacts", {})}}


def _as_json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
