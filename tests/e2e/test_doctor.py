"""Tests the findings of `doctor` on a real cluster before a run, and those of `watch` while a pod waits."""

from __future__ import annotations

import json
import secrets
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes import client
from typer.testing import CliRunner

from fedpipe.cli.main import app
from fedpipe.commands.identities import enroll
from fedpipe.errors import InputError
from fedpipe.identity.signing import COORDINATOR
from fedpipe.kubeflow.clients import open_kubernetes
from fedpipe.kubeflow.doctor.diagnosis import diagnose
from fedpipe.kubeflow.doctor.finding import Finding
from fedpipe.kubeflow.pods import waiting_lines
from fedpipe.store.base import Credentials
from tests.e2e.conftest import ENDPOINT, eventually
from tests.e2e.sites import POOL, Site, secret
from tests.kubeflow.kfp_server import serving

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")


@pytest.fixture
def changed(site: Callable[..., Site]) -> Callable[..., list[Finding]]:
    """Returns a function that diagnoses a federation of two learners after a change to its file."""
    prefix = f"doctor-{secrets.token_hex(3)}"
    made = site(prefix, [{"name": name, "placement": dict(POOL)} for name in ("a", "b")], enrolled=False)

    def find(change: Callable[[dict[str, Any]], None]) -> list[Finding]:
        content = yaml.safe_load(made.file.read_text())
        change(content)
        made.file.write_text(yaml.safe_dump(content))
        return diagnose(made.file, where=made.where)

    find.site = made  # type: ignore[attr-defined]
    return find


def of(found: list[Finding], subject: str) -> Finding:
    return next(one for one in found if one.subject == subject)


def placing(**more: Any) -> Callable[[dict[str, Any]], None]:
    """Changes the placement of the second learner."""

    def change(content: dict[str, Any]) -> None:
        content["learners"][1]["placement"] |= more

    return change


def test_a_federation_that_is_well(changed: Callable[..., list[Finding]]) -> None:
    found = changed(lambda _: None)
    assert [one for one in found if one.level == "error" and one.subject != "kubeflow"] == []
    assert "honours conditional writes" in of(found, "store").what
    assert of(found, "a").what.startswith("fits on 1 of 1 nodes: ")
    assert "1 nvidia.com/gpu" in of(found, "a").what
    images = [one for one in found if one.subject.startswith("image ")]
    assert [(one.level, one.what) for one in images] == [("ok", "is on node-1")] * 2


def test_a_pool_that_no_node_is_of(changed: Callable[..., list[Finding]], core: client.CoreV1Api) -> None:
    """Checks that doctor finds it before the run, and watch while the pod waits."""
    found = of(changed(placing(node_selector={"pool": "gpus"})), "b")
    assert found.level == "error"
    assert found.what == "no node has the labels pool=gpus"
    assert "Nodes have pool=gpu." in found.remedy

    made: Site = changed.site  # type: ignore[attr-defined]
    CliRunner().invoke(app, ["compile", str(made.file), "-o", str(made.pipeline)])
    pipeline = made.driver("waits")
    (task,) = [task for task in pipeline.graph.tasks if task.name == "learn b"]
    job = pipeline.create(task, {"parameterValues": {}, "artifacts": {}})
    (line,) = eventually(lambda: [w for w in waiting_lines(open_kubernetes(made.where), "waits") if "node(s)" in w])
    assert line.startswith("learn-b has been Pending for ")
    assert "didn't match Pod's node affinity/selector" in line
    client.BatchV1Api(made.api).delete_namespaced_job(job, made.namespace, propagation_policy="Foreground")


def test_a_namespace_that_does_not_exist(changed: Callable[..., list[Finding]]) -> None:
    """Kubernetes itself lists the pods of such a namespace as none."""
    made: Site = changed.site  # type: ignore[attr-defined]
    mistyped = made.namespace.replace("hospitals", "hospitls")
    found = diagnose(made.file, where=made.where._replace(namespace=mistyped))
    about = [one for one in found if one.subject not in ("store", "data", "kubeflow", "coordinator")]
    remedy = f"Did you mean {made.namespace!r}?"
    assert about == [Finding("error", "kubernetes", f"there is no namespace {mistyped!r}", remedy)]


