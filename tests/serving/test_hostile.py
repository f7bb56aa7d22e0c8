"""Hostile clients of a server with its default limits: what they send is refused early, and memory has a bound."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from pathlib import Path

import numpy as np
import pytest
from benchmarks import hostile

from fedpipe.store import LocalStore
from tests.served import Served, patients, publish, serving, softmax

pytestmark = [pytest.mark.heavy]


@pytest.fixture
def served(tmp_path: Path) -> object:
    models = LocalStore(tmp_path / "store").below("models")
    publish(models, "m", 1, softmax())
    publish(models, "patients", 1, patients())
    with serving(tmp_path, "--store", f"file://{tmp_path}/store") as server:
        yield server


def test_memory_and_health_under_twenty_clients(served: Served) -> None:
    """The delay is a figure of `benchmarks/hostile.py`; here other tests use the same cores, so a slow moment may pass."""
    for _ in range(5):
        delay = hostile.attacked(served, list(hostile.attacks().values()), 6, hostile.CLIENTS)
        assert hostile.peak_of(served.process.pid) < hostile.MEMORY
        if delay < 10 * hostile.DELAY:
            break
    assert delay < 10 * hostile.DELAY
    assert served.infer("m").status == 200


@pytest.mark.parametrize(
    ("name", "status", "message"),
    [
        ("60 MiB of JSON for four values", 413, "at most 4194304 are read"),
        ("4 MiB of JSON for four values", 400, "too many for its shape [1, 4]"),
        ("lists in lists", 400, "brackets and commas do not make the shape|neither flat|too few|is not FP32"),
        ("more strings than allowed", 413, "is missing|strings|columns"),
        ("64 MiB of numbers, answered in JSON", 413, "values, but at most 1048576 are sent as JSON"),
    ],
)
def test_each_attack(served: Served, name: str, status: int, message: str) -> None:
    model, head, zeros, binary = hostile.attacks()[name]
    headers = {"Inference-Header-Content-Length": str(len(head))} if binary else {}
    before = hostile.peak_of(served.process.pid)
    with contextlib.suppress(OSError):  # the server hangs up before it has read everything
        answer = served.post(f"/v2/models/{model}/infer", body=head + bytes(zeros), headers=headers)
        assert answer.status in (status, 400)
        assert any(part in answer.json()["error"] for part in message.split("|"))
    assert hostile.peak_of(served.process.pid) - before < 160


def test_a_client_that_never_takes_its_answer(served: Served) -> None:
    """Its answer counts as memory until it is sent, and others are served meanwhile."""
    model, head, zeros, _ = hostile.attacks()["64 MiB of numbers"]
    host, _, port = served.host.partition(":")
    with contextlib.ExitStack() as stack:
        for _ in range(4):
            client = stack.enter_context(socket.create_connection((host, int(port))))
            client.settimeout(20)
            lines = [f"POST /v2/models/{model}/infer HTTP/1.1", "Host: x", f"Content-Length: {len(head) + zeros}",
                     f"Inference-Header-Content-Length: {len(head)}", "", ""]  # fmt: skip
            with contextlib.suppress(OSError):
                client.sendall("\r\n".join(lines).encode() + head + bytes(zeros))
        time.sleep(2)
        assert served.infer("m").status == 200
        assert hostile.peak_of(served.process.pid) < hostile.MEMORY


def test_a_large_answer_arrives_whole(served: Served) -> None:
    x = np.random.default_rng(0).normal(size=(100_000, 4)).astype(np.float32)
    head = json.dumps({
        "inputs": [{"name": "x", "shape": x.shape, "datatype": "FP32", "parameters": {"binary_data_size": x.nbytes}}],
        "parameters": {"binary_data_output": True},
    }).encode()  # fmt: skip
    answer = served.post(
        "/v2/models/m/infer", body=head + x.tobytes(), headers={"Inference-Header-Content-Length": str(len(head))}
    )
    length = int(answer.headers["Inference-Header-Content-Length"])
    found = np.frombuffer(answer.data[length:], np.float32).reshape(-1, 3)
    one = served.infer("m", x[77_777:77_779]).json()["outputs"][0]["data"]
    assert len(found) == len(x)
    np.testing.assert_allclose(found[77_777:77_779].ravel(), one, rtol=1e-5)
