"""The chart on a real cluster: everything applies, installs, answers, is upgraded, rolled back and gone again."""

from __future__ import annotations

import base64
import json
import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml
from kubernetes import client, dynamic
from kubernetes.client.exceptions import ApiException

from fedpipe.errors import StoreError
from fedpipe.kubeflow.forwarding import reachable_store
from fedpipe.kubeflow.where import Where
from fedpipe.registry.prediction import predict
from fedpipe.serving.client import RemoteModel
from fedpipe.serving.kserve import inference_service
from fedpipe.serving.promotion import promote, split_for
from fedpipe.store import MemoryStore, open_store
from fedpipe.store.base import Credentials
from fedpipe.store.s3 import MinioStore
from tests import binaries, servers
from tests.e2e.cluster import Cluster
from tests.e2e.conftest import BUCKET, ENDPOINT, eventually
from tests.e2e.images import REGISTRY
from tests.e2e.sites import Site, in_a_pod, secret

CHART = Path(__file__).parents[2] / "helm" / "fedpipe"
DESCRIPTION = Path(__file__).parents[1] / "serving" / "inferenceservice.yaml"
NAMESPACE = f"serving-{secrets.token_hex(2)}"
FEDERATION = {
    "federation": {
        "name": "digits", "nodes": True,
        "learners": [{"name": "hospital-a", "keys": {"accesskey": "a", "secretkey": "b", "signingkey": "c"}},
                     {"name": "hospital-b", "secret": "there"}],
        "operators": [{"kind": "User", "name": "eve"}, {"kind": "ServiceAccount", "name": "watcher"}],
    },
    "quota": {"hard": {"requests.nvidia.com/gpu": "8"}},
    "priorityClasses": [{"name": "pool-gpu", "value": 1000, "preemptionPolicy": "Never"}],
}  # fmt: skip


@pytest.fixture(scope="module")
def place(core: client.CoreV1Api) -> Iterator[str]:
    """A namespace in which only restricted pods may run."""
    level = {"pod-security.kubernetes.io/enforce": "restricted"}
    core.create_namespace({"metadata": {"name": NAMESPACE, "labels": level}})
    yield NAMESPACE
    core.delete_namespace(NAMESPACE)


@pytest.fixture(scope="module")
def values(trained: Site, core: client.CoreV1Api, place: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model of the federation is served; the server's user is made by the chart's Job."""
    secret(core, place, "administrator", Credentials(servers.ACCESS_KEY, servers.SECRET_KEY))
    secret(core, place, "server", Credentials("chart-server", "secret-of-the-server"))
    path = tmp_path_factory.mktemp("chart") / "values.yaml"
    path.write_text(yaml.safe_dump({
        **FEDERATION,
        "store": {"uri": f"s3://{BUCKET}/hospitals/digits?endpoint={ENDPOINT}", "existingSecret": "server"},
        "bucket": {"enabled": True, "adminSecret": "administrator", "serverSecret": "server", "image": f"{REGISTRY}/core"},
        "image": {"repository": f"{REGISTRY}/serve"},
        "resources": {"requests": {"cpu": "100m", "memory": "256Mi"}, "limits": {"cpu": "1", "memory": "1Gi"}},
    }))  # fmt: skip
    return path


def helm(*arguments: str) -> str:
    done = subprocess.run([str(binaries.find_binary("helm")), "--namespace", NAMESPACE, *arguments],
                          capture_output=True, text=True, check=False)  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def test_every_object_is_applied_by_the_server(api: client.ApiClient, values: Path) -> None:
    """Server-side apply checks each object against Kubernetes' own schemas: a field that is not known is refused."""
    more = ["--set=trialStore.enabled=true,trialStore.secret=administrator,trialStore.storage=1Gi",
            "--set=autoscaling.enabled=true"]  # fmt: skip
    text = helm("template", "all", str(CHART), "--kube-version", "1.34.0", "--values", str(values), *more)
    objects = dynamic.DynamicClient(api)
    applied = []
    for body in filter(None, yaml.safe_load_all(text)):
        resource = objects.resources.get(api_version=body["apiVersion"], kind=body["kind"])
        resource.server_side_apply(
            body=body, namespace=body["metadata"].get("namespace"), field_manager="test",
            dry_run="All", field_validation="Strict",
        )  # fmt: skip
        applied.append(body["kind"])
    assert len(applied) >= 18
    assert {"Job", "Role", "ClusterRole", "NetworkPolicy", "ResourceQuota", "PriorityClass", "Secret"} <= set(applied)


@pytest.fixture
def kserve(api: client.ApiClient) -> Iterator[dynamic.Resource]:
    """InferenceServices, as far as KServe's published description is in the tests."""
    spec = yaml.safe_load(DESCRIPTION.read_text())["properties"]["spec"]
    schema = {"openAPIV3Schema": {"type": "object", "properties": {"spec": spec}}}
    names = {"kind": "InferenceService", "plural": "inferenceservices", "singular": "inferenceservice"}
    version = {"name": "v1beta1", "served": True, "storage": True, "schema": schema}
    definition = {
        "metadata": {"name": "inferenceservices.serving.kserve.io"},
        "spec": {"group": "serving.kserve.io", "scope": "Namespaced", "names": names, "versions": [version]},
    }  # fmt: skip
    extensions = client.ApiextensionsV1Api(api)
    extensions.create_custom_resource_definition(definition)
    found = {"api_version": "serving.kserve.io/v1beta1", "kind": "InferenceService"}
    yield eventually(lambda: dynamic.DynamicClient(api).resources.get(**found))
    extensions.delete_custom_resource_definition("inferenceservices.serving.kserve.io")


def test_kserves_objects_are_applied_by_the_server(
    api: client.ApiClient, kserve: dynamic.Resource, values: Path, place: str
) -> None:
    """The chart's and that of `fedpipe promote`; the container of the ServingRuntime as that of a pod."""

    def apply(resource: dynamic.Resource, body: dict[str, object]) -> None:
        resource.server_side_apply(
            body=body, namespace=place, field_manager="test", dry_run="All", field_validation="Strict"
        )

    more = "--set=kserve.enabled=true,kserve.storageUri=s3://bucket/models,kserve.serviceAccountName=kserve"
    text = helm("template", "all", str(CHART), "--kube-version", "1.34.0", "--values", str(values), more)
    found = {body["kind"]: body for body in filter(None, yaml.safe_load_all(text))}
    runtime = found["ServingRuntime"]["spec"]
    pod = {"securityContext": {"seccompProfile": {"type": "RuntimeDefault"}}, "containers": runtime["containers"]}
    pods = dynamic.DynamicClient(api).resources.get(api_version="v1", kind="Pod")
    apply(pods, {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "runtime"}, "spec": pod})
    apply(kserve, found["InferenceService"])
    models = MemoryStore()
    models.create("digits/2/model.onnx", b"onnx")
    models.uri = "s3://bucket/digits/models"
    promote(models, "digits", split_for(models, "digits", 2))
    manifest = inference_service(models, "digits", runtime=found["ServingRuntime"]["metadata"]["name"])
    apply(kserve, manifest)
    manifest["spec"]["predictor"]["canaryTraffic"] = 10
    with pytest.raises(ApiException, match=r"canaryTraffic: field not declared in schema"):
        apply(kserve, manifest)


