"""The same compiled file through kfp.local: same reading of the graph, same final weights.

kfp.local refuses container components in its subprocess runner; this module alone replaces its task handler by one
that runs the container's full command here. Steps with Keras run in a process that has it: its import takes seconds.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import fedpipe
from fedpipe.engine.workers import Worker
from fedpipe.federation.environments import ENVIRONMENTS
from fedpipe.rounds.history import history
from fedpipe.steps.contract import execute, parse_arguments
from fedpipe.store import open_store

pytestmark = [
    pytest.mark.heavy,
    pytest.mark.filterwarnings("ignore"),  # kfp.local's own
    pytest.mark.xdist_group("kfp-local"),
]

FEDERATION = """
name: tiny
store: store
data: {uri: data.npz, parts: {train: 0.5, vote: 0.25, test: 0.25}}
learners: [{name: a}, {name: b}]
training: {rounds: 1, rounds_per_step: 1, batch_size: 8}
"""
MODEL = """
import keras

def build():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8), keras.layers.Dropout(0.5), keras.layers.Dense(3, activation="softmax")])
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model
"""


def run_here(arguments: list[str]) -> int:
    """Runs a step in this process, which has imported its framework."""
    execute(*parse_arguments(arguments))
    return 0


def handler(keras: Worker) -> type[Any]:
    """Makes a task handler for kfp.local: steps with Keras run in a process that has it, others by their command."""

    class FullCommandHandler:
        def __init__(self, *, full_command: list[str], **_: Any) -> None:
            self._command = full_command

        def run(self) -> Any:
            from kfp.local import status

            program, word, *arguments = self._command
            assert (program, word) == ("fedpipe", "step")
            if ENVIRONMENTS[arguments[0]] == "keras":
                code = keras.call(run_here, arguments)
            else:
                path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
                code = subprocess.run(self._command, env={**os.environ, "PATH": path}, check=False).returncode
            return status.Status.FAILURE if code else status.Status.SUCCESS

    return FullCommandHandler


@pytest.mark.parametrize("algorithm", ["averaging", "collective"])
def test_the_same_final_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, algorithm: str, keras: Worker) -> None:
    import numpy as np
    from kfp import components, local
    from kfp.local import subprocess_task_handler

    rng = np.random.default_rng(0)
    x = rng.normal(size=(80, 4)).astype(np.float32)
    np.savez(tmp_path / "data.npz", x=x, y=np.argmax(x[:, :3], axis=1))
    (tmp_path / "federation.yaml").write_text(f"{FEDERATION}algorithm: {{name: {algorithm}}}\n")
    (tmp_path / "model.py").write_text(MODEL)
    fedpipe.compile_pipeline(fedpipe.read_federation(tmp_path / "federation.yaml"), tmp_path / "pipeline.yaml")

    fedpipe.run(tmp_path / "pipeline.yaml", out=tmp_path / "out", name="same")

    monkeypatch.setattr(subprocess_task_handler, "SubprocessTaskHandler", handler(keras))
    local.init(runner=local.SubprocessRunner(use_venv=False), pipeline_root=str(tmp_path / "root"))
    pipeline = components.load_component_from_file(str(tmp_path / "pipeline.yaml"))
    pipeline(store=f"file://{tmp_path}/kfp", run="same")

    ours = history(open_store(str(tmp_path / "store")).below("tiny"), "same")
    theirs = history(open_store(str(tmp_path / "kfp")).below("tiny"), "same")
    assert [r.ref for r in theirs] == [r.ref for r in ours]
    assert theirs[-1].weights == ours[-1].weights
    assert len(ours) == 2
    pages = [p for p in (tmp_path / "root").rglob("page") if p.is_file()]
    assert re.search("<h1>tiny</h1>", pages[0].read_text())
