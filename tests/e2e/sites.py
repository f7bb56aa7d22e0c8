"""A federation that is set up on the cluster: file, pipeline, secrets, and the driver of its runs."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kubernetes import client, config

from fedpipe.federation.file import read_federation
from fedpipe.kubeflow.where import Where
from fedpipe.store import open_store
from fedpipe.store.base import Credentials
from tests.e2e.cluster import NODE, Cluster
from tests.e2e.driver import Pipeline

JOB = "3a5f3e0e-6f0c-4f7e-9a53-0d4a1f0c7b11"
"""The run's id, as KFP would make one."""
POOL = {"node_selector": {"pool": "gpu"}, "accelerator": {"count": 1}, "cpu": "2", "cpu_request": "100m", "memory": "3Gi",
        "memory_request": "1Gi"}  # fmt: skip


@dataclass
class Site:
    """A federation that is set up on the cluster: file, pipeline, and what a test does with it."""

    file: Path
    pipeline: Path
    api: client.ApiClient
    namespace: str

    @property
    def where(self) -> Where:
        return Where(namespace=self.namespace)

    def driver(self, run: str, before: Callable[[dict[str, Any]], None] = lambda _: None) -> Pipeline:
        return Pipeline(self.api, self.namespace, self.pipeline, run, before=before)

    @property
    def store(self) -> Any:
        federation = read_federation(self.file)
        return open_store(federation.store_uri).below(federation.name)


def secret(core: client.CoreV1Api, namespace: str, name: str, keys: Credentials) -> None:
    data = {"accesskey": keys.access_key, "secretkey": keys.secret_key}
    core.create_namespaced_secret(namespace, {"metadata": {"name": name}, "stringData": data})


def in_a_pod(cluster: Cluster, account: tuple[str, str], folder: Path) -> tuple[list[str], dict[str, str]]:
    """Returns what runs a command with the token of a service account at its usual path, and its environment.

    Args:
        cluster: with the account.
        account: its namespace and its name.
        folder: for the token.
    """
    namespace, name = account
    core = client.CoreV1Api(config.new_client_from_config(str(cluster.kubeconfig)))
    made = core.create_namespaced_service_account_token(name, namespace, {"spec": {"expirationSeconds": 3600}})
    files = folder / "serviceaccount"
    files.mkdir()
    (files / "token").write_text(made.status.token)
    (files / "namespace").write_text(namespace)
    shutil.copy(cluster.folder / "certs" / "apiserver.crt", files / "ca.crt")
    mounted = (
        "mkdir -p /run/secrets && mount -t tmpfs none /run/secrets && mkdir /run/secrets/kubernetes.io && "
        'cp -r "$0" /run/secrets/kubernetes.io/serviceaccount && exec "$@"'
    )
    environment = {
        **os.environ, "KUBERNETES_SERVICE_HOST": NODE, "KUBERNETES_SERVICE_PORT": "6443", "KUBECONFIG": str(folder / "none"),
    }  # fmt: skip
    return ["unshare", "--mount", "sh", "-c", mounted, str(files)], environment
