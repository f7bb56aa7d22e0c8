"""Runs the steps of a compiled pipeline as the processes of their containers, each under its supervising parent."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from fedpipe.compiled.graph import Task, read_graph, resolve

_PARENT = "import sys; from fedpipe.steps.supervision import main; sys.exit(main(sys.argv[1:], (0.1, 0.1)))"
"""Does the work of `fedpipe step`, with short pauses between tries."""


class Ended(NamedTuple):
    code: int
    log: str
    output: dict[str, Any]


class Pods:
    """A job of a pipeline whose steps run as processes.

    Args:
        pipeline: the compiled file.
        folder: for the steps' outputs.
        parameters: of the pipeline, over its defaults.
        job: the id of KFP's job.
        before: called in each process before the step's command is executed.
    """

    def __init__(
        self, pipeline: Path, folder: Path, parameters: Mapping[str, Any], job: str = "job-1",
        before: Callable[[], None] | None = None,
    ) -> None:  # fmt: skip
        self._before = before
        self.graph = read_graph(pipeline)
        self.processes: dict[str, subprocess.Popen[str]] = {}
        self.ended: dict[str, Ended] = {}
        self._folder, self._job = folder, job
        self._parameters = {**self.graph.parameters, **parameters}
        self._results: dict[str, dict[str, Any]] = {}

    def run(self, *only: str) -> dict[str, Ended]:
        """Runs the tasks in their order, at once where they may; a task after one that failed does not start.

        Args:
            only: the tasks to run, by the first word of their names; all by default.
        """
        left = {t.key: t for t in self.graph.tasks if t.name not in self.ended}
        left = {key: task for key, task in left.items() if not only or task.name.split()[0] in only}
        while ready := [task for task in left.values() if task.after <= self._results.keys()]:
            with ThreadPoolExecutor(len(ready)) as pool:
                list(pool.map(self._one, ready))
            for task in ready:
                del left[task.key]
        return self.ended

    def start(self, task: Task) -> tuple[subprocess.Popen[str], Path]:
        place = self._folder / task.key
        place.mkdir(parents=True, exist_ok=True)
        runtime = {
            name: {"artifacts": [{"name": name, "uri": str(place / name), "metadata": {}}]} for name in task.artifacts
        }
        inputs = resolve(task, self._parameters, self._results, self._job)
        outputs = {"outputFile": str(place / "output.json"), "parameters": {}, "artifacts": runtime}
        given = json.dumps({"inputs": inputs, "outputs": outputs})
        command = [sys.executable, "-c", _PARENT, str(task.step), given]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ,
            preexec_fn=self._before,
        )  # fmt: skip
        self.processes[task.name] = process
        return process, place / "output.json"

    def _one(self, task: Task) -> None:
        process, output = self.start(task)
        log, _ = process.communicate(timeout=600)
        written = json.loads(output.read_text()) if output.exists() else {}
        self.ended[task.name] = Ended(process.returncode, log, written)
        if process.returncode == 0:
            self._results[task.key] = written
