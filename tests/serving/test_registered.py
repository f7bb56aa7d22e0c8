"""Serves a model by its entry in Kubeflow's Model Registry, registered by a real run."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import fedpipe
from fedpipe.errors import InputError, NotFoundError, ServiceError
from fedpipe.serving.catalogue import locate
from fedpipe.serving.server import Server
from fedpipe.tracking.registered import BASE_URL, find_registered
from tests.tracking.faulty import Asked, answering
from tests.tracking.registering import registered
from tests.tracking.registry_server import Registry


@pytest.fixture(scope="module")
def registry() -> Registry:
    return Registry()


@pytest.fixture(scope="module")
def asked(registry: Registry) -> Iterator[Asked]:
    with answering(registry.answer) as found:
        yield found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, asked: Asked) -> Path:
    """The folder of a federation with two registered versions, of which the first one is promoted."""
    return registered(tmp_path_factory.mktemp("registered") / "numpy", asked.url)


def at(asked: Asked, rest: str) -> str:
    return f"model-registry://{asked.url.removeprefix('http://')}/{rest}"


def answering_version(server: Server) -> int:
    x = np.zeros((1, 8, 8), np.float32)
    body = {"inputs": [{"name": "features", "shape": [1, 64], "datatype": "FP32", "data": x.reshape(-1).tolist()}]}
    with urllib.request.urlopen(f"{server.url}/v2/models/digits") as answer:
        given = json.load(answer)["inputs"][0]
    body["inputs"][0] |= {"name": given["name"], "shape": [1, *given["shape"][1:]]}
    request = urllib.request.Request(f"{server.url}/v2/models/digits/infer", json.dumps(body).encode())
    with urllib.request.urlopen(request) as answer:
        return int(json.load(answer)["model_version"])


def test_an_entry_names_the_place_of_its_federation(folder: Path, asked: Asked) -> None:
    store = f"file://{folder}/store/digits"
    assert find_registered(at(asked, "digits/1")) == (store, "digits", 1)
    assert find_registered(at(asked, "digits")) == (store, "digits", 0)
    environ = {BASE_URL: asked.url}
    assert find_registered("model-registry://digits/2", environ) == (store, "digits", 2)
    assert find_registered("model-registry://digits", {BASE_URL: asked.url.removeprefix("http://")}).name == "digits"


@pytest.mark.heavy
def test_serves_one_version_or_what_is_promoted(folder: Path, asked: Asked) -> None:
    with fedpipe.serve(store=at(asked, "digits/2")) as server:
        assert answering_version(server) == 2
    with fedpipe.serve(store=at(asked, "digits")) as server:
        assert answering_version(server) == 1


def test_a_second_model_of_the_federation_does_not_count(folder: Path, asked: Asked) -> None:
    models = folder / "store" / "digits" / "models"
    (models / "other" / "1").mkdir(parents=True)
    (models / "other" / "1" / "model.onnx").write_bytes(b"junk")
    place = locate(store=at(asked, "digits/2"))
    assert place.chosen({"digits": [1, 2], "other": [1]}) == {"digits": [2]}
    with pytest.raises(NotFoundError, match="Choose one of: digits"):
        place.find_folder("other")


@pytest.mark.parametrize(
    "uri", ["", "/digits", "digits/", "digits/1/", "host:1/", "host:1/a/", "host/a/1/2", "a?x=1", "a#b"]
)
def test_uris_that_name_nothing(uri: str) -> None:
    with pytest.raises(InputError, match=r"names no model of a registry. Write model-registry://HOST:PORT/NAME"):
        find_registered(f"model-registry://{uri}", {BASE_URL: "http://127.0.0.1:1"})


def test_mistakes(folder: Path, asked: Asked, registry: Registry) -> None:
    with pytest.raises(InputError, match=f"does not name the registry's address.*set {BASE_URL}"):
        find_registered("model-registry://digits/1", {})
    with pytest.raises(InputError, match="contains a user name or password"):
        find_registered("model-registry://user:secret@host:80/digits")
    with pytest.raises(NotFoundError, match="no model 'digit'"):
        find_registered(at(asked, "digit/1"))
    with pytest.raises(NotFoundError, match="no version '7' of model 'digits'"):
        find_registered(at(asked, "digits/7"))
    with pytest.raises(ServiceError, match="cannot be reached"):
        find_registered("model-registry://127.0.0.1:1/digits/1")
    with pytest.raises(InputError, match="exactly one location"):
        locate(store=at(asked, "digits"), folder=folder)


@pytest.mark.parametrize("name", ["digits", "models"])
@pytest.mark.parametrize(
    ("uri", "properties"),
    [
        ("s3://b/f/models/{}/3/", {"endpoint": "http://minio:9000", "region": "eu"}),
        ("s3://b/f/models/{}/3/model.onnx?endpoint=http://minio:9000&defaultRegion=eu", {}),  # as of earlier versions
    ],
)
def test_the_bucket_of_an_entry(
    name: str, uri: str, properties: dict[str, str], asked: Asked, registry: Registry, folder: Path
) -> None:
    """Also of a model whose name is that of the folder of all models."""
    artifact = next(iter(registry.held["model_artifact"].values()))
    kept = dict(artifact)
    texts = {key: {"metadataType": "MetadataStringValue", "string_value": value} for key, value in properties.items()}
    try:
        artifact |= {"uri": uri.format(name), "customProperties": texts}
        place = "s3://b/f?endpoint=http://minio:9000&region=eu"
        assert find_registered(at(asked, "digits/1")) == (place, "digits", 3)
    finally:
        artifact |= kept


def test_an_entry_of_another_program(asked: Asked, registry: Registry, folder: Path) -> None:
    artifact = next(iter(registry.held["model_artifact"].values()))
    kept = artifact["uri"]
    try:
        artifact["uri"] = "s3://bucket/iris.onnx"
        with pytest.raises(InputError, match=r"is not one that fedpipe made: its URI is 's3://bucket/iris.onnx'"):
            find_registered(at(asked, "digits/1"))
    finally:
        artifact["uri"] = kept
