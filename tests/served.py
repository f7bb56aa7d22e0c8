"""Builds models by hand, publishes them like an export, and starts real servers of them."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import urllib3
from onnx import TensorProto, helper, numpy_helper

from fedpipe.data.schema import Column
from fedpipe.registry.card import CARD_KEY, Card, write_card
from fedpipe.registry.publication import Origin
from fedpipe.store import Store
from fedpipe.store.objects import digest_of, encode

X = np.random.default_rng(0).normal(size=(7, 4)).astype(np.float32)


def onnx_model(graph: Any, card: Card | None = None) -> bytes:
    """Returns a graph as the bytes of a model."""
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    if card:
        model.metadata_props.add(key=CARD_KEY, value=write_card(card))
    return bytes(model.SerializeToString())


def softmax(seed: int = 0, *, card: Card | None = None) -> bytes:
    """Returns the model softmax(x W): four features, three classes."""
    weights = np.random.default_rng(seed).normal(size=(4, 3)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["z"]), helper.make_node("Softmax", ["z"], ["p"], axis=1)],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("p", TensorProto.FLOAT, ["batch", 3])],
        [numpy_helper.from_array(weights, "w")],
    )
    return onnx_model(graph, card)


def constant(value: float) -> bytes:
    """Returns a model that answers `value` for every example of four features, to show which version answered."""
    graph = helper.make_graph(
        [
            helper.make_node("ReduceMean", ["x"], ["m"], axes=[1], keepdims=1),
            helper.make_node("Mul", ["m", "zero"], ["n"]),
            helper.make_node("Add", ["n", "value"], ["y"]),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 1])],
        [numpy_helper.from_array(np.float32([0]), "zero"), numpy_helper.from_array(np.float32([value]), "value")],
    )
    return onnx_model(graph)


PATIENTS = Card(
    classes=("healthy", "ill"),
    columns=(
        Column(name="age", kind="number"),
        Column(name="smoker", kind="boolean", missing=True),
        Column(name="sex", kind="category", categories=("f", "m"), missing=True),
        Column(name="seen", kind="date", missing=True),
    ),
    label="diagnosis",
)  # fmt: skip


def patients(card: Card = PATIENTS) -> bytes:
    """Returns a model for a table: sigmoid(age - 50 + 2 smoker + 4 (sex is m) + seen), where a missing value is 0."""
    constants = {
        "w": np.float32([[1], [2], [1]]),
        "b": np.float32([-50]),
        "zero": np.float32([0]),
        "four": np.float32([4]),
    }
    nodes = [
        helper.make_node("IsNaN", ["numbers"], ["unknown"]),
        helper.make_node("Where", ["unknown", "zero", "numbers"], ["filled"]),
        helper.make_node("MatMul", ["filled", "w"], ["linear"]),
        helper.make_node("LabelEncoder", ["categories"], ["male"], domain="ai.onnx.ml", keys_strings=["m"],
                         values_floats=[1.0], default_float=0.0),
        helper.make_node("Mul", ["male", "four"], ["extra"]),
        helper.make_node("Sum", ["linear", "extra", "b"], ["z"]),
        helper.make_node("Sigmoid", ["z"], ["ill"]),
    ]  # fmt: skip
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info("numbers", TensorProto.FLOAT, ["batch", 3]),
         helper.make_tensor_value_info("categories", TensorProto.STRING, ["batch", 1])],
        [helper.make_tensor_value_info("ill", TensorProto.FLOAT, ["batch", 1])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )  # fmt: skip
    return onnx_model(graph, card)


def every_dtype() -> bytes:
    """Returns a model with an input and an equal output of each dtype."""
    kinds = (
        "BOOL",
        "INT8",
        "INT16",
        "INT32",
        "INT64",
        "UINT8",
        "UINT16",
        "UINT32",
        "UINT64",
        "FLOAT16",
        "FLOAT",
        "DOUBLE",
        "STRING",
    )
    tensors = [(kind.lower(), getattr(TensorProto, kind)) for kind in kinds]
    graph = helper.make_graph(
        [helper.make_node("Identity", [name], [f"{name}_out"]) for name, _ in tensors],
        "g",
        [helper.make_tensor_value_info(name, kind, ["batch", 2]) for name, kind in tensors],
        [helper.make_tensor_value_info(f"{name}_out", kind, ["batch", 2]) for name, kind in tensors],
    )
    return onnx_model(graph)


def slow(datatype: int = TensorProto.INT64) -> bytes:
    """Returns a model that takes seconds for large inputs: a loop of as many matrix products as the input."""
    body = helper.make_graph(
        [
            helper.make_node("MatMul", ["a_in", "a_in"], ["product"]),
            helper.make_node("Mul", ["product", "scale"], ["a_out"]),
            helper.make_node("Identity", ["go_in"], ["go_out"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go_in", TensorProto.BOOL, []),
            helper.make_tensor_value_info("a_in", TensorProto.FLOAT, [256, 256]),
        ],
        [
            helper.make_tensor_value_info("go_out", TensorProto.BOOL, []),
            helper.make_tensor_value_info("a_out", TensorProto.FLOAT, [256, 256]),
        ],
    )
    graph = helper.make_graph(
        [
            helper.make_node("Squeeze", ["times"], ["number"]),
            helper.make_node("Cast", ["number"], ["count"], to=TensorProto.INT64),
            helper.make_node("Loop", ["count", "go", "matrix"], ["final"], body=body),
            helper.make_node("ReduceMean", ["final"], ["mean"], keepdims=0),
            helper.make_node("Unsqueeze", ["mean", "axis"], ["y"]),
        ],
        "g",
        [helper.make_tensor_value_info("times", datatype, [1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
        [
            numpy_helper.from_array(np.bool_(True), "go"),
            numpy_helper.from_array(np.eye(256, dtype=np.float32), "matrix"),
            numpy_helper.from_array(np.float32(1), "scale"),
            numpy_helper.from_array(np.int64([0]), "axis"),
        ],
    )
    return onnx_model(graph)


def publish(models: Store, name: str, version: int, data: bytes) -> None:
    """Publishes a model like `registry.export.publish`: the origin first, the model last."""
    origin = Origin(
        federation="tiny", run="run-1", weights=digest_of(b""), digest=digest_of(data), opset=17, samples="random",
        compared=1, max_abs_difference=0.0,
    )  # fmt: skip
    models.create(f"{name}/{version}/origin.json", encode(origin))
    models.create(f"{name}/{version}/model.onnx", data)


class Served(NamedTuple):
    """Controls a server process."""

    process: subprocess.Popen[bytes]
    url: str
    folder: Path

    @property
    def host(self) -> str:
        """Returns `host:port`."""
        return self.url.removeprefix("http://")

    def get(self, path: str, **more: Any) -> Any:
        """Returns the response to a GET request."""
        return urllib3.request("GET", f"{self.url}{path}", retries=False, timeout=20, **more)

    def post(self, path: str, **more: Any) -> Any:
        """Returns the response to a POST request."""
        return urllib3.request("POST", f"{self.url}{path}", retries=False, timeout=60, **more)

    def infer(self, name: str, x: Any = X, **more: Any) -> Any:
        """Returns the response to an inference in JSON."""
        tensor = {"name": "x", "shape": list(np.shape(x)), "datatype": "FP32", "data": np.ravel(x).tolist()}
        return self.post(f"/v2/models/{name}/infer", json={"inputs": [tensor]}, **more)

    @property
    def log(self) -> str:
        """Returns its standard error."""
        return (self.folder / "stderr").read_text()

    def wait_until(self, happened: Callable[[], bool], seconds: float = 60) -> None:
        """Waits until a condition holds; fails with the server's log."""
        end = time.monotonic() + seconds
        while not happened():
            assert time.monotonic() < end, self.log
            time.sleep(0.05)

    def wait_for(self, name: str, version: int) -> None:
        """Waits until this version answers."""
        self.wait_until(lambda: self.get(f"/v2/models/{name}").data.startswith(_start_of_metadata(name, version)))


def _start_of_metadata(name: str, version: int) -> bytes:
    return f'{{"name":"{name}","versions":["{version}"]'.encode()


@contextlib.contextmanager
def serving(folder: Path, *arguments: str, ready: bool = True, **environment: str) -> Iterator[Served]:
    """Starts a real server on a free port; its output goes to files in the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "fedpipe", "serve", "--port", "0", "--poll", "0.1", *arguments]
    with (folder / "stdout").open("wb") as out, (folder / "stderr").open("wb") as err:
        process = subprocess.Popen(command, stdout=out, stderr=err, env={**os.environ, **environment})
    try:
        served = Served(process, _address(process, folder), folder)
        if ready:
            served.wait_until(lambda: served.get("/v2/health/ready").status == 200)
        yield served
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise


def _address(process: subprocess.Popen[bytes], folder: Path) -> str:
    end = time.monotonic() + 60
    while True:
        text = (folder / "stderr").read_text()
        if found := re.search(r"serving at (http://\S+)", text):
            return found[1]
        assert process.poll() is None, text
        assert time.monotonic() < end, text
        time.sleep(0.02)
