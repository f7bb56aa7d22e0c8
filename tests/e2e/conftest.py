"""One cluster, one store and the images for all tests here; a machine without the tools fails, and names them."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import minio
import pytest
import urllib3
import yaml
from kubernetes import client, config

from fedpipe.commands.identities import enroll, policy_of
from fedpipe.compiled.compiler import compile_pipeline
from fedpipe.federation.file import read_federation
from fedpipe.identity.signing import COORDINATOR
from fedpipe.kubeflow.doctor.diagnosis import diagnose
from fedpipe.store import open_store
from fedpipe.store.base import Credentials
from fedpipe.store.users import Users
from fedpipe.version import __version__
from tests import binaries, servers
from tests.e2e import cluster as clusters
from tests.e2e import images
from tests.e2e.cluster import Cluster
from tests.e2e.images import REGISTRY
from tests.e2e.sites import JOB, POOL, Site, secret

ON_NODE = ("core", "keras", "serve")
"""The image of TFF runs in test_images.py: to copy its 3 GB takes a minute."""
ENDPOINT = f"http://{clusters.NODE}:9000"
BUCKET = "federation"


@pytest.fixture(scope="session")
def programs(containers: None) -> Iterator[Future[None]]:
    """Binaries that Go builds the first time, while the images wait for downloads and disks."""

    def build() -> None:
        binaries.find_kubernetes()
        for name in ("minio", "helm", "kube-network-policies"):
            binaries.find_binary(name)

    with ThreadPoolExecutor(1) as beside:
        yield beside.submit(build)


@pytest.fixture(scope="session")
def built(containers: None, programs: Future[None]) -> dict[str, str]:
    """Digests of the images, built from this work tree."""
    return images.build()


@pytest.fixture(scope="session")
def containers() -> Iterator[None]:
    """Settings with which podman works on machines of few rights."""
    if lacking := clusters.missing():
        pytest.fail(f"no cluster can run here: {lacking}")
    with images.podman_settings():
        yield


@pytest.fixture(scope="session")
def cluster(
    tmp_path_factory: pytest.TempPathFactory, built: dict[str, str], programs: Future[None]
) -> Iterator[Cluster]:
    """A real Kubernetes with one node, that holds the images."""
    programs.result()
    started = os.environ.get("FEDPIPE_E2E_CLUSTER")  # by `python -m tests.e2e.cluster`
    at = clusters.attached(Path(started)) if started else clusters.running(tmp_path_factory.mktemp("cluster"))
    ended = threading.Event()
    with at as running:
        with ThreadPoolExecutor() as pool:  # it is processors that unpacking waits for
            list(pool.map(lambda name: images.load(running, name, built[name], __version__), ON_NODE))
        telling = threading.Thread(target=_tell_names, args=(running, ended))
        telling.start()
        yield running
        ended.set()
        telling.join()


def _tell_names(cluster: Cluster, ended: threading.Event) -> None:
    """Makes the names of services known to pods, as CoreDNS does."""
    core = client.CoreV1Api(config.new_client_from_config(str(cluster.kubeconfig)))
    while not ended.wait(1):
        for service in core.list_service_for_all_namespaces().items:
            name = f"{service.metadata.name}.{service.metadata.namespace}.svc.cluster.local"
            cluster.tell_name(name, service.spec.cluster_ip)


@pytest.fixture(scope="session")
def kubeconfig(cluster: Cluster) -> Iterator[Path]:
    """The kubeconfig of an administrator, for fedpipe, helm and the tests themselves."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KUBECONFIG", str(cluster.kubeconfig))
        yield cluster.kubeconfig


@pytest.fixture(scope="session")
def api(kubeconfig: Path) -> client.ApiClient:
    """A client of the cluster's API."""
    return config.new_client_from_config(str(kubeconfig))


@pytest.fixture(scope="session")
def core(api: client.ApiClient) -> client.CoreV1Api:
    """Pods, secrets and nodes."""
    return client.CoreV1Api(api)


@pytest.fixture(scope="session")
def namespace(core: client.CoreV1Api) -> str:
    """A namespace in which only restricted pods may run."""
    level = {"pod-security.kubernetes.io/enforce": "restricted"}
    name = f"hospitals-{secrets.token_hex(2)}"
    core.create_namespace({"metadata": {"name": name, "labels": level}})
    return name


@pytest.fixture(scope="session")
def trial_image(cluster: Cluster) -> str:
    """MinIO as an image on the node."""
    name = "fedpipe.test/minio:1"
    images.load_binary(cluster, binaries.find_binary("minio"), name)
    return name


@pytest.fixture(scope="session")
def store(cluster: Cluster) -> Iterator[str]:
    """URI of a bucket on a real MinIO next to the pods; its administrator's keys are in the environment."""
    data = cluster.folder / f"minio-{secrets.token_hex(2)}"
    data.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINIO_ROOT_USER", servers.ACCESS_KEY)
        patch.setenv("MINIO_ROOT_PASSWORD", servers.SECRET_KEY)
        patch.setenv("AWS_ACCESS_KEY_ID", servers.ACCESS_KEY)
        patch.setenv("AWS_SECRET_ACCESS_KEY", servers.SECRET_KEY)
        for name in ("AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL", "AWS_REGION"):
            patch.delenv(name, raising=False)
        address = ENDPOINT.removeprefix("http://")
        cluster.start("minio", binaries.find_binary("minio"), "server", "--quiet", "--address", address, str(data))
        pool = urllib3.PoolManager(retries=False, timeout=5)
        admin = minio.Minio(
            address, servers.ACCESS_KEY, servers.SECRET_KEY, secure=False, region="us-east-1", http_client=pool
        )
        eventually(lambda: admin.make_bucket(BUCKET) is None)
        yield f"s3://{BUCKET}?endpoint={ENDPOINT}"


