"""A published model in Kubeflow's Model Registry: registered once, described by what the store says."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

import fedpipe
from fedpipe.commands.init import Framework, init
from fedpipe.errors import FederationError, FedpipeError, ServiceError
from fedpipe.identity.signing import make_key, public_key, signer_of
from fedpipe.registry.publication import ModelVersion, find_origin, sign_publication
from fedpipe.reports.story import read_story
from fedpipe.rounds.history import history
from fedpipe.rounds.plan import RunPlace, current_plan
from fedpipe.steps import report
from fedpipe.store import keys
from fedpipe.store.objects import encode
from fedpipe.tracking.model_registry import Registered, Source, register, source_of
from tests.commands.runs import store_of
from tests.federations import make_federation, make_plan
from tests.tracking.faulty import Answer, Asked, answering, body
from tests.tracking.registry_server import Registry

SOURCE = Source("kfp", "pipelinerun", "hospitals", "0b1c-job", "run-1")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that has ended, without a registry."""
    folder = tmp_path_factory.mktemp("finished") / "numpy"
    init(folder, framework=Framework.numpy)
    fedpipe.run(folder / "federation.yaml", out=folder / "out", parameters={"rounds": 1})
    return folder


@pytest.fixture
def registry() -> Registry:
    return Registry()


@pytest.fixture
def asked(registry: Registry) -> Iterator[Asked]:
    with answering(registry.answer) as found:
        yield found
    assert [line for line in registry.refused if "no such entry" not in line] == []


def registered(folder: Path, url: str, store_uri: str = "", **environ: str) -> Registered:
    """The model of the finished run, registered as its last step does it."""
    store = store_of(folder / "store")
    return register(store, read_story(store, "run-1", store_uri), url, SOURCE, environ)


def plain(found: dict[str, Any]) -> dict[str, Any]:
    """Properties without the wrapping of the API."""
    return {
        name: next(v for k, v in value.items() if k != "metadataType")
        for name, value in found["customProperties"].items()
    }


def test_a_run_registers_its_model(registry: Registry, asked: Asked, numpy_digits: Path) -> None:
    summary = fedpipe.run(
        numpy_digits / "federation.yaml", out=numpy_digits / "out", training={"rounds": 1},
        export={"registry": asked.url},
    ).summary  # fmt: skip
    (model,), (version,), (artifact,) = (list(one.values()) for one in registry.held.values())
    assert summary["registry"] == {
        "url": asked.url, "name": "digits", "version": 1, "model_id": model["id"], "version_id": version["id"], "artifact_id": artifact["id"],
    }  # fmt: skip
    assert (model["name"], version["name"], artifact["name"]) == ("digits", "1", "digits")
    assert (version["registeredModelId"], artifact["_parent"]) == (model["id"], version["id"])
    assert artifact["uri"] == f"file://{numpy_digits}/store/digits/models/digits/1/"
    assert (artifact["modelFormatName"], artifact["modelFormatVersion"]) == ("onnx", "17")
    assert (artifact["modelSourceKind"], artifact["modelSourceClass"], artifact["modelSourceId"]) == (
        "fedpipe", "run", "run-1",
    )  # fmt: skip
    described = plain(version)
    assert described == plain(artifact)
    assert described["digest"] == summary["onnx"]["digest"]
    assert described["record"] == summary["rounds"][-1]["record"]
    assert described["weights"] == summary["rounds"][-1]["weights"]
    assert (described["federation"], described["run"], described["round"]) == ("digits", "run-1", "1")
    central = summary["evaluation"]["central"]["metrics"]
    assert described["central_loss"] == central["loss"]
    assert described["central_accuracy"] == central["accuracy"]
    assert "signature_key" not in described


def test_a_repeated_step_registers_nothing_twice(registry: Registry, asked: Asked, finished: Path) -> None:
    first = registered(finished, asked.url)
    assert registered(finished, asked.url) == first
    assert [len(held) for held in registry.held.values()] == [1, 1, 1]


def test_what_changed_since_is_brought_up_to_date(registry: Registry, asked: Asked, finished: Path) -> None:
    """Such as a signature that `fedpipe sign` made later."""
    registered(finished, asked.url)
    (version,) = registry.held["model_version"].values()
    assert "signature_key" not in plain(version)
    models, entry, private = store_of(finished / "store").below("models"), ModelVersion("digits", 1), make_key()
    origin = find_origin(models, entry)
    assert origin is not None
    sign_publication(models, entry, origin, signer_of(private))
    registered(finished, asked.url)
    (version,), (artifact,) = registry.held["model_version"].values(), registry.held["model_artifact"].values()
    assert plain(version)["signature_key"] == plain(artifact)["signature_key"] == public_key(private)


