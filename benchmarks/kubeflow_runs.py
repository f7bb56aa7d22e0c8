"""Measures how long a Kubeflow with 1000 runs takes to find one: by its name, and by the start of its id."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import uuid
from pathlib import Path

from tests.kubeflow.kfp_server import KfpServer, serving

from benchmarks.measure import ROOT, Row, at_most, quiet, repeated, timed
from fedpipe.kubeflow.clients import open_kfp
from fedpipe.kubeflow.submission import find_run
from fedpipe.kubeflow.where import Where

RUNS = 1000
GOAL = 5.0
_FIND = "import sys; from fedpipe.kubeflow.pods import find_run_id; from fedpipe.kubeflow.where import Where; "
"""The work of `fedpipe logs` before it asks Kubernetes for the pods of a run."""


def run() -> list[Row]:
    """The rows: seconds, compared with five."""
    with tempfile.TemporaryDirectory() as home, serving() as server:
        os.environ["HOME"] = home  # KFP's client keeps a file there
        os.environ["KUBECONFIG"] = str(Path(home) / "none")
        ids = filled(server)
        kfp = open_kfp(Where(host=server.url))
        named, started = repeated(lambda: find_run(kfp, "run-77"), lambda: find_run(kfp, ids[-1][:8]))
        whole = timed(lambda: _in_a_process(server.url))
    return [
        at_most(f"{RUNS} runs on Kubeflow: one by its name", named, GOAL, "five seconds", 1),
        at_most(f"{RUNS} runs on Kubeflow: one by the start of its id", started, GOAL, "five seconds", 1),
        at_most(f"{RUNS} runs on Kubeflow: one by its name, with the start of Python", whole, GOAL, "five seconds", 1),
    ]


def filled(server: KfpServer) -> list[str]:
    """Gives the server 1000 runs, in pages of at most 200 as KFP has them; returns their ids."""
    server.page = 200
    for number in range(RUNS):
        key = str(uuid.UUID(int=number * 2**96 + 7))
        server.held["runs"][key] = {
            "run_id": key, "display_name": f"run-{number}", "state": "SUCCEEDED", "created_at": "2026-11-21T12:00:00Z",
        }  # fmt: skip
    return list(server.held["runs"])


def _in_a_process(url: str) -> None:
    script = f"{_FIND}find_run_id('run-77', Where(host='{url}'))"
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=quiet() | dict(os.environ), check=True)
