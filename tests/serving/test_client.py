"""Tests `RemoteModel` and `fedpipe predict URL` with fedpipe's server, and with servers that violate the protocol."""

from __future__ import annotations

import contextlib
import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from fedpipe.cli.main import app
from fedpipe.errors import InputError
from fedpipe.registry.card import Card, Spread
from fedpipe.registry.prediction import open_model, predict
from fedpipe.serving.client import RemoteModel
from fedpipe.store import LocalStore
from tests.served import Served, X, publish, serving, softmax
from tests.store.surroundings import ForwardProxy

CARD = Card(classes=("red", "green", "blue"), spread=Spread(minimum=-3, maximum=3, mean=0.1, deviation=1.1))
MODEL = softmax(card=CARD)


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Starts a server of one model, with a token."""
    folder = tmp_path_factory.mktemp("one")
    publish(LocalStore(folder / "store").below("models"), "colours", 3, MODEL)
    (folder / "token").write_text("open-sesame\n")
    with serving(folder, "--store", f"file://{folder}/store", "--token-file", f"{folder}/token") as server:
        yield server


@pytest.fixture(autouse=True)
def token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDPIPE_TOKEN", "open-sesame")
    monkeypatch.setenv("COLUMNS", "200")


@pytest.mark.parametrize("path", ["", "/", "/v2/models/colours", "/v2/models/colours/versions/3"])
def test_answers_are_those_of_the_file_to_the_last_bit(one: Served, path: str) -> None:
    remote, local = RemoteModel(one.url + path), open_model(MODEL)
    assert (remote.name, remote.inputs, remote.outputs) == ("colours", local.inputs, local.outputs)
    assert (remote.card.classes, remote.card.spread) == (CARD.classes, CARD.spread)
    np.testing.assert_array_equal(predict(remote, X).outputs, predict(local, X).outputs)


def test_through_a_proxy(one: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_PROXY", raising=False)
    with ForwardProxy() as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        predict(RemoteModel(one.url), X)
    assert f"POST {one.url}/v2/models/colours/infer" in proxy.seen
    with ForwardProxy(user="me:right") as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        with pytest.raises(InputError, match="asks for a user and a password"):
            RemoteModel(one.url)


def test_the_command_prints_labels_with_probabilities_for_each_kind_of_file(one: Served, tmp_path: Path) -> None:
    labels = predict(open_model(MODEL), X).classes
    np.savez(tmp_path / "rows.npz", x=X, y=labels)
    np.save(tmp_path / "rows.npy", X)
    np.savetxt(tmp_path / "rows.csv", X, delimiter=",")
    (tmp_path / "model.onnx").write_bytes(MODEL)
    for name in ("rows.npz", "rows.npy", "rows.csv"):
        results = [CliRunner().invoke(app, ["predict", of, str(tmp_path / name)]) for of in
                (one.url, str(tmp_path / "model.onnx"))]  # fmt: skip
        assert results[0].exit_code == 0, results[0].output
        assert results[0].output == results[1].output
        assert any(colour in results[0].output for colour in CARD.classes)
    assert "accuracy 1.0000 over 7 examples" in CliRunner().invoke(
        app, ["predict", one.url, str(tmp_path / "rows.npz")]
    ).output  # fmt: skip


def test_outputs_are_written(one: Served, tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", X)
    found = CliRunner().invoke(app, ["predict", one.url, str(tmp_path / "rows.npy"), "-o", str(tmp_path / "out.npz")])
    assert found.exit_code == 0, found.output
    with np.load(tmp_path / "out.npz") as kept:
        np.testing.assert_array_equal(kept["outputs"], predict(open_model(MODEL), X).outputs)


def test_a_wrong_token_and_data_that_do_not_fit(one: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"not of the shape|features|shape"):
        RemoteModel(one.url).run({"x": X[:, :3]})
    monkeypatch.setenv("FEDPIPE_TOKEN", "closed")
    with pytest.raises(InputError, match="HTTP 401"):
        RemoteModel(one.url)


def test_several_models_are_named(tmp_path: Path) -> None:
    models = LocalStore(tmp_path / "store").below("models")
    for name in ("colours", "shapes"):
        publish(models, name, 1, MODEL)
    with serving(tmp_path, "--store", f"file://{tmp_path}/store") as server:
        with pytest.raises(InputError, match="the server has 2 models: colours, shapes") as caught:
            RemoteModel(server.url)
        assert caught.value.remedy == f"Use {server.url}/v2/models/NAME."
        assert RemoteModel(f"{server.url}/v2/models/shapes").name == "shapes"


METADATA = {
    "name": "m",
    "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}],
    "outputs": [{"name": "p", "datatype": "FP32", "shape": [-1, 3]}],
}


class TestAnotherServer:
    @pytest.mark.parametrize(
        "content",
        [
            b"<html>",
            b"[]",
            b"{}",
            b'{"name": "m", "inputs": 3, "outputs": []}',
            b'{"name": "m", "inputs": [{"name": "x", "datatype": "X", "shape": []}], "outputs": []}',
            json.dumps(METADATA | {"name": 4}).encode(),
            json.dumps(METADATA | {"parameters": {"classes": 4}}).encode(),
            json.dumps(METADATA | {"parameters": [1]}).encode(),
        ],
    )
    def test_instead_of_the_metadata(self, content: bytes) -> None:
        with answering(content) as url, pytest.raises(InputError, match="does not describe a model"):
            RemoteModel(f"{url}/v2/models/m")

    def test_instead_of_the_list(self) -> None:
        with (
            answering(b"404 page not found") as url,
            pytest.raises(InputError, match="does not list its models") as caught,
        ):
            RemoteModel(url)
        assert "/v2/models/NAME" in str(caught.value.remedy)

    @pytest.mark.parametrize(
        ("content", "length"),
        [
            (b"<html>", None),
            (b"{}", None),
            (b'{"outputs": []}', None),
            (b'{"outputs": [{"name": "p", "datatype": "FP32", "shape": [7, 3], "data": [1]}]}', None),
            (b'{"outputs": [{"name": "p", "datatype": "FP32", "shape": [7, 3], "data": ["a"]}]}', None),
            (b'{"outputs": [{"name": "p", "datatype": "??", "shape": [7, 3], "data": [1]}]}', None),
            (b'{"outputs": 1}', None),
            (b'[1]', None),
            (b'{"outputs": [{"name": "p", "datatype": "FP32", "shape": [1], "parameters": 3}]}', None),
            (b'{"outputs": [{"name": "p", "datatype": "FP32", "shape": [1], "parameters": {"binary_data_size": 9}}]}', 3),
            (b'{"outputs": [{"name": "p", "datatype": "FP32", "shape": [1], "parameters": {"binary_data_size": 9}}]}', 93),
            (b'{"outputs": []}', "x"),
        ],
    )  # fmt: skip
    def test_instead_of_the_outputs(self, content: bytes, length: object) -> None:
        headers = {} if length is None else {"Inference-Header-Content-Length": str(length)}
        with answering(json.dumps(METADATA).encode(), content, headers) as url:
            model = RemoteModel(f"{url}/v2/models/m")
            with pytest.raises(InputError, match="violates the protocol"):
                model.run({"x": X})


@contextlib.contextmanager
def answering(get: bytes, post: bytes = b"", headers: dict[str, str] | None = None) -> Iterator[str]:
    """Starts a server on a thread that answers GET and POST with these bytes; yields its URL."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(get, {})

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self._answer(post, headers or {})

        def _answer(self, body: bytes, more: dict[str, str]) -> None:
            self.send_response(200)
            for name, value in {"Content-Length": str(len(body)), **more}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
