"""A real MLflow server, in an environment of its own; `python -m tests.tracking.mlflow_server` makes the environment.

Needs no package to be imported: CI makes the environment while others are made.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.binaries import cache_folder

LOCK = Path(__file__).parents[2] / "requirements" / "mlflow.txt"


def find_mlflow() -> Path:
    """The command `mlflow`, of the environment that requirements/mlflow.txt pins; it is made once."""
    folder = cache_folder() / f"mlflow-{hashlib.sha256(LOCK.read_bytes()).hexdigest()[:12]}"
    folder.mkdir(parents=True, exist_ok=True)
    command, ready = folder / "bin" / "mlflow", folder / ".ready"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not ready.exists():
            _install(folder)
            ready.touch()
    return command


def _install(folder: Path) -> None:
    """Makes the environment with uv, as the Makefile does, or with pip where there is no uv."""
    uv = shutil.which("uv") or str(LOCK.parents[1] / ".tools" / "bin" / "uv")
    if Path(uv).exists():
        subprocess.run([uv, "venv", "--quiet", "--allow-existing", "--python", sys.executable, folder], check=True)
        sync = [
            uv,
            "pip",
            "sync",
            "--quiet",
            "--compile-bytecode",
            "--require-hashes",
            "--python",
            folder / "bin" / "python",
            LOCK,
        ]
        subprocess.run(sync, check=True)
        return
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    install = [folder / "bin" / "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    subprocess.run([*install, "--require-hashes", "-r", LOCK], check=True)


class MlflowServer:
    """A running server, and what a test asks it past fedpipe."""

    def __init__(self, url: str, process: subprocess.Popen[bytes]) -> None:
        self.url, self.process = url, process

    def ask(self, method: str, path: str, **body: Any) -> Any:
        """The answer of MLflow's API to a request; raises HTTPError for a refusal."""
        request = urllib.request.Request(
            f"{self.url}/api/2.0/mlflow/{path}",
            method=method,
            data=json.dumps(body).encode() if body else None,
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as response:
            return json.load(response)

    def runs(self, experiment: str, **tags: str) -> list[Any]:
        """The runs of an experiment with these tags."""
        try:
            found = self.ask("GET", f"experiments/get-by-name?experiment_name={experiment}")["experiment"]
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return []
            raise
        condition = " and ".join(f"tags.`fedpipe.{name}` = '{value}'" for name, value in tags.items())
        body = {"experiment_ids": [found["experiment_id"]], "max_results": 100}
        return self.ask("POST", "runs/search", **body, **({"filter": condition} if tags else {})).get("runs", [])

    def curve(self, run: Any, key: str) -> list[tuple[int, float]]:
        """All points of a curve, doubled ones twice."""
        found = self.ask(
            "GET", f"metrics/get-history?run_id={run['info']['run_id']}&metric_key={key}&max_results=10000"
        )
        return sorted((int(point.get("step", 0)), float(point["value"])) for point in found.get("metrics", []))

    def curves(self, run: Any) -> dict[str, list[tuple[int, float]]]:
        """All curves of a run."""
        return {metric["key"]: self.curve(run, metric["key"]) for metric in run["data"]["metrics"]}

    def artifacts(self, run: Any) -> dict[str, bytes]:
        """The files of a run."""
        found = {}
        for file in self.ask("GET", f"artifacts/list?run_id={run['info']['run_id']}").get("files", []):
            path = f"{self.url}/get-artifact?path={file['path']}&run_uuid={run['info']['run_id']}"
            with urllib.request.urlopen(path, timeout=60) as response:
                found[file["path"]] = response.read()
        return found


def told(found: list[Any]) -> dict[str, str]:
    """Tags or parameters of MLflow as a table."""
    return {item["key"]: item["value"] for item in found}


@contextlib.contextmanager
def running(folder: Path, port: int) -> Iterator[MlflowServer]:
    """A server over an empty folder."""
    url = f"http://127.0.0.1:{port}"
    command = [
        find_mlflow(), "server", "--host", "127.0.0.1", "--port", port, "--workers", "1",
        "--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", folder / "artifacts",
    ]  # fmt: skip
    settings = {"HOME": str(folder), "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "MLFLOW", "FEDPIPE"))}
    with (folder / "mlflow.log").open("wb") as log:
        process = subprocess.Popen(
            list(map(str, command)),
            env={**kept, **settings},
            stdout=log,
            stderr=log,
            cwd=folder,
            start_new_session=True,
        )
    try:
        _await_ready(url, process, folder / "mlflow.log")
        yield MlflowServer(url, process)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, 9)  # uvicorn is a child of the command
        process.wait()


def _await_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + 180
    while time.monotonic() < end:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/health", timeout=5):
            return
        if process.poll() is not None:
            break
        time.sleep(0.2)
    raise RuntimeError(f"MLflow did not start: {log.read_text()[-2000:]}")


if __name__ == "__main__":
    print(find_mlflow())
