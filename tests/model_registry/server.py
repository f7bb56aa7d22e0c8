"""The server of Kubeflow's Model Registry over a MariaDB, for `make registry`.

Go's module proxy does not have the server, so it is built from a checkout of kubeflow/model-registry, whose folder
FEDPIPE_MODEL_REGISTRY names. All that it is built from is pinned by the checkout's own go.sum.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from tests import servers
from tests.binaries import build

SOURCE = "FEDPIPE_MODEL_REGISTRY"
_SECONDS = 60.0


class RegistryServer(NamedTuple):
    """A running server: its URL, its process, and that of its database."""

    url: str
    process: subprocess.Popen[bytes]
    database: subprocess.Popen[bytes]


def find_server() -> Path:
    """Returns the server: `model-registry` of PATH, or built once from the checkout. Raises RuntimeError."""
    return _found("model-registry", ".")


def find_initializer() -> Path:
    """Returns the program that copies a model for KServe, as `find_server` does; its packages take minutes."""
    return _found("mr-storage-initializer", "cmd/csi")


def _found(name: str, folder: str) -> Path:
    if found := shutil.which(name):
        return Path(found)
    source = Path(os.environ.get(SOURCE, ""))
    if not os.environ.get(SOURCE) or not (source / "go.mod").is_file():
        raise RuntimeError(f"set {SOURCE} to a checkout of kubeflow/model-registry, or put {name} on PATH")
    module = (source / folder / "go.mod").read_text().partition("module ")[2].split()[0]
    return build(f"{name}-{_digest(source)}", source / folder, {name: module}, quick=True)[name]


def _digest(source: Path) -> str:
    """Returns a digest of the program's files: checkouts with equal packages may differ in it."""
    found = hashlib.sha256()
    for path in sorted(path for path in source.rglob("*") if path.suffix in (".go", ".sql")):
        found.update(str(path.relative_to(source)).encode() + path.read_bytes())
    return found.hexdigest()[:12]


@contextlib.contextmanager
def running(folder: Path) -> Iterator[RegistryServer]:
    """Starts the server over an empty database, and ends both. Raises RuntimeError."""
    program, port, database_port = find_server(), servers.free_port(), servers.free_port()
    with _database(folder, database_port) as database:
        dsn = f"root@tcp(127.0.0.1:{database_port})/registry?charset=utf8mb4"
        command = [
            program, "proxy", "--hostname", "127.0.0.1", "--port", port, "--embedmd-database-type", "mysql",
            "--embedmd-database-dsn", dsn,
        ]  # fmt: skip
        url = f"http://127.0.0.1:{port}"
        with _process(command, folder / "registry.log") as process:
            _await(lambda: _answers(url), process, folder / "registry.log")
            yield RegistryServer(url, process, database)


@contextlib.contextmanager
def _database(folder: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """Starts a MariaDB with an empty database `registry`."""
    install, program, client = map(shutil.which, ("mariadb-install-db", "mariadbd", "mariadb"))
    program = program or shutil.which("mariadbd", path="/usr/sbin")
    if not (install and program and client):
        raise RuntimeError("MariaDB is missing: install Debian's mariadb-server-core and mariadb-client-core")
    data = folder / "mariadb"
    common = ["--no-defaults", f"--datadir={data}", *(["--user=root"] if os.getuid() == 0 else [])]
    made = [install, *common, "--auth-root-authentication-method=normal", "--skip-test-db"]
    subprocess.run(made, check=True, capture_output=True)
    command = [program, *common, "--bind-address=127.0.0.1", f"--port={port}", f"--socket={data}/socket"]
    asking = [client, "--no-defaults", "--user=root", f"--socket={data}/socket", "--execute=CREATE DATABASE registry"]
    with _process(command, folder / "mariadb.log") as process:
        _await(lambda: subprocess.run(asking, capture_output=True, check=False).returncode == 0, process,
               folder / "mariadb.log")  # fmt: skip
        yield process


@contextlib.contextmanager
def _process(command: Sequence[object], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as output:
        process = subprocess.Popen(list(map(str, command)), stdout=output, stderr=output)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def _answers(url: str) -> bool:
    with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/readyz/health", timeout=5):
        return True
    return False


def _await(is_ready: Callable[[], bool], process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + _SECONDS
    while time.monotonic() < end:
        if process.poll() is not None:
            break
        if is_ready():
            return
        time.sleep(0.1)
    raise RuntimeError(f"the server is not ready: {log.read_text(errors='replace')[-2000:]}")