def eventually(act: Callable[[], Any], seconds: float = 60) -> Any:
    """Repeat an act until its result is true, and return that; raise its last failure after so many seconds."""
    last: Exception | None = None
    for _ in range(int(seconds * 2)):
        try:
            if found := act():
                return found
        except Exception as error:
            last = error
        time.sleep(0.5)
    raise AssertionError(f"not in {seconds:.0f} s") from last


@pytest.fixture(scope="session")
def pool(core: client.CoreV1Api) -> None:
    """The node is of the pool `gpu`, and has two of what learners ask for."""
    name = core.list_node().items[0].metadata.name
    core.patch_node(name, {"metadata": {"labels": {"pool": "gpu"}}})
    patch = [{"op": "add", "path": "/status/capacity/nvidia.com~1gpu", "value": "2"}]
    core.patch_node_status(name, patch)
    eventually(lambda: core.read_node(name).status.allocatable.get("nvidia.com/gpu") == "2")


@pytest.fixture(scope="session")
def site(
    tmp_path_factory: pytest.TempPathFactory, store: str, api: client.ApiClient, core: client.CoreV1Api, namespace: str, pool: None,
    built: dict[str, str],
) -> Callable[..., Site]:  # fmt: skip
    """Sets a federation up: users, secrets, data, pipeline."""

    def make(prefix: str, learners: list[dict[str, Any]], *, endpoint: str = ENDPOINT, enrolled: bool = True,
             training: dict[str, Any] | None = None, framework: str = "keras", start: str = "averaging",
             **more: Any) -> Site:  # fmt: skip
        folder = tmp_path_factory.mktemp("sites") / prefix
        command = [sys.executable, "-m", "fedpipe", "init", str(folder), "--framework", framework, "--algorithm", start]
        subprocess.run(command, check=True, capture_output=True)
        file = folder / "federation.yaml"
        content = yaml.safe_load(file.read_text())
        where = f"s3://{BUCKET}/{prefix}?endpoint={ENDPOINT}"
        content |= {
            "store": where, "learners": learners, "secret": f"{prefix}-coordinator",
            "images": {"registry": REGISTRY, "digests": built},
        }  # fmt: skip
        files = {"digits/datasets/digits.npz": "digits.npz"}
        if start == "split":  # each party has a file of its own, where nobody else reads
            files = {f"{content['name']}/learners/{one['name']}/rows.npz": f"{one['name']}.npz" for one in learners}
            for learner, key in zip(learners, files, strict=True):
                learner["data"] = f"s3://{BUCKET}/{prefix}/{key}?endpoint={ENDPOINT}"
        else:
            content["data"] |= {"uri": f"s3://{BUCKET}/{prefix}/{next(iter(files))}?endpoint={ENDPOINT}"}
            content["data"]["shards"]["minimum"] = 50
        content["training"] |= {"rounds": 2, "local_epochs": 1, **(training or {})}
        content["quorum"] = {"min_learners": len(learners), "deadline": 600}
        content |= more
        file.write_text(yaml.safe_dump(content))
        for key, name in files.items():
            open_store(where).upload(key, folder / name)
        if enrolled:
            for learner in learners:
                learner["secret"] = f"{prefix}-{learner['name']}"
            file.write_text(yaml.safe_dump(content))
            for who in (COORDINATOR, *(learner["name"] for learner in learners)):
                core.create_namespaced_secret(namespace, yaml.safe_load(enroll(file, who).files[1].read_text()))
        else:
            coordinator = Credentials(f"{prefix}-coordinator", "a-secret-of-the-coordinator")
            Users(where).put(coordinator, policy_of(file))
            secret(core, namespace, f"{prefix}-coordinator", coordinator)
        content["store"] = f"s3://{BUCKET}/{prefix}?endpoint={endpoint}"
        file.write_text(yaml.safe_dump(content))
        compile_pipeline(read_federation(file), folder / "pipeline.yaml")
        content["store"] = where  # a test looks at the store itself
        file.write_text(yaml.safe_dump(content))
        return Site(file, folder / "pipeline.yaml", api, namespace)

    return make


@pytest.fixture(scope="session")
def trained(site: Callable[..., Site]) -> Site:
    """A federation of two learners whose session has run as pods."""
    made = site("hospitals", [{"name": name, "placement": POOL} for name in ("hospital-a", "hospital-b")])
    assert [f for f in diagnose(made.file, where=made.where) if f.level == "error" and f.subject != "kubeflow"] == []
    results = made.driver(JOB).run({"run": "session"})
    assert len(results) == 6 + 2  # shard to report, learn
    return made
