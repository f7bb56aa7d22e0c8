"""Tests whether an image can be pulled, with a real registry."""

from __future__ import annotations

import base64
import hashlib
import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import urllib3

from fedpipe.kubeflow.clients import open_kubernetes
from fedpipe.kubeflow.doctor.finding import Finding
from fedpipe.kubeflow.doctor.secrets import check_images
from fedpipe.kubeflow.images import Reference, find_image, parse_reference
from fedpipe.kubeflow.where import Where
from tests import binaries, servers
from tests.federations import make_federation
from tests.kubeflow.kubernetes_server import answering

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
BCRYPT = "$2b$05$S4qEwu3ZNbkBfeGX3TlktOKT29gvM2JrZU14gP4l6ubaJ8jMU10BO"  # of the password `testpassword`


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        ("fedpipe/core:0.1.0", ("", "fedpipe/core", "0.1.0")),
        ("fedpipe/core", ("", "fedpipe/core", "latest")),
        ("registry.example/team/core:7", ("registry.example", "team/core", "7")),
        ("localhost:5000/core", ("localhost:5000", "core", "latest")),
        ("localhost/core:1@sha256:ab", ("localhost", "core", "sha256:ab")),
        ("registry.example:443/a/b/core@sha256:ab", ("registry.example:443", "a/b/core", "sha256:ab")),
    ],
)
def test_names_have_three_parts(image: str, expected: tuple[str, str, str]) -> None:
    assert parse_reference(image) == Reference(*expected)


def test_a_name_without_a_registry() -> None:
    level, what, remedy = find_image("fedpipe/core:0.1.0", {})
    assert (level, what) == ("warning", "has no registry in its name, and no node has it")
    assert "images.registry" in remedy


def test_a_registry_that_does_not_answer() -> None:
    level, what, _ = find_image("127.0.0.1:1/core", {})
    assert level == "warning"
    assert "cannot be reached from here" in what


@pytest.fixture(scope="module", params=["open", "closed"])
def registry(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, bool]]:
    """Starts a registry; returns its address, and whether it requires a password."""
    folder, port = tmp_path_factory.mktemp("registry"), servers.free_port()
    closed = request.param == "closed"
    settings = {
        "version": 0.1, "log": {"level": "error"}, "http": {"addr": f"127.0.0.1:{port}"},
        "storage": {"filesystem": {"rootdirectory": str(folder / "data")}},
    }  # fmt: skip
    if closed:
        (folder / "users").write_text(f"someone:{BCRYPT}\n")
        settings["auth"] = {"htpasswd": {"realm": "registry", "path": str(folder / "users")}}
    (folder / "config.yml").write_text(json.dumps(settings))
    command = [str(binaries.find_binary("registry")), "serve", str(folder / "config.yml")]
    with (folder / "log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            yield f"127.0.0.1:{port}", closed
        finally:
            process.kill()


def push(address: str) -> str:
    """Pushes an empty image as in the OCI specification, and returns its digest."""
    pool = urllib3.PoolManager(headers={"Authorization": "Basic " + encoded("testpassword")}, retries=30)
    for _ in range(100):
        try:
            pool.request("GET", f"http://{address}/v2/", retries=False)
            break
        except urllib3.exceptions.HTTPError:
            time.sleep(0.1)
    blob = b"{}"
    digest = f"sha256:{hashlib.sha256(blob).hexdigest()}"
    place = pool.request("POST", f"http://{address}/v2/team/core/blobs/uploads/").headers["Location"]
    assert pool.request("PUT", f"{place}&digest={digest}", body=blob).status == 201
    config = {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest, "size": len(blob)}
    manifest = json.dumps({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": []}).encode()
    put = pool.request(
        "PUT",
        f"http://{address}/v2/team/core/manifests/7",
        body=manifest,
        headers={**pool.headers, "Content-Type": MANIFEST},
    )
    assert put.status == 201
    return f"sha256:{hashlib.sha256(manifest).hexdigest()}"


def encoded(password: str) -> str:
    return base64.b64encode(f"someone:{password}".encode()).decode()


@pytest.mark.heavy
@pytest.mark.xdist_group("registry")
def test_an_image_by_tag_and_by_digest(registry: tuple[str, bool], tmp_path: Path) -> None:
    address, closed = registry
    digest = push(address)
    auths = {address: {"auth": encoded("testpassword")}}
    assert find_image(f"{address}/team/core:7", auths) == ("ok", "can be pulled", "")
    assert find_image(f"{address}/team/core@{digest}", auths)[0] == "ok"
    level, what, remedy = find_image(f"{address}/team/core:8", auths)
    assert (level, what) == ("error", "the registry does not have it")
    assert "images/build --push" in remedy
    if closed:
        assert (
            find_image(f"{address}/team/core:7", {address: {"username": "someone", "password": "testpassword"}})[0]
            == "ok"
        )
        for wrong in ({}, {address: {"auth": encoded("wrong")}}):
            level, what, remedy = find_image(f"{address}/team/core:7", wrong)
            assert (level, what) == ("error", "the registry refuses access (HTTP 401)")
            assert "placement.pull_secrets" in remedy


@pytest.mark.heavy
@pytest.mark.xdist_group("registry")
@pytest.mark.parametrize("placed", ["step", "learner"])
def test_doctor_uses_the_pull_secrets_of_steps_and_learners(
    registry: tuple[str, bool], placed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address, _ = registry
    push(address)
    given = {"placement": {"pull_secrets": ["pull"]}}
    federation = make_federation(
        framework="numpy", export="none", images={"registry": f"{address}/team", "tag": "7"},
        model=f"{tmp_path}/model.py:build", learners=[{"name": "a", **(given if placed == "learner" else {})}, {"name": "b"}],
        placement={"learn": given["placement"]} if placed == "step" else {},
    )  # fmt: skip
    (tmp_path / "model.py").write_text("def build(): ...\n")
    auths = json.dumps({"auths": {address: {"auth": encoded("testpassword")}}})
    secret = {"kind": "Secret", "data": {".dockerconfigjson": base64.b64encode(auths.encode()).decode()}}
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    with answering({"/api/v1/namespaces/ml/secrets/pull": secret}, tmp_path / "kubeconfig"):
        found = list(check_images(federation, open_kubernetes(Where(namespace="ml")), []))
    assert found == [Finding("ok", f"image {address}/team/core:7", "can be pulled")]
