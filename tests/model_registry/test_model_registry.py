"""A published model in the Model Registry's own server: `make registry` (docs/tracking.md#model-registry)."""

from __future__ import annotations

import json
import math
import os
import subprocess
import threading
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

import fedpipe
from fedpipe.commands.init import Framework, init
from fedpipe.errors import InputError, NotFoundError, ServiceError
from fedpipe.identity.signing import make_key, public_key, signer_of
from fedpipe.registry.publication import ModelVersion, find_origin, sign_publication
from fedpipe.reports.story import read_story
from fedpipe.tracking.model_registry import API, Registered, Source, open_registry, register
from fedpipe.tracking.registered import find_registered
from tests.commands.runs import store_of
from tests.model_registry.server import RegistryServer, find_initializer, running
from tests.servers import Server

SOURCE = Source("kfp", "pipelinerun", "hospitals", "0b1c-job", "one")


def read(registry: RegistryServer, path: str) -> Any:
    """Reads a resource as other clients do."""
    with urllib.request.urlopen(f"{registry.url}/{API}/{path}", timeout=30) as answer:
        return json.load(answer)


def items(registry: RegistryServer, path: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = read(registry, f"{path}?pageSize=100&orderBy=ID")["items"]
    return found


def plain(found: dict[str, Any]) -> dict[str, Any]:
    """Properties without the wrapping of the API."""
    return {
        name: next(v for k, v in value.items() if k != "metadataType")
        for name, value in found["customProperties"].items()
    }


def registered(folder: Path, registry: RegistryServer, run: str = "one", **changes: Any) -> Registered:
    """Registers the model of a run, as its last step does."""
    store = store_of(folder / "store")
    return register(store, replace(read_story(store, run, ""), **changes), registry.url, SOURCE, {})


def at(registry: RegistryServer, rest: str) -> str:
    return f"model-registry://{registry.url.removeprefix('http://')}/{rest}"


def test_runs_register_a_model_with_a_version_for_each(federation: Path, registry: RegistryServer) -> None:
    (model,) = [one for one in items(registry, "registered_models") if one["name"] == "digits"]
    assert plain(model) == {"federation": "digits"}
    assert (model["state"], model["description"]) == ("LIVE", "ONNX models of the federation digits")
    versions = items(registry, f"registered_models/{model['id']}/versions")
    assert [version["name"] for version in versions] == ["1", "2"]
    for run, version in zip(("one", "two"), versions, strict=True):
        summary = json.loads((federation / run / "summary.json").read_text())
        (artifact,) = items(registry, f"model_versions/{version['id']}/artifacts")
        assert summary["registry"] == {
            "url": registry.url, "name": "digits", "version": int(version["name"]), "model_id": model["id"],
            "version_id": version["id"], "artifact_id": artifact["id"],
        }  # fmt: skip
        described = plain(version)
        assert described == plain(artifact)
        assert described["digest"] == summary["onnx"]["digest"]
        assert described["record"] == summary["rounds"][-1]["record"]
        assert (described["federation"], described["run"], described["round"]) == ("digits", run, "1")
        assert described["central_accuracy"] == summary["evaluation"]["central"]["metrics"]["accuracy"]
        assert artifact["uri"] == f"file://{federation}/store/digits/models/digits/{version['name']}/"
        assert (artifact["modelFormatName"], artifact["modelFormatVersion"]) == ("onnx", "17")
        assert (artifact["modelSourceKind"], artifact["modelSourceName"]) == ("fedpipe", run)


def test_a_repeated_step_changes_the_entries_and_adds_none(federation: Path, registry: RegistryServer) -> None:
    """Such as with a signature that `fedpipe sign` made later, and with another source."""
    first = registered(federation, registry)
    assert registered(federation, registry) == first
    models, entry, private = store_of(federation / "store").below("models"), ModelVersion("digits", 1), make_key()
    origin = find_origin(models, entry)
    assert origin is not None
    sign_publication(models, entry, origin, signer_of(private))
    assert registered(federation, registry) == first
    (artifact,) = items(registry, f"model_versions/{first.version_id}/artifacts")
    assert plain(artifact)["signature_key"] == public_key(private)
    assert (artifact["modelSourceId"], artifact["modelSourceGroup"]) == ("0b1c-job", "hospitals")
    assert plain(read(registry, f"model_versions/{first.version_id}"))["signature_key"] == public_key(private)


def test_processes_that_register_at_once_leave_one_entry(registry: RegistryServer, tmp_path: Path) -> None:
    init(tmp_path / "f", framework=Framework.numpy)
    fedpipe.run(tmp_path / "f" / "federation.yaml", out=tmp_path / "out", name="one", training={"rounds": 1},
                export={"name": "raced"})  # fmt: skip
    found: list[Registered | ServiceError] = []

    def work() -> None:
        try:
            found.append(registered(tmp_path / "f", registry))
        except ServiceError as error:
            found.append(error)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (one,) = set(found)
    assert isinstance(one, Registered), one
    assert [model["name"] for model in items(registry, "registered_models")].count("raced") == 1
    assert len(items(registry, f"registered_models/{one.model_id}/versions")) == 1
    assert len(items(registry, f"model_versions/{one.version_id}/artifacts")) == 1


@pytest.mark.parametrize("name", ["1", "8x8", "m" * 40])
def test_names_of_models(name: str, registry: RegistryServer, tmp_path: Path) -> None:
    init(tmp_path / "f", framework=Framework.numpy)
    file = tmp_path / "f" / "federation.yaml"
    fedpipe.run(file, out=tmp_path / "out", training={"rounds": 1}, export={"name": name, "registry": registry.url})
    assert find_registered(at(registry, f"{name}/1")) == (f"file://{tmp_path}/f/store/digits", name, 1)


def test_a_bucket_with_an_endpoint(federation: Path, registry: RegistryServer) -> None:
    made = registered(federation, registry, "two", store="s3://bucket/prefix?endpoint=http://minio:9000&region=eu")
    (artifact,) = items(registry, f"model_versions/{made.version_id}/artifacts")
    assert artifact["uri"] == "s3://bucket/prefix/digits/models/digits/2/"
    assert plain(artifact)["endpoint"] == "http://minio:9000"
    place = "s3://bucket/prefix/digits?endpoint=http://minio:9000&region=eu"
    assert find_registered(at(registry, "digits/2")) == (place, "digits", 2)
    registered(federation, registry, "two", store=f"file://{federation}/store")


@pytest.mark.parametrize("loss", [math.nan, -math.inf])
def test_numbers_that_json_lacks(loss: float, federation: Path, registry: RegistryServer) -> None:
    story = read_story(store_of(federation / "store"), "one", "")
    assert story.evaluation is not None
    assert story.evaluation.central is not None
    central = replace(story.evaluation.central, metrics={"loss": loss})
    made = registered(federation, registry, evaluation=replace(story.evaluation, central=central))
    assert plain(read(registry, f"model_versions/{made.version_id}"))["central_loss"] == str(loss)
    registered(federation, registry)


def test_serves_the_version_of_an_entry_or_what_is_promoted(federation: Path, registry: RegistryServer) -> None:
    store = f"file://{federation}/store/digits"
    assert find_registered(at(registry, "digits/2")) == (store, "digits", 2)
    assert find_registered(at(registry, "digits")) == (store, "digits", 0)
    for rest, version in (("digits/2", "2"), ("digits", "1")):
        with fedpipe.serve(store=at(registry, rest)) as server:
            with urllib.request.urlopen(f"{server.url}/v2/models/digits") as answer:
                (port,) = json.load(answer)["inputs"]
            size = math.prod(port["shape"][1:])
            given = {"name": port["name"], "shape": [1, *port["shape"][1:]], "datatype": "FP32", "data": [0.0] * size}
            body = json.dumps({"inputs": [given]}).encode()
            with urllib.request.urlopen(f"{server.url}/v2/models/digits/infer", body) as answer:
                assert json.load(answer)["model_version"] == version


def test_kserve_reads_an_entry_by_the_registrys_initializer(
    registry: RegistryServer, minio_server: Server, s3_keys: None, tmp_path: Path
) -> None:
    """It takes all after the bucket as a prefix of keys, and so would copy version 10 with version 1."""
    init(tmp_path / "f", framework=Framework.numpy)
    file, store = tmp_path / "f" / "federation.yaml", f"s3://tests/kserve?endpoint={minio_server.endpoint}"
    fedpipe.run(file, out=tmp_path / "out", store=store, training={"rounds": 1},
                export={"name": "kserve", "registry": registry.url})  # fmt: skip
    models = store_of(store).below("models")
    models.create("kserve/10/model.onnx", b"another")
    host = registry.url.removeprefix("http://")
    settings = {
        "MODEL_REGISTRY_BASE_URL": host, "AWS_ENDPOINT_URL": minio_server.endpoint, "AWS_REGION": "us-east-1",
        "S3_USER_VIRTUAL_BUCKET": "false",
    }  # fmt: skip
    for uri in ("model-registry://kserve/1", f"model-registry://{host}/kserve/1"):
        folder = tmp_path / uri.replace("/", "_")
        folder.mkdir()
        command = [find_initializer(), uri, folder]
        done = subprocess.run(command, env={**os.environ, **settings}, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert {path.name for path in folder.iterdir()} == {"model.onnx", "origin.json"}
        assert (folder / "model.onnx").read_bytes() == models.read("kserve/1/model.onnx").data


def test_entries_that_are_not_there(federation: Path, registry: RegistryServer) -> None:
    with pytest.raises(NotFoundError, match="the model registry has no model 'digit'"):
        find_registered(at(registry, "digit/1"))
    with pytest.raises(NotFoundError, match="no version '7' of model 'digits'"):
        find_registered(at(registry, "digits/7"))


def test_an_entry_of_another_program(registry: RegistryServer) -> None:
    service = open_registry(registry.url, {})
    model = service.send("POST", f"{API}/registered_models", {"name": "iris"}, dict[str, Any])["id"]
    with pytest.raises(NotFoundError, match="the model registry has no version of model 'iris'"):
        find_registered(at(registry, "iris"))
    version = service.send(
        "POST", f"{API}/model_versions", {"name": "v1", "registeredModelId": model}, dict[str, Any]
    )["id"]  # fmt: skip
    with pytest.raises(InputError, match="is not one that fedpipe made: its URI is ''"):
        find_registered(at(registry, "iris/v1"))
    artifact = {"name": "iris", "artifactType": "model-artifact", "uri": "s3://bucket/iris.onnx"}
    service.send("POST", f"{API}/model_versions/{version}/artifacts", artifact, dict[str, Any])
    with pytest.raises(InputError, match=r"is not one that fedpipe made: its URI is 's3://bucket/iris.onnx'"):
        find_registered(at(registry, "iris"))


def test_a_refusal_has_the_servers_reason(registry: RegistryServer) -> None:
    service = open_registry(registry.url, {})
    with pytest.raises(ServiceError, match=r"refuses a request \(HTTP 400\), because .*colour"):
        service.send("POST", f"{API}/registered_models", {"name": "x", "colour": "red"}, dict[str, Any])


def test_a_registry_without_its_database_is_no_failure_of_the_run(tmp_path: Path) -> None:
    init(tmp_path / "f", framework=Framework.numpy)
    with running(tmp_path) as registry:
        registry.database.kill()
        registry.database.wait()
        done = fedpipe.run(tmp_path / "f" / "federation.yaml", out=tmp_path / "out", training={"rounds": 1},
                           export={"registry": registry.url})  # fmt: skip
    assert done.summary["registry"]["url"] == registry.url
    assert "the model registry refuses a request (HTTP 5" in done.summary["registry"]["failed"]