def test_the_token_of_the_environment(registry: Registry, asked: Asked, finished: Path, tmp_path: Path) -> None:
    registry.token = "a-secret-token"
    (tmp_path / "token").write_text("a-secret-token\n")
    first = registered(finished, asked.url, MODEL_REGISTRY_TOKEN="a-secret-token")
    assert registered(finished, asked.url, KF_PIPELINES_SA_TOKEN_PATH=str(tmp_path / "token")) == first
    with pytest.raises(FedpipeError, match=r"KF_PIPELINES_SA_TOKEN_PATH=/no/token: the token cannot be read: No such"):
        registered(finished, asked.url, KF_PIPELINES_SA_TOKEN_PATH="/no/token")


def test_without_the_token(finished: Path) -> None:
    with (
        answering(Registry("t").answer) as strict,
        pytest.raises(ServiceError, match=r"HTTP 401\), because no token. Check its credentials."),
    ):
        registered(finished, strict.url)


def test_another_process_that_is_faster(registry: Registry, finished: Path) -> None:
    """It creates each entry between the look and the creation, which the registry then refuses with 409."""
    with answering(registry.racing) as raced:
        first = registered(finished, raced.url)
    assert [len(held) for held in registry.held.values()] == [1, 1, 1]
    assert first[2:] == tuple(entry_id for held in registry.held.values() for entry_id in held)


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (body(500, b'{"message": "the database is down"}'), "(HTTP 500), because the database is down"),
        (body(200, b"[]"), "the model registry does not answer as documented"),
        (body(404, b"{}"), "the model registry refuses a request (HTTP 404)"),
    ],
)
def test_a_registry_that_fails_is_no_failure_of_the_step(answer: Answer, why: str, finished: Path) -> None:
    """The step succeeds, and the summary has the reason; the registry of this try counts, and nothing else changed."""
    store = store_of(finished / "store")
    with answering(answer) as broken:
        plan = current_plan(store, "run-1", history(store, "run-1")[0].plan)
        export = replace(plan.federation.export, registry=broken.url)
        changed = replace(plan, federation=replace(plan.federation, export=export))
        store.replace(keys.plan("run-1"), encode(changed))
        place = RunPlace(store=f"file://{finished}/store", federation="digits", run="run-1", plan=changed.put(store))
        report.run(report.Inputs(place=place, job="local-1"))
    found = json.loads(store.read(keys.summary("run-1")).data)["registry"]
    assert found["url"] == broken.url
    assert why in found["failed"]
    store.replace(keys.plan("run-1"), encode(plan))


def test_the_source_is_the_pipelines_run(tmp_path: Path) -> None:
    (tmp_path / "namespace").write_text("hospitals")
    assert source_of("run-1", "0b1c-job", tmp_path / "namespace") == SOURCE
    assert source_of("run-1", "local-77", tmp_path / "namespace") == Source("fedpipe", "run", "", "run-1", "run-1")
    assert source_of("run-1", "0b1c-job", tmp_path / "none").group == ""


def test_the_source_and_the_uri_of_a_bucket(registry: Registry, asked: Asked, finished: Path) -> None:
    registered(finished, asked.url, "s3://bucket/prefix?endpoint=http://minio:9000&region=eu")
    (artifact,) = registry.held["model_artifact"].values()
    assert artifact["uri"] == "s3://bucket/prefix/digits/models/digits/1/"
    (version,) = registry.held["model_version"].values()
    server = {"endpoint": "http://minio:9000", "region": "eu"}
    assert plain(artifact) == {**plain(version), **server}
    assert tuple(artifact[f"modelSource{name}"] for name in ("Kind", "Class", "Group", "Id", "Name")) == SOURCE


@pytest.mark.parametrize("url", ["registry:8080", "ftp://host", "https://host?x=1"])
def test_mistakes_in_the_file(url: str) -> None:
    with pytest.raises(FederationError, match=r"export.registry: is not the URL of a server"):
        make_federation(export={"registry": url})
    with pytest.raises(FederationError, match=r"export.registry: the URI contains a user name or password"):
        make_federation(export={"registry": "http://user:secret@host"})


def test_the_registry_changes_neither_the_run_nor_the_version() -> None:
    with_registry = make_plan(make_federation(export={"registry": "http://host"}))
    assert with_registry.definition == make_plan().definition
    assert with_registry.exporting == make_plan().exporting
