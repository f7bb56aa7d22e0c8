"""A server with its default limits under twenty hostile clients: its memory, and how soon it answers health checks."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from tests.served import PATIENTS, Served, patients, publish, serving, softmax

from benchmarks.measure import MIB, Row, at_most
from fedpipe.store import LocalStore

CLIENTS = 20
SECONDS = 20.0
MEMORY = 400
"""Goal, in MiB."""
DELAY = 0.3
"""Goal, in seconds."""


def _tensor(name: str, shape: list[int], datatype: str, **more: object) -> bytes:
    return json.dumps({"name": name, "shape": shape, "datatype": datatype, **more}).encode()


def _body(*tensors: bytes, **more: object) -> bytes:
    rest = json.dumps(more).encode()[1:-1]
    return b'{"inputs":[' + b",".join(tensors) + b"]" + (b"," + rest if rest else b"") + b"}"


def _with_data(tensor: bytes, data: bytes) -> bytes:
    return tensor[:-1] + b',"data":' + data + b"}"


def attacks() -> dict[str, tuple[str, bytes, int, bool]]:
    """Returns attacks by name: the model, the bytes that are sent, zeros that follow, whether the head is binary's."""
    numbers = b"[" + b"0," * (2 * MIB - 101) + b"0]"
    four = _tensor("x", [1, 4], "FP32")
    free, some = _tensor("x", [MIB // 2 - 25, 4], "FP32"), _tensor("x", [MIB // 4, 4], "FP32")
    rows = 4 * MIB - 100
    large = _tensor("x", [rows, 4], "FP32", parameters={"binary_data_size": 16 * rows})
    columns = {"age": ("FP64", b"0", 8), "smoker": ("BOOL", b"true", 1), "sex": ("BYTES", b'"ab"', 4),
               "seen": ("BYTES", b'"2024-01-31"', 4)}  # fmt: skip
    many, fewer = 174_000, 150_000
    cells = [
        _with_data(_tensor(name, [fewer], kind), b"[" + b",".join([value] * fewer) + b"]")
        for name, (kind, value, _) in columns.items()
    ]
    empty = [
        _tensor(name, [many], kind, parameters={"binary_data_size": size * many})
        for name, (kind, _, size) in columns.items()
    ]
    return {
        "60 MiB of JSON for four values": ("m", _body(_with_data(four, b"[" + b"0.5," * (15 * MIB) + b"0]")), 0, False),
        "4 MiB of JSON for four values": ("m", _body(_with_data(four, numbers)), 0, False),
        "4 MiB of JSON for as many values": ("m", _body(_with_data(free, numbers)), 0, False),
        "lists in lists": ("m", _body(_with_data(some, b"[" + b"[]," * (MIB + 1000) + b"[]]")), 0, False),
        "parameters": ("m", _body(four[:-1] + b',"parameters":{"p":[' + b"{}," * (MIB + 1000) + b"{}]}}"), 0, False),
        "many inputs": ("m", _body(*[_tensor(str(k), [1], "FP32") for k in range(60_000)]), 0, False),
        "64 MiB of numbers, answered in JSON": ("m", _body(large), 16 * rows, True),
        "64 MiB of numbers": ("m", _body(large, parameters={"binary_data_output": True}), 16 * rows, True),
        "columns of JSON": ("patients", _body(*cells), 0, False),
        "columns of empty strings": ("patients", _body(*empty), 17 * many, True),
        "more strings than allowed": ("patients", _body(_tensor(
            "sex", [4 * MIB], "BYTES", parameters={"binary_data_size": 16 * MIB})), 16 * MIB, True),
    }  # fmt: skip


def _send(host: tuple[str, int], attack: tuple[str, bytes, int, bool]) -> None:
    model, head, zeros, binary = attack
    with socket.create_connection(host) as client:
        client.settimeout(60)
        lines = [f"POST /v2/models/{model}/infer HTTP/1.1", "Host: x", f"Content-Length: {len(head) + zeros}"]
        if binary:
            lines.append(f"Inference-Header-Content-Length: {len(head)}")
        client.sendall("\r\n".join([*lines, "Connection: close", "", ""]).encode() + head)
        piece = bytes(MIB)
        for start in range(0, zeros, MIB):
            client.sendall(piece[: min(MIB, zeros - start)])
        while client.recv(MIB):
            pass


def peak_of(process: int) -> float:
    """Returns the most memory that a process has had, in MiB."""
    text = Path(f"/proc/{process}/status").read_text()
    return int(text.partition("VmHWM:")[2].split()[0]) / 1024


CHECK = """
import sys, time, urllib3
pool, longest, until = urllib3.PoolManager(), 0.0, time.monotonic() + float(sys.argv[2])
while time.monotonic() < until:
    started = time.perf_counter()
    assert pool.request("GET", sys.argv[1] + "/v2/health/live", timeout=60).status == 200
    longest = max(longest, time.perf_counter() - started)
    time.sleep(0.02)
print(longest)
"""


def attacked(served: Served, chosen: list[tuple[str, bytes, int, bool]], seconds: float, clients: int) -> float:
    """Attacks a server for some seconds and returns the longest time of a health check meanwhile."""
    host, _, port = served.host.partition(":")
    until = time.monotonic() + seconds

    def attack(number: int) -> None:
        turn = number
        while time.monotonic() < until:
            with contextlib.suppress(OSError):
                _send((host, int(port)), chosen[turn % len(chosen)])
            turn += 1

    threads = [threading.Thread(target=attack, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    command = [sys.executable, "-c", CHECK, served.url, str(seconds)]  # a process, which the clients do not slow down
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    for thread in threads:
        thread.join()
    return float(done.stdout)


def measured(
    folder: Path, *, seconds: float = SECONDS, clients: int = CLIENTS
) -> tuple[float, float, dict[str, float]]:
    """Returns the peak memory in MiB, the longest health check in seconds, and the memory after each attack alone."""
    models = LocalStore(folder / "store").below("models")
    publish(models, "m", 1, softmax())
    publish(models, "patients", 1, patients(PATIENTS))
    with serving(folder, "--store", f"file://{folder}/store") as served:
        alone = {}
        for name, attack in attacks().items():
            with contextlib.suppress(OSError):
                _send((served.host.partition(":")[0], int(served.host.partition(":")[2])), attack)
            alone[name] = peak_of(served.process.pid)
        delay = attacked(served, list(attacks().values()), seconds, clients)
        assert served.process.poll() is None
        return peak_of(served.process.pid), delay, alone


def run() -> list[Row]:
    """Runs the attack once."""
    with tempfile.TemporaryDirectory() as folder:
        memory, delay, _ = measured(Path(folder))
    return [
        at_most(f"peak memory under {CLIENTS} hostile clients", memory, MEMORY, "goal", 1, "MiB"),
        at_most(f"longest health check under {CLIENTS} hostile clients", delay, DELAY, "goal", 1),
    ]
