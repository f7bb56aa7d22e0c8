"""A federation that is set up on the cluster: file, pipeline, secrets, and the driver of its runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kubernetes import client

from fedpipe.federation.file import read_federation
from fedpipe.kubeflow.where import Where
from fedpipe.store import open_store
from fedpipe.store.base import Credentials
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
