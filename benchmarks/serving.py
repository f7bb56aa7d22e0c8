"""A served model over HTTP compared with onnxruntime alone: latency, throughput, switches of versions, memory over reloads.

The load comes from wrk (Debian's package), on the same cores.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import urllib3
from tests.served import constant, publish, serving

from benchmarks.measure import Row, at_least, at_most, median

SECONDS = 5
WIDE = ("--sessions", str(os.cpu_count()), "--threads", "1")
"""For the most requests a second, where the default is for the soonest answer."""
REPEATS = 3
MANY = 256
"""Examples of a request of a client that has many."""
RAW = """
import sys, threading, time
import numpy as np
from fedpipe.registry.prediction import open_model
path, way, seconds, rows = sys.argv[1], sys.argv[2], float(sys.argv[3]), int(sys.argv[4])
threads = 1 if way == "side by side" else 0
model = open_model(open(path, "rb").read(), threads=threads)
spec = model.inputs[0]
feed = {spec.name: np.random.default_rng(0).random((rows, *spec.shape[1:]), np.float32)}
for _ in range(5): model.run(feed)
times = []
def work():
    end = time.perf_counter() + seconds
    while (started := time.perf_counter()) < end:
        model.run(feed)
        times.append(time.perf_counter() - started)
workers = [threading.Thread(target=work) for _ in range(2 if way == "side by side" else 1)]
for w in workers: w.start()
for w in workers: w.join()
print(sorted(times)[len(times) // 2], len(times) / seconds)
"""
CONVERT = """
import sys
import keras
from fedpipe.learners.keras.model import KerasModel
from fedpipe.store.objects import digest_of
code = sys.argv[1].encode()
model = KerasModel(code, digest_of(code), "build")
open(sys.argv[2], "wb").write(model.convert(model.weights(), 17))
"""
RESNET = """
import keras
def build():
    model = keras.applications.ResNet50(weights=None)
    model.compile("sgd", "categorical_crossentropy")
    return model
"""


def converted(code: str, path: Path) -> Path:
    """The Keras model of this code as an ONNX file."""
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"}
    subprocess.run([sys.executable, "-c", CONVERT, code, str(path)], check=True, capture_output=True, env=environment)
    return path


def raw(model: Path, way: str, rows: int = 1) -> tuple[float, float]:
    """Seconds of the median run of so many examples, and runs a second."""
    command = [sys.executable, "-c", RAW, str(model), way, str(SECONDS), str(rows)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    first, second = done.stdout.split()
    return float(first), float(second)


def script(folder: Path, name: str, shape: list[int], rows: int = 1) -> Path:
    """A request of so many examples in binary, as wrk sends it."""
    x = np.random.default_rng(0).random((rows, *shape), np.float32)
    tensor = {"name": name, "shape": list(x.shape), "datatype": "FP32", "parameters": {"binary_data_size": x.nbytes}}
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    body = folder / f"body-{rows}"
    body.write_bytes(head + x.tobytes())
    lua = folder / f"request-{rows}.lua"
    lua.write_text(
        f'local file = io.open("{body}", "rb")\nwrk.method = "POST"\nwrk.body = file:read("*a")\n'
        f'wrk.headers["Inference-Header-Content-Length"] = "{len(head)}"\n'
    )
    return lua


def load(url: str, lua: Path, connections: int) -> tuple[float, float, float]:
    """Median and 99th percentile of the latency in seconds, and requests a second."""
    command = ["wrk", "-t1", f"-c{connections}", f"-d{SECONDS}s", "--latency", "--timeout", "30s", "-s", str(lua), url]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    if wrong := re.search(r"(Non-2xx or 3xx responses|Socket errors).*", output):
        raise RuntimeError(wrong[0])
    units = {"us": 1e-6, "ms": 1e-3, "s": 1.0}

    def percentile(name: str) -> float:
        found = re.search(rf"{name}%\s+([\d.]+)(us|ms|s)", output)
        assert found, output
        return float(found[1]) * units[found[2]]

    rate = re.search(r"Requests/sec:\s+([\d.]+)", output)
    assert rate, output
    return percentile("50"), percentile("99"), float(rate[1])


@contextlib.contextmanager
def server_of(folder: Path, *options: str) -> Iterator[str]:
    """A server that has answered once."""
    with serving(folder, "--models", str(folder / "models"), "--no-access-log", *options) as server:
        yield server.url


def beside(label: str, model: Path, folder: Path, *, is_small: bool) -> list[Row]:
    """A model behind HTTP and in onnxruntime alone."""
    from fedpipe.registry.prediction import open_model

    spec = open_model(model).inputs[0]
    shape = [size or 1 for size in spec.shape[1:]]
    lua = script(folder, spec.name, shape)
    (folder / "models" / label / "1").mkdir(parents=True)
    shutil.copy(model, folder / "models" / label / "1" / "model.onnx")
    found, wide = [], []
    for _ in range(REPEATS):
        alone = [raw(model, way) for way in ("one by one", "side by side")]
        with server_of(folder) as url:
            one = load(f"{url}/v2/models/{label}/infer", lua, 1)
        with server_of(folder, *WIDE) as url:
            found.append((alone, one, load(f"{url}/v2/models/{label}/infer", lua, 8)))
            if is_small:
                many = script(folder, spec.name, shape, MANY)
                wide.append((load(f"{url}/v2/models/{label}/infer", many, 8)[2], raw(model, "side by side", MANY)[1]))
    alone = median([one[0][0][0] for one in found])
    p50, p99 = (median([one[1][k] for one in found]) for k in (0, 1))
    rate, most = median([one[2][2] for one in found]), median([max(a[1] for a in one[0]) for one in found])
    print(f"{label}: p50 {p50 * 1e3:.3f} ms, p99 {p99 * 1e3:.3f} ms; alone {alone * 1e3:.3f} ms", file=sys.stderr)
    latency = at_most(
        f"{label} over HTTP, p50 (p99 {p99 * 1e3:.2f} ms)", p50 * 1e3, alone * 1e3 + 1, "raw + 1 ms", 1.0, "ms"
    )
    what, peer = f"{label} at saturation, {' '.join(WIDE)}", "onnxruntime alone"
    rows = [
        latency if is_small else latency._replace(goal="stated", reached=True),
        at_least(what, rate, most, peer, 0.9, "requests/s"),
    ]
    if is_small:
        rate, most = (median([one[k] for one in wide]) for k in (0, 1))
        rows.append(at_least(f"the same, {MANY} examples a request", rate, most, peer, 0.9, "requests/s"))
    return rows


def asked(pool: urllib3.PoolManager, url: str) -> tuple[int, str]:
    """One request of a client in Python."""
    tensor = {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}
    response = pool.request("POST", url, json={"inputs": [tensor]})
    answer = response.json()
    right = response.status == 200 and answer["outputs"][0]["data"] == [float(answer["model_version"])]
    return (0 if right else 1), answer.get("model_version", "")


def switches(folder: Path) -> Row:
    """50 000 requests across 20 versions and a rollback: how many were answered wrongly or not at all."""
    from fedpipe.serving.promotion import promote
    from fedpipe.serving.traffic import Split
    from fedpipe.store import LocalStore

    models = LocalStore(folder / "store").below("models")
    publish(models, "m", 1, constant(1))
    lua = folder / "request.lua"
    tensor = {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}
    lua.write_text(f'wrk.method = "POST"\nwrk.body = [[{json.dumps({"inputs": [tensor]})}]]\n')
    with serving(folder, "--store", f"file://{folder}/store", "--no-access-log") as server:
        url = f"{server.url}/v2/models/m/infer"
        pool = urllib3.PoolManager()
        requests, errors, seconds = 0, 0, 60
        command = ["wrk", "-t1", "-c4", f"-d{seconds}s", "-s", str(lua), url]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as wrk:
            seen = set()
            for version in range(2, 22):
                publish(models, "m", version, constant(version))
                while asked(pool, url)[1] != str(version):
                    time.sleep(0.05)
                wrong, answered = asked(pool, url)
                errors += wrong
                seen.add(answered)
            promote(models, "m", Split(kind="pinned", version=1))
            server.wait_for("m", 1)
            errors += asked(pool, url)[0]
            output = wrk.communicate()[0]
        requests = int(re.findall(r"(\d+) requests in", output)[0])
        errors += sum(map(int, re.findall(r"Non-2xx or 3xx responses: (\d+)", output)))
        errors += sum(sum(map(int, re.findall(r"\d+", line))) for line in re.findall(r"Socket errors.*", output))
    assert requests >= 50_000, output
    assert len(seen) == 20
    what = f"errors in {requests} requests over 20 versions and a rollback"
    return Row(what, str(errors), "goal 0", float(errors), "<= 0", errors == 0)


def memory_of(process: int) -> float:
    """Resident memory in MiB."""
    return int(re.findall(r"VmRSS:\s+(\d+)", Path(f"/proc/{process}/status").read_text())[0]) / 1024


def reloads(folder: Path) -> Row:
    """Resident memory after 100 further reloads of a model of 4 MB, and that after the first ten."""
    from fedpipe.store import LocalStore

    models = LocalStore(folder / "store").below("models")
    with serving(folder, "--store", f"file://{folder}/store", "--no-access-log", ready=False) as server:
        sizes: list[float] = []
        for version in range(1, 112):
            publish(models, "m", version, large(version))
            server.wait_for("m", version)
            sizes.append(memory_of(server.process.pid))
    return at_most("memory after 100 reloads", median(sizes[-5:]), median(sizes[6:11]), "after 10", 1.05, "MiB")


def large(seed: int) -> bytes:
    """A million weights."""
    from onnx import TensorProto, helper, numpy_helper
    from tests.served import onnx_model

    weights = np.random.default_rng(seed).normal(size=(1000, 1000)).astype(np.float32)
    value: Callable[..., Any] = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [value("x", TensorProto.FLOAT, ["n", 1000])],
        [value("y", TensorProto.FLOAT, ["n", 1000])],
        [numpy_helper.from_array(weights, "w")],
    )
    return onnx_model(graph)


def run() -> list[Row]:
    """Measure all figures."""
    if shutil.which("wrk") is None:
        raise SystemExit("the load comes from wrk: apt-get install wrk")
    digits = (resources.files("fedpipe") / "templates" / "model.py").read_text()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for label, code, is_small in (("digits", digits, True), ("resnet50", RESNET, False)):
            (folder / label).mkdir()
            rows += beside(label, converted(code, folder / f"{label}.onnx"), folder / label, is_small=is_small)
        return [*rows, switches(folder / "switches"), reloads(folder / "reloads")]