def test_a_taint_that_is_not_tolerated(changed: Callable[..., list[Finding]], core: client.CoreV1Api) -> None:
    core.patch_node("node-1", {"spec": {"taints": [{"key": "gpu", "value": "yes", "effect": "NoSchedule"}]}})
    try:
        found = of(changed(lambda _: None), "b")
        assert found.level == "error"
        assert found.what == "the taint gpu=yes:NoSchedule of its nodes is not tolerated"
        toleration = found.remedy.partition("tolerations: ")[2]
        assert of(changed(placing(tolerations=yaml.safe_load(toleration))), "b").level == "ok"
    finally:
        core.patch_node("node-1", {"spec": {"taints": None}})


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"accelerator": {"count": 8}}, "requests 0.1 cpu, 1Gi memory, 8 nvidia.com/gpu; its nodes have at most 2 nvidia"),
        ({"memory_request": "500Gi", "memory": "500Gi"}, "its nodes have at most"),
    ],
)  # fmt: skip
def test_a_request_that_no_node_has_room_for(
    changed: Callable[..., list[Finding]], more: dict[str, Any], message: str
) -> None:
    found = of(changed(placing(**more)), "b")
    assert found.level == "error"
    assert message in found.what


def test_a_pool_that_a_sessions_learners_do_not_fit_in_together(changed: Callable[..., list[Finding]]) -> None:
    subject = "2 learners of node-1"
    assert subject not in [one.subject for one in changed(lambda _: None)]
    found = changed(placing(accelerator={"count": 2}))
    assert of(found, "b").level == "ok"
    assert of(found, subject).level == "warning"
    assert of(found, subject).what == (
        "3 nvidia.com/gpu needed, 2 available, by the learners of a session at the same time"
    )
    assert "set training.rounds_per_step to 1" in of(found, subject).remedy

    def take_turns(content: dict[str, Any]) -> None:
        content["training"]["rounds_per_step"] = 1

    assert subject not in [one.subject for one in changed(take_turns)]


def test_secrets_that_lack_something(changed: Callable[..., list[Finding]], core: client.CoreV1Api) -> None:
    made: Site = changed.site  # type: ignore[attr-defined]
    core.create_namespaced_secret(made.namespace, {"metadata": {"name": "half"}, "stringData": {"accesskey": "x"}})
    enroll(made.file, COORDINATOR)
    unsigned = {"metadata": {"name": "unsigned"}, "stringData": {"accesskey": "x", "secretkey": "y"}}
    core.create_namespaced_secret(made.namespace, unsigned)

    def change(content: dict[str, Any]) -> None:
        content["learners"][0]["secret"], content["learners"][1]["secret"] = "half", "nowhere"
        content["secret"] = "unsigned"

    found = changed(change)
    assert of(found, "secret half").what == "of a: lacks secretkey"
    assert of(found, "coordinator").what == "is enrolled, and signs the models that it publishes"
    assert of(found, "secret unsigned").what == "of the coordinator: lacks signingkey"
    assert '"nowhere" not found' in of(found, "secret nowhere").what
    assert "kubectl apply" in of(found, "secret nowhere").remedy


def test_the_secret_of_the_tracking_server(changed: Callable[..., list[Finding]], core: client.CoreV1Api) -> None:
    """A run does without its tracking, so what is wrong there is a warning, and the run may be submitted."""
    made: Site = changed.site  # type: ignore[attr-defined]

    def change(content: dict[str, Any]) -> None:
        content["tracking"] = {"mlflow": "http://mlflow:5000", "secret": "mlflow"}

    absent = of(changed(change), "secret mlflow")
    assert absent.level == "warning"
    assert '"mlflow" not found' in absent.what
    assert f"kubectl create secret generic mlflow -n {made.namespace}" in absent.remedy
    core.create_namespaced_secret(made.namespace, {"metadata": {"name": "mlflow"}, "stringData": {"user": "x"}})
    try:
        lacking = of(changed(lambda _: None), "secret mlflow")
        assert lacking.what == "of tracking: has neither `token` nor `username` and `password`"
        assert lacking.remedy == "Add them instead of 'user'."
        core.patch_namespaced_secret("mlflow", made.namespace, {"stringData": {"username": "x", "password": "y"}})
        assert of(changed(lambda _: None), "secret mlflow") == Finding("ok", "secret mlflow", "of tracking")
    finally:
        core.delete_namespaced_secret("mlflow", made.namespace)


def test_a_quota_that_is_too_small(changed: Callable[..., list[Finding]], core: client.CoreV1Api) -> None:
    """A session needs the accelerators of all learners at the same time."""
    made: Site = changed.site  # type: ignore[attr-defined]
    quota = {"metadata": {"name": "gpus"}, "spec": {"hard": {"requests.nvidia.com/gpu": "1"}}}
    core.create_namespaced_resource_quota(made.namespace, quota)
    try:
        eventually(lambda: core.read_namespaced_resource_quota("gpus", made.namespace).status.hard)
        found = of(changed(lambda _: None), "quota gpus")
        assert found.level == "error"
        assert found.what == ("2 requests.nvidia.com/gpu needed, 1 allowed, by the pods of a session at the same time")
    finally:
        core.delete_namespaced_resource_quota("gpus", made.namespace)