def test_installed_upgraded_rolled_back_and_gone(
    core: client.CoreV1Api, trained: Site, values: Path, place: str, cluster: Cluster
) -> None:
    helm("install", "prod", str(CHART), "--values", str(values), "--set", "replicas=1", "--wait", "--wait-for-jobs",
         "--timeout", "5m")  # fmt: skip
    check_servers_user()
    data = trained.file.parent / "digits.npz"
    answer = ask(core, place, data)
    assert "Phase:          Succeeded" in helm("test", "prod", "--timeout", "2m")

    helm("upgrade", "prod", str(CHART), "--values", str(values), "--set", "replicas=2,serving.poll=2", "--wait",
         "--wait-for-jobs", "--timeout", "5m")  # fmt: skip
    assert pods(core, place) == 2
    assert ask(core, place, data) == answer
    helm("rollback", "prod", "1", "--wait", "--timeout", "5m")
    eventually(lambda: pods(core, place) == 1)
    assert ask(core, place, data) == answer
    assert "rollback" in helm("history", "prod").lower()

    helm("uninstall", "prod", "--wait", "--timeout", "3m")
    left = core.list_namespaced_pod(place, label_selector="app.kubernetes.io/instance=prod").items
    assert [pod.metadata.name for pod in left if pod.metadata.deletion_timestamp is None] == []
    assert not core.list_namespaced_service(place).items
    assert "hospital-a" not in str(core.list_namespaced_service_account(place).items)


def ask(core: client.CoreV1Api, place: str, data: Path) -> list[str]:
    """Returns the service's answers to the first digits: the same as those of the model in the store."""
    (service,) = core.list_namespaced_service(place, label_selector="app.kubernetes.io/component=serving").items
    url = f"http://{service.spec.cluster_ip}"
    digits = np.load(data)["x"][:20]
    (made,) = core.list_namespaced_secret(place, label_selector="app.kubernetes.io/component=serving").items
    token = base64.b64decode(made.data["token"]).decode()  # an upgrade and a rollback keep it
    return [str(c) for c in eventually(lambda: list(predict(RemoteModel(url, token=token), digits).classes))]


def pods(core: client.CoreV1Api, place: str) -> int:
    found = core.list_namespaced_pod(place, label_selector="app.kubernetes.io/component=serving").items
    return sum(pod.metadata.deletion_timestamp is None for pod in found)


def check_servers_user() -> None:
    """The Job of the chart has made it, with the policy of a server: it reads models, and nothing else."""
    keys = Credentials("chart-server", "secret-of-the-server")
    server = MinioStore(BUCKET, "hospitals/digits", endpoint=ENDPOINT, credentials=keys)
    assert [key for key in server.keys("models/digits/") if key.endswith("model.onnx")]
    for act in (lambda: server.read("HEAD"), lambda: server.create("models/digits/9/model.onnx", b"x")):
        with pytest.raises(StoreError):
            act()


