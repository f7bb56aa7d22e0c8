"""Real S3 servers for tests and benchmarks."""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import minio
import urllib3

from tests import binaries

ACCESS_KEY, SECRET_KEY = "fedpipe-tests", "fedpipe-tests-secret"


class Server(NamedTuple):
    """A running server; `uri` is that of a bucket that exists."""

    name: str
    endpoint: str
    process: subprocess.Popen[bytes]

    @property
    def uri(self) -> str:
        return f"s3://tests?endpoint={self.endpoint}"


@contextlib.contextmanager
def running(
    name: str, folder: Path, port: int = 0, *, certificates: Path | None = None, settings: Mapping[str, str] = {}
) -> Iterator[Server]:
    """Start a server over an empty or earlier folder, and end it afterwards.

    Args:
        name: of the program.
        folder: of its data.
        port: a free one by default.
        certificates: of MinIO: a folder with public.crt, private.key and ca.pem, for TLS.
        settings: more environment variables.
    """
    port = port or free_port()
    endpoint = f"{'https' if certificates else 'http'}://127.0.0.1:{port}"
    folder.mkdir(parents=True, exist_ok=True)
    command = _command(name, folder, port) + (["--certs-dir", str(certificates)] if certificates else [])
    with (folder.parent / f"{name}-{port}.log").open("ab") as log:
        process = subprocess.Popen(command, env={**_environment(), **settings}, stdout=log, stderr=log)
    try:
        _await_ready(process, endpoint, certificates)
        yield Server(name, endpoint, process)
    finally:
        process.kill()
        process.wait()


class Killable:
    """A server that can be killed and started again over the same folder and port."""

    def __init__(self, name: str, folder: Path) -> None:
        self._name, self._folder, self.port = name, folder, free_port()
        self._stack, self.up = contextlib.ExitStack(), False
        self.start()

    def start(self) -> None:
        self._stack.enter_context(running(self._name, self._folder, self.port))
        self.up = True

    def stop(self) -> None:
        self.up = False
        self._stack.close()  # SIGKILL


def _command(name: str, folder: Path, port: int) -> list[str]:
    binary, data = str(binaries.find_binary(name)), folder / "data"
    data.mkdir(exist_ok=True)
    if name == "minio":
        return [
            binary,
            "server",
            "--quiet",
            "--address",
            f"127.0.0.1:{port}",
            "--console-address",
            "127.0.0.1:0",
            str(data),
        ]
    (folder / "sidecar").mkdir(exist_ok=True)
    # Metadata in files of their own: not every file system of a test machine has extended attributes.
    return [
        binary,
        "--port",
        f"127.0.0.1:{port}",
        "--region",
        "us-east-1",
        "posix",
        "--sidecar",
        str(folder / "sidecar"),
        str(data),
    ]


def _environment() -> dict[str, str]:
    keys = {"MINIO_ROOT_USER": ACCESS_KEY, "MINIO_ROOT_PASSWORD": SECRET_KEY}
    return {**_undirected(), **keys, "ROOT_ACCESS_KEY": ACCESS_KEY, "ROOT_SECRET_KEY": SECRET_KEY}


def _undirected() -> dict[str, str]:
    """Return the environment without proxies, which concern the tests' clients."""
    return {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}


def _await_ready(process: subprocess.Popen[bytes], endpoint: str, certificates: Path | None) -> None:
    """Wait until the server has created a bucket."""
    authority = str(certificates / "ca.pem") if certificates else None
    pool = urllib3.PoolManager(retries=False, timeout=5, ca_certs=authority)
    scheme, _, host = endpoint.partition("://")
    client = minio.Minio(host, ACCESS_KEY, SECRET_KEY, secure=scheme == "https", region="us-east-1", http_client=pool)
    for _ in range(300):
        if process.poll() is not None:
            raise RuntimeError(f"the server at {endpoint} ended with code {process.returncode}")
        with contextlib.suppress(Exception):
            if not client.bucket_exists("tests"):
                client.make_bucket("tests")
            return
        time.sleep(0.1)
    raise RuntimeError(f"the server at {endpoint} does not answer")


_PORTS = (10_000 + (os.getpid() * 1009 + number) % 20_000 for number in itertools.count())
"""Below those that the system gives to others, and in an order that differs between processes of the tests."""


def free_port() -> int:
    """Return a port that is free, and that stays free until it is used, as nobody else is given it."""
    for port in _PORTS:
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("unreachable")
