"""Tests a real server process with real clients and real faults."""

from __future__ import annotations

import json
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
import urllib3

from fedpipe.registry.card import Card, Spread
from fedpipe.registry.prediction import open_model
from fedpipe.serving.promotion import promote
from fedpipe.serving.traffic import Split
from fedpipe.store import LocalStore, Store, open_store
from tests import servers
from tests.served import Served, X, constant, every_dtype, publish, serving, slow, softmax

CARD = Card(
    classes=("red", "green", "blue"),
    labels={"0": 30, "1": 50, "2": 20},
    spread=Spread(minimum=-3, maximum=3, mean=0.1, deviation=1.1),
)
EXPECTED = open_model(softmax()).run({"x": X})[0]


def models_of(folder: Path) -> Store:
    return LocalStore(folder).below("models")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Starts a server of three models, with small limits."""
    folder = tmp_path_factory.mktemp("served")
    models = models_of(folder / "store")
    publish(models, "colours", 3, softmax(card=CARD))
    publish(models, "every", 1, every_dtype())
    publish(models, "slow", 1, slow())
    with serving(folder, "--store", f"file://{folder}/store", "--body-limit", "1", "--timeout", "2") as server:
        yield server


class TestProtocol:
    def test_a_client_that_we_did_not_write(self, served: Served) -> None:
        client = triton.InferenceServerClient(served.host)
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("colours")
        assert client.is_model_ready("colours", "3")
        assert not client.is_model_ready("colours", "4")
        assert not client.is_model_ready("absent")
        server = client.get_server_metadata()
        assert (server["name"], server["extensions"]) == ("fedpipe", ["binary_tensor_data"])
        metadata = client.get_model_metadata("colours", "3")
        assert metadata["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}]
        assert metadata["outputs"] == [{"name": "p", "datatype": "FP32", "shape": [-1, 3]}]
        client.close()

    @pytest.mark.parametrize("binary_in", [True, False])
    @pytest.mark.parametrize("binary_out", [True, False])
    def test_its_answers_are_onnxruntimes_to_the_last_bit(
        self, served: Served, binary_in: bool, binary_out: bool
    ) -> None:
        client = triton.InferenceServerClient(served.host)
        tensor = triton.InferInput("x", X.shape, "FP32")
        tensor.set_data_from_numpy(X, binary_data=binary_in)
        wanted = triton.InferRequestedOutput("p", binary_data=binary_out)
        found = client.infer("colours", [tensor], outputs=[wanted], request_id="id-1")
        np.testing.assert_array_equal(found.as_numpy("p"), EXPECTED)
        assert found.get_response()["id"] == "id-1"
        assert found.get_response()["model_version"] == "3"
        client.close()

    def test_every_dtype_comes_back(self, served: Served) -> None:
        client = triton.InferenceServerClient(served.host)
        random = np.random.default_rng(1)
        inputs, given = [], {}
        for spec in client.get_model_metadata("every")["inputs"]:
            dtype = triton.triton_to_np_dtype(spec["datatype"])
            numbers = random.integers(0, 2, (3, 2))
            given[spec["name"]] = array = numbers.astype("S" if spec["datatype"] == "BYTES" else dtype).astype(dtype)
            tensor = triton.InferInput(spec["name"], array.shape, spec["datatype"])
            tensor.set_data_from_numpy(array)
            inputs.append(tensor)
        found = client.infer("every", inputs)
        assert len(given) == 13
        for name, array in given.items():
            np.testing.assert_array_equal(found.as_numpy(f"{name}_out"), array)
        client.close()

    @pytest.mark.parametrize(
        ("method", "path", "status", "message"),
        [
            ("GET", "/v2/models/absent", 404, "model 'absent' is not served; served: colours, every, slow"),
            ("GET", "/v2/models/colours/versions/9", 404, "version '9' of 'colours' is not served; served: 3"),
            ("GET", "/v2/models/colours/versions/x", 404, "version 'x' of 'colours' is not served"),
            ("GET", "/v2/nothing", 404, "the path '/v2/nothing' does not exist"),
            ("GET", "/v2/models/colours/infer", 405, "accepts POST, not GET"),
            ("DELETE", "/v2/models/colours", 405, "accepts GET, not DELETE"),
            ("POST", "/v2/models/colours/infer", 400, "the request is not valid"),
        ],
    )
    def test_errors_are_one_sentence(self, served: Served, method: str, path: str, status: int, message: str) -> None:
        response = urllib3.request(method, f"{served.url}{path}", retries=False)
        assert response.status == status
        assert message in response.json()["error"]
        assert response.headers["content-type"] == "application/json"


class TestLimits:
    def test_a_body_over_the_limit_is_refused_unread(self, served: Served) -> None:
        with socket.create_connection(served.host.split(":")) as client:  # type: ignore[arg-type]
            client.sendall(b"POST /v2/models/colours/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 2000000\r\n\r\n")
            response = client.makefile("rb").read()  # to the end: the server hangs up
        assert response.startswith(b"HTTP/1.1 413 ")
        assert b"the body has 2000000 bytes, but at most 1048576 are allowed" in response

    def test_a_body_that_only_turns_out_to_be_too_large(self, served: Served) -> None:
        response = served.post("/v2/models/colours/infer", body=iter([b"x" * 2**18] * 10))
        assert response.status == 413
        assert "more than the 1048576 bytes" in response.json()["error"]

    def test_a_body_that_does_not_arrive(self, served: Served) -> None:
        with socket.create_connection(served.host.split(":")) as client:  # type: ignore[arg-type]
            client.sendall(b"POST /v2/models/colours/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nx")
            assert b"408" in client.recv(65536)

    def test_content_encodings_are_refused(self, served: Served) -> None:
        response = served.post("/v2/models/colours/infer", body=b"", headers={"Content-Encoding": "gzip"})
        assert response.status == 415

    def test_a_run_that_takes_too_long(self, served: Served) -> None:
        tensor = {"name": "times", "shape": [1], "datatype": "INT64", "data": [10**8]}
        assert served.post("/v2/models/slow/infer", json={"inputs": [tensor]}).status == 504

    def test_invalid_http(self, served: Served) -> None:
        with socket.create_connection(served.host.split(":")) as client:  # type: ignore[arg-type]
            client.sendall(b"\x16\x03\x01 nonsense\r\n\r\n")
            assert b"400 Bad Request" in client.recv(65536)

    def test_thousands_of_half_open_connections_do_not_keep_others_out(self, served: Served) -> None:
        host, port = served.host.split(":")
        idle = []
        for number in range(2000):
            client = socket.create_connection((host, int(port)))
            client.sendall(b"POST /v2/models/colours/infer HTTP/1.1\r\nHost" if number % 2 else b"G")
            idle.append(client)
        assert served.infer("colours").status == 200
        last = select.poll()
        last.register(idle[-1], select.POLLIN)
        assert last.poll(0) == []  # it still has time for its head
        for _ in range(50):
            assert served.infer("colours").status == 200
        idle[0].settimeout(60)
        assert idle[0].recv(1) == b""  # its time for a head is over
        for client in idle:
            client.close()


class TestOperations:
    def test_metrics(self, served: Served) -> None:
        for _ in range(3):
            served.infer("colours")
        served.infer("colours", [[float("1e38")] * 4] * 2)
        served.infer("colours", [[1.0] * 3])
        text = served.get("/metrics").data.decode()
        values = {
            line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in text.splitlines() if line[0] != "#"
        }
        assert values['fedpipe_requests_total{code="200",model="colours",version="3"}'] >= 4
        assert values['fedpipe_requests_total{code="400",model="colours",version="3"}'] >= 1
        assert values['fedpipe_model_version{model="colours",role="primary"}'] == 3
        assert values['fedpipe_request_seconds_count{model="colours"}'] >= 5
        assert values['fedpipe_batch_examples_sum{model="colours"}'] >= 3 * len(X)
        assert values["fedpipe_ready"] == 1
        assert values['fedpipe_training_label_share{label="green",model="colours",version="3"}'] == 0.5
        assert values['fedpipe_training_input_mean{model="colours",version="3"}'] == 0.1
        predicted = {
            c: values.get(f'fedpipe_predictions_total{{label="{c}",model="colours",version="3"}}', 0)
            for c in CARD.classes
        }
        assert sum(predicted.values()) >= 3 * len(X)

    def test_drift_of_the_input_is_measured(self, tmp_path: Path) -> None:
        publish(models_of(tmp_path / "store"), "m", 1, softmax(card=CARD))
        with serving(tmp_path, "--store", f"file://{tmp_path}/store") as server:
            x = np.random.default_rng(3).normal(5, 2, size=(4000, 4)).astype(np.float32)
            assert server.infer("m", x).status == 200
            text = server.get("/metrics").data.decode()
        found = {
            name: float(value) for name, value in re.findall(r"^fedpipe_input_(mean|deviation)\{.*\} (.*)$", text, re.M)
        }
        assert found["mean"] == pytest.approx(x.mean(), rel=1e-5)
        assert found["deviation"] == pytest.approx(x.std(), rel=1e-4)

    def test_each_request_is_a_line_of_json(self, served: Served) -> None:
        served.get('/v2/models/colours?"quoted"')
        served.infer("colours")

        def logged() -> list[dict[str, Any]]:
            return [json.loads(line) for line in (served.folder / "stdout").read_text().splitlines()]

        end = time.monotonic() + 60  # a line is written once the answer is sent
        while not (lines := logged()) or not lines[-1]["path"].endswith("/infer"):
            assert time.monotonic() < end
            time.sleep(0.01)
        assert lines[-1]["path"] == "/v2/models/colours/infer"
        assert (lines[-1]["status"], lines[-1]["model"], lines[-1]["version"]) == (200, "colours", "3")
        assert lines[-1]["seconds"] > 0

    def test_a_token_is_needed_where_there_is_one(self, tmp_path: Path) -> None:
        publish(models_of(tmp_path / "store"), "m", 1, softmax())
        (tmp_path / "token").write_text("s3cret\n")
        arguments = ("--store", f"file://{tmp_path}/store", "--token-file", str(tmp_path / "token"))
        with serving(tmp_path, *arguments) as server:
            assert server.get("/v2/health/live").status == 200
            assert server.get("/").status == 200
            for path in ("/v2/models/m", "/metrics", "/models", "/v2"):
                refused = server.get(path)
                assert refused.status == 401
                assert refused.headers["www-authenticate"] == "Bearer"
                assert server.get(path, headers={"Authorization": "Bearer wrong"}).status == 401
                assert server.get(path, headers={"Authorization": "Bearer s3cret"}).status == 200
            assert server.infer("m").status == 401
            assert server.infer("m", headers={"Authorization": "Bearer s3cret"}).status == 200
        assert "s3cret" not in server.log + (tmp_path / "stdout").read_text()

    def test_the_last_requests_finish_after_sigterm(self, tmp_path: Path) -> None:
        publish(models_of(tmp_path / "store"), "slow", 1, slow())
        with serving(tmp_path, "--store", f"file://{tmp_path}/store", "--drain", "600") as server:
            tensor = {"name": "times", "shape": [1], "datatype": "INT64", "data": [3000]}
            answers: list[Any] = []
            asking = threading.Thread(
                target=lambda: answers.append(server.post("/v2/models/slow/infer", json={"inputs": [tensor]}))
            )
            asking.start()
            running = b'fedpipe_batch_examples_count{model="slow"} 1.0'
            server.wait_until(lambda: running in server.get("/metrics").data)
            server.process.send_signal(signal.SIGTERM)
            server.wait_until(lambda: server.get("/v2/health/ready").status == 503)
            assert server.get("/v2/health/ready").json()["error"] == "the server is shutting down"
            assert server.get("/v2/models/slow").status == 200  # requests are still taken
            server.process.send_signal(signal.SIGTERM)  # once more ends that
            assert server.process.wait(60) == 0
            asking.join(60)
            assert answers[0].status == 200

    def test_requests_are_run_together_when_asked(self, tmp_path: Path) -> None:
        publish(models_of(tmp_path / "store"), "m", 1, softmax())
        arguments = ("--batch", "7", "--batch-delay", "10000", "--drain", "0.1")
        with serving(tmp_path, "--store", f"file://{tmp_path}/store", *arguments) as server:
            found: dict[int, Any] = {}
            threads = [
                threading.Thread(target=lambda k=k: found.update({k: server.infer("m", X[k : k + 1])}))
                for k in range(7)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            for k, response in found.items():
                np.testing.assert_allclose(response.json()["outputs"][0]["data"], EXPECTED[k], rtol=1e-5)
            text = server.get("/metrics").data.decode()
            server.process.send_signal(signal.SIGTERM)
            assert server.process.wait(60) == 0
        runs = float(re.findall(r"^fedpipe_batch_examples_count\{.*\} (.*)$", text, re.M)[0])
        assert runs == 1


class TestFollowing:
    def test_new_versions_take_over_without_a_failed_request(self, tmp_path: Path) -> None:
        """Sends requests all the time while versions are published, one of them broken, and rolled back."""
        models = models_of(tmp_path / "store")
        publish(models, "m", 1, constant(1))
        with serving(tmp_path, "--store", f"file://{tmp_path}/store") as server:
            seen, wrong, ended = set(), [], threading.Event()

            def ask() -> None:
                pool = urllib3.PoolManager()
                tensor = {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}
                while not ended.wait(0.002):
                    response = pool.request("POST", f"{server.url}/v2/models/m/infer", json={"inputs": [tensor]})
                    answer = response.json()
                    if response.status != 200 or answer["outputs"][0]["data"] != [float(answer["model_version"])]:
                        wrong.append(answer)
                    seen.add(answer.get("model_version"))

            asking = threading.Thread(target=ask)
            asking.start()
            try:
                for version in (2, 3, 5):
                    publish(models, "m", version, constant(version))
                    server.wait_for("m", version)
                    if version == 3:
                        publish(models, "m", 4, b"broken")
                        server.wait_until(lambda: server.get("/v2/health/ready").json()["degraded"])
                promote(models, "m", Split(kind="pinned", version=2))
                server.wait_for("m", 2)
            finally:
                time.sleep(0.3)
                ended.set()
                asking.join()
            assert wrong == []
            assert seen == {"1", "2", "3", "5"}
            ready = server.get("/v2/health/ready").json()
            assert ready["degraded"]
            assert "m version 4: is not an ONNX model" in ready["why"][0]
            text = server.get("/metrics").data.decode()
            assert 'fedpipe_load_failures_total{model="m",version="4"} 1.0' in text
            assert 'fedpipe_model_version{model="m",role="primary"} 2.0' in text

    def test_promotion_from_the_command_line(self, tmp_path: Path) -> None:
        models = models_of(tmp_path / "store")
        for version in (1, 2):
            publish(models, "m", version, constant(version))

        def promoted(*arguments: str) -> subprocess.CompletedProcess[str]:
            command = [
                sys.executable,
                "-m",
                "fedpipe",
                "promote",
                "m",
                *arguments,
                "--store",
                f"file://{tmp_path}/store",
            ]
            return subprocess.run(command, capture_output=True, text=True, check=False)

        with serving(tmp_path, "--store", f"file://{tmp_path}/store") as server:
            server.wait_for("m", 2)
            assert promoted("1").stdout == "m: version 1 from now on\n"
            server.wait_for("m", 1)
            output = promoted("2", "--canary", "0.25").stdout
            assert output == "m: version 2 for 25.0% of the requests, version 1 for the others from now on\n"
            server.wait_until(lambda: server.get("/v2/models/m").json()["versions"] == ["1", "2"])
            answers = [server.infer("m", X[:1]).json()["model_version"] for _ in range(40)]
            assert answers.count("2") == 10
            assert promoted("--latest").returncode == 0
            server.wait_for("m", 2)
        wrong = promoted("7")
        assert wrong.returncode == 2
        assert "has no version 7. Choose one of: 1, 2" in wrong.stderr

    def test_killed_in_the_middle_of_a_switch_it_comes_up_again(self, tmp_path: Path) -> None:
        models = models_of(tmp_path / "store")
        publish(models, "m", 1, constant(1))
        with serving(tmp_path / "first", "--store", f"file://{tmp_path}/store") as server:
            publish(models, "m", 2, constant(2))
            time.sleep(0.3)
            server.process.kill()
            server.process.wait()
        with serving(tmp_path / "second", "--store", f"file://{tmp_path}/store") as server:
            server.wait_for("m", 2)


@pytest.mark.heavy
class TestStores:
    def test_a_store_that_is_unreachable_at_the_start_and_while_it_serves(self, tmp_path: Path, s3_keys: None) -> None:
        port = servers.free_port()
        uri = f"s3://tests/prod/tiny?endpoint=http://127.0.0.1:{port}"
        arguments = ("--store", uri, "--cache", str(tmp_path / "cache"))
        with serving(tmp_path / "first", *arguments, ready=False) as server:  # the store does not run yet
            server.wait_until(lambda: "cannot be reached" in server.get("/v2/health/ready").json().get("error", ""))
            assert server.get("/v2/health/ready").status == 503
            with servers.running("minio", tmp_path / "minio", port):
                publish(open_store(uri).below("models"), "m", 1, constant(1))
                server.wait_for("m", 1)
        with serving(tmp_path / "lost", *arguments) as server:  # from the copy
            assert server.infer("m", X[:1]).json()["model_version"] == "1"
            state = server.get("/v2/health/ready").json()
            assert state["ready"]
            assert state["degraded"]
            assert "cannot be reached" in state["why"][0]
            with servers.running("minio", tmp_path / "minio", port):
                publish(open_store(uri).below("models"), "m", 2, constant(2))
                server.wait_for("m", 2)
                server.wait_until(lambda: not server.get("/v2/health/ready").json()["degraded"])
            assert server.infer("m", X[:1]).json()["model_version"] == "2"
        shutil.rmtree(tmp_path / "cache")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "models come from exactly one location. Pass a federation file with -f, --store URI or --models DIR."),
        (["--models", "absent"], "absent: there is no such folder"),
        (["--models", ".", "--host", "no.such.host.invalid"], "the address is not available"),
        (["--models", ".", "--token-file", "absent"], "absent: the token cannot be read"),
        (["--store", "ftp://x"], "the store 'ftp://x' has an unknown scheme"),
    ],
)
def test_mistakes_in_the_command(arguments: list[str], message: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "fedpipe", "serve", "--port", "0", *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_port_that_is_taken(served: Served, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "fedpipe", "serve", "--models", str(tmp_path), "--port", served.host.split(":")[1]]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "the address is not available: Address already in use" in done.stderr