def test_an_operator_may_watch_and_no_more(
    api: client.ApiClient,
    core: client.CoreV1Api,
    cluster: Cluster,
    trained: Site,
    values: Path,
    place: str,
    tmp_path: Path,
) -> None:
    """RBAC with least rights, as the apiserver decides it; and what doctor sees with them, as a pod would ask."""
    helm("install", "roles", str(CHART), "--values", str(values), "--set", "serving.enabled=false,bucket.enabled=false")
    try:
        allowed = {
            ("list", "pods", ""): True, ("get", "pods", "log"): True, ("list", "resourcequotas", ""): True,
            ("get", "secrets", ""): False, ("create", "pods", ""): False, ("delete", "pods", ""): False,
            ("get", "pods", "exec"): False,
        }  # fmt: skip
        authorization = client.AuthorizationV1Api(api)
        for (verb, resource, part), expected in allowed.items():
            attributes = {"namespace": place, "verb": verb, "resource": resource, "subresource": part}
            body = {"spec": {"user": "eve", "resourceAttributes": attributes}}
            answer = authorization.create_subject_access_review(body)
            assert answer.status.allowed is expected, (verb, resource, part)
        found = doctor_in_a_pod(core, cluster, trained, place, tmp_path)
        assert found["kubernetes"]["what"] == f"answers; runs are in namespace {place}"
        assert found["hospital-a"]["what"].startswith("fits on 1 of 1 nodes")
        assert found["secret hospitals-hospital-a"]["what"].endswith("you are not allowed to read it")
        assert found["kubeflow"]["what"].startswith("ml-pipeline.kubeflow.svc.cluster.local")
    finally:
        helm("uninstall", "roles")


def doctor_in_a_pod(
    core: client.CoreV1Api, cluster: Cluster, trained: Site, place: str, folder: Path
) -> dict[str, dict[str, str]]:
    """Returns the findings of doctor with the token of a pod with the service account `watcher`, at its usual path."""
    core.create_namespaced_service_account(place, {"metadata": {"name": "watcher"}})
    command, environment = in_a_pod(cluster, (place, "watcher"), folder)
    doctor = [sys.executable, "-m", "fedpipe", "doctor", str(trained.file), "--json"]
    done = subprocess.run([*command, *doctor], env=environment, capture_output=True, text=True, check=False)
    return {one["subject"]: one for one in json.loads(done.stdout)}


def test_a_trial_store(cluster: Cluster, core: client.CoreV1Api, place: str, values: Path, trial_image: str) -> None:
    """For a first try: a MinIO of the chart's own, with the bucket and the coordinator's user made by the Job."""
    secret(core, place, "coordinator", Credentials("trial-coordinator", "secret-of-the-coordinator"))
    uri = f"s3://trial/digits?endpoint=http://trial-fedpipe-store.{place}.svc.cluster.local:9000"
    helm("install", "trial", str(CHART), "--wait", "--wait-for-jobs", "--timeout", "4m",
         "--set", f"serving.enabled=false,trialStore.enabled=true,trialStore.secret=administrator,trialStore.image={trial_image}",
         "--set", f"bucket.enabled=true,bucket.adminSecret=administrator,bucket.coordinatorSecret=coordinator,"
         f"bucket.image={REGISTRY}/core,store.uri={uri}")  # fmt: skip
    (service,) = core.list_namespaced_service(place, label_selector="app.kubernetes.io/component=store").items
    where = f"s3://trial?endpoint=http://{service.spec.cluster_ip}:9000"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "trial-coordinator")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secret-of-the-coordinator")
        assert open_store(where).below("digits").create("runs/x", b"1")
        with pytest.raises(StoreError):
            open_store(where).below("other").create("runs/x", b"1")
        inside = uri.replace("/digits?", "?")
        with reachable_store(inside, Where()) as near:  # from outside, where the service's name means nothing
            assert near.startswith("s3://trial?endpoint=http%3A%2F%2F127.0.0.1%3A")
            assert open_store(near).below("digits").read("runs/x").data == b"1"
            large = bytes(range(256)) * 20_000
            assert open_store(near).below("digits").create("runs/large", large)
            assert open_store(near).below("digits").read("runs/large", limit=10**7).data == large
        with reachable_store(inside.replace(".svc.cluster.local", ""), Where()) as near:
            assert open_store(near).below("digits").read("runs/x").data == b"1"
    helm("uninstall", "trial", "--wait")


def test_names_that_the_schema_refuses(values: Path) -> None:
    done = subprocess.run(
        [str(binaries.find_binary("helm")), "template", "x", str(CHART), "--values", str(values), "--kube-version", "1.34.0",
         "--set", "federation.learners[0].name=Not_A_Name"], capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode
    assert "federation" in done.stderr