def test_the_launchers_settings(changed: Callable[..., list[Finding]], core: client.CoreV1Api) -> None:
    """The remedy is a command with the settings for the store's own bucket; the Secret that it names is checked."""
    found = of(changed(lambda _: None), "kfp-launcher")
    assert found.level == "warning"
    made: Site = changed.site  # type: ignore[attr-defined]
    words = shlex.split(found.remedy.partition(": ")[2])
    assert words[:6] == ["kubectl", "create", "configmap", "kfp-launcher", "-n", made.namespace]
    data = dict(word.removeprefix("--from-literal=").split("=", 1) for word in words if "--from-literal=" in word)
    assert yaml.safe_load(data["providers"])["s3"]["default"]["endpoint"] == ENDPOINT.removeprefix("http://")
    core.create_namespaced_config_map(made.namespace, {"metadata": {"name": "kfp-launcher"}, "data": data})
    try:
        findings = changed(lambda _: None)
        assert of(findings, "kfp-launcher").what == "artifacts go to s3://federation/artifacts"
        assert '"mlpipeline-minio-artifact" not found' in of(findings, "secret mlpipeline-minio-artifact").what
        secret(core, made.namespace, "mlpipeline-minio-artifact", Credentials("someone", "secret"))
        assert "secret mlpipeline-minio-artifact" not in [one.subject for one in changed(lambda _: None)]
    finally:
        core.delete_namespaced_config_map("kfp-launcher", made.namespace)


def test_images_and_a_store_that_are_not_there(
    changed: Callable[..., list[Finding]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checks that one bad part hides no other."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")

    def change(content: dict[str, Any]) -> None:
        content["images"] = {"registry": "127.0.0.1:1/nowhere"}

    found = changed(change)
    assert of(found, "store").level == "error"
    images = [one for one in found if one.subject.startswith("image ")]
    assert len(images) == 2
    assert all("its registry cannot be reached from here" in one.what for one in images)
    assert of(found, "a").level == "ok"


@pytest.fixture
def no_cluster(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setenv("KUBECONFIG", str(tmp_path / "none"))
        yield


def test_the_command_says_healthy_or_not(changed: Callable[..., list[Finding]]) -> None:
    made: Site = changed.site  # type: ignore[attr-defined]
    with serving() as kfp:
        given = ["doctor", str(made.file), "--host", kfp.url, "--namespace", made.namespace]
        well = CliRunner().invoke(app, given)
        assert well.exit_code == 0, well.output
        assert "Kubeflow Pipelines 2.16.0 answers" in well.output
        assert "errors: 0" in well.output
        changed(placing(node_selector={"pool": "none"}))
        ill = CliRunner().invoke(app, [*given, "--json"])
        assert ill.exit_code == 2
        assert "no node has the labels pool=none" in {one["what"] for one in json.loads(ill.stdout)}


def test_what_could_never_start_is_not_submitted(changed: Callable[..., list[Finding]]) -> None:
    made: Site = changed.site  # type: ignore[attr-defined]
    changed(placing(node_selector={"pool": "none"}))
    with serving() as kfp:
        given = ["submit", str(made.file), "--host", kfp.url, "--namespace", made.namespace]
        refused = CliRunner().invoke(app, given)
        assert isinstance(refused.exception, InputError)
        assert "b: no node has the labels pool=none" in str(refused.exception)
        assert not any(kfp.held.values())
        assert CliRunner().invoke(app, [*given, "--force"]).exit_code == 0
        assert len(kfp.held["runs"]) == 1


def test_without_a_cluster(changed: Callable[..., list[Finding]], no_cluster: None) -> None:
    found = changed(lambda _: None)
    assert "none: the kubeconfig cannot be used" in of(found, "kubernetes").what
    assert of(found, "store").level == "ok"


def test_credentials_stay_secret(changed: Callable[..., list[Finding]], core: client.CoreV1Api) -> None:
    made: Site = changed.site  # type: ignore[attr-defined]
    secret(core, made.namespace, "complete", Credentials("someone", "never-to-be-shown"))
    found = changed(lambda content: content["learners"][0].update(secret="complete"))
    assert of(found, "secret complete").level == "ok"
    assert "never-to-be-shown" not in str(found)
