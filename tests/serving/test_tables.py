"""Tests a model for tables behind a real server: columns by name, strings, batches, metrics, and `fedpipe predict`."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
from typer.testing import CliRunner

from fedpipe.cli.main import app
from fedpipe.commands.predict import predict_file
from fedpipe.registry.prediction import open_model, predict
from fedpipe.serving.client import RemoteModel
from fedpipe.store import LocalStore
from tests.served import PATIENTS, Served, patients, publish, serving

RAW = "sex,diagnosis,seen,age,smoker\nm,ill,1970-01-01,49,yes\n,healthy,,49,\nx,ill,,53,0\n"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Starts a server that runs requests together."""
    folder = tmp_path_factory.mktemp("table")
    publish(LocalStore(folder / "store").below("models"), "patients", 1, patients())
    (folder / "model.onnx").write_bytes(patients())
    with serving(folder, "--store", f"file://{folder}/store", "--batch", "8", "--batch-delay", "30") as server:
        yield server


def ask(server: Served, **columns: Any) -> Any:
    inputs = [
        {"name": name, "datatype": kind, "shape": [len(data)], "data": data} for name, (kind, data) in columns.items()
    ]
    return server.post("/v2/models/patients/infer", json={"inputs": inputs})


def test_the_metadata_describe_the_columns(server: Served) -> None:
    found = server.get("/v2/models/patients").json()
    assert found["inputs"][1] == {"name": "categories", "datatype": "BYTES", "shape": [-1, 1]}
    assert [(one["name"], one["kind"]) for one in found["parameters"]["columns"]] == [
        ("age", "number"), ("smoker", "boolean"), ("sex", "category"), ("seen", "date")
    ]  # fmt: skip
    assert found["parameters"]["columns"][2]["categories"] == ["f", "m"]
    assert found["parameters"]["label"] == "diagnosis"
    assert RemoteModel(server.url).card == PATIENTS


def test_columns_are_asked_for_by_name(server: Served) -> None:
    answer = ask(
        server, sex=("BYTES", ["m"]), age=("FP64", [49]), seen=("BYTES", ["1970-01-01"]), smoker=("BOOL", [True])
    )
    assert answer.status == 200, answer.data
    np.testing.assert_allclose(answer.json()["outputs"][0]["data"], [0.99330715], rtol=1e-5)
    refused = ask(server, sex=("BYTES", ["m"]), Age=("FP64", [49]), seen=("BYTES", [""]), smoker=("BOOL", [True]))
    assert refused.status == 400
    assert refused.json()["error"].startswith("the column 'age' is missing. Rename 'Age' to 'age'")


def test_requests_of_strings_are_run_together(server: Served) -> None:
    found: dict[int, Any] = {}

    def send(age: int) -> None:
        columns = {"age": ("FP64", [age]), "smoker": ("BOOL", [None]), "sex": ("BYTES", ["f"]), "seen": ("BYTES", [""])}
        found[age] = ask(server, **columns).json()["outputs"][0]["data"]

    threads = [threading.Thread(target=send, args=(age,)) for age in range(47, 54)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for age in range(47, 54):
        np.testing.assert_allclose(found[age], 1 / (1 + np.exp(50 - age)), rtol=1e-5)


def test_tritons_client_sends_and_gets_strings(server: Served) -> None:
    client = triton.InferenceServerClient(server.host)
    numbers = triton.InferInput("numbers", [2, 3], "FP32")
    numbers.set_data_from_numpy(np.float32([[49, 1, 0], [53, np.nan, 0]]))
    for binary in (True, False):
        categories = triton.InferInput("categories", [2, 1], "BYTES")
        categories.set_data_from_numpy(np.array([["m"], [""]], object), binary_data=binary)
        shares = client.infer("patients", [numbers, categories]).as_numpy("ill")
        np.testing.assert_allclose(shares[:, 0], [0.99330715, 0.95257413], rtol=1e-5)


def test_the_command_gives_the_same_for_the_file_and_the_server(server: Served, tmp_path: Path) -> None:
    (tmp_path / "raw.csv").write_text(RAW)
    results = [
        CliRunner().invoke(app, ["predict", of, str(tmp_path / "raw.csv")])
        for of in (server.url, str(server.folder / "model.onnx"))
    ]
    assert results[0].exit_code == 0, results[0].output
    assert results[0].output == results[1].output
    assert "accuracy 1.0000 over 3 examples" in results[0].output
    answers = predict_file(server.url, tmp_path / "raw.csv")
    inputs = {"numbers": [[49, 1, 0], [49, np.nan, np.nan], [53, 0, np.nan]], "categories": [["m"], [""], ["x"]]}
    np.testing.assert_array_equal(answers.prediction.outputs, predict(open_model(patients()), inputs).outputs)


def test_missing_values_and_unknown_categories_are_counted(tmp_path: Path, server: Served) -> None:
    def value(name: str, column: str) -> float:
        text = server.get("/metrics").data.decode()
        found = re.findall(rf'^{name}_total\{{column="{column}",.*\}} (.*)$', text, re.M)
        return float(found[0]) if found else 0.0

    names = [
        ("fedpipe_missing_values", "smoker"),
        ("fedpipe_missing_values", "sex"),
        ("fedpipe_unknown_categories", "sex"),
    ]
    before = [value(*name) for name in names]
    columns = {"age": ("FP64", [49, 50]), "smoker": ("BOOL", [None, True]), "sex": ("BYTES", ["x", ""])}
    assert ask(server, seen=("BYTES", ["", ""]), **columns).status == 200
    assert [value(*name) - start for name, start in zip(names, before, strict=True)] == [1, 1, 1]
    text = server.get("/metrics").data.decode()
    assert re.search(r'fedpipe_predictions_total\{label="healthy",model="patients",version="1"\} [1-9]', text)
