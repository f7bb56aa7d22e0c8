"""Ports that are forwarded to a store in a cluster, with a server that answers as Kubernetes does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fedpipe.cli.main import app
from fedpipe.errors import ClusterError
from fedpipe.kubeflow.forwarding import reachable_store, reachable_stores
from fedpipe.kubeflow.where import Where
from tests.federations import change
from tests.kubeflow.kubernetes_server import answering

PORTS = [{"name": "api", "port": 9000}]
POD = {"ip": "10.0.0.1", "targetRef": {"kind": "Pod", "name": "minio-0"}}
ANSWERS: dict[str, Any] = {
    "/api/v1/namespaces/storage/services/minio": {"kind": "Service", "apiVersion": "v1", "spec": {"ports": PORTS}},
    "/api/v1/namespaces/storage/endpoints/minio": {
        "kind": "Endpoints", "apiVersion": "v1", "subsets": [{"addresses": [POD], "ports": PORTS}],
    },
}  # fmt: skip


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The paths that were asked of a cluster, which the kubeconfig names."""
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    with answering(ANSWERS, tmp_path / "kubeconfig") as paths:
        yield paths


def test_one_port_for_all_datasets_of_a_store(asked: list[str]) -> None:
    at = "?endpoint=http://minio.storage.svc.cluster.local:9000"
    with reachable_stores(Where()) as reached:
        first, second = reached(f"s3://data/a.npz{at}"), reached(f"s3://data/b.npz{at}")
        elsewhere = reached("s3://data/c.npz?endpoint=http://127.0.0.1:9")
    assert sorted(asked) == sorted(ANSWERS)
    address = first.removeprefix("s3://data/a.npz?endpoint=http%3A%2F%2F127.0.0.1%3A")
    assert address.isdecimal()
    assert second == f"s3://data/b.npz?endpoint=http%3A%2F%2F127.0.0.1%3A{address}"
    assert elsewhere == "s3://data/c.npz?endpoint=http://127.0.0.1:9"


@pytest.mark.parametrize("host", ["minio", "minio.storage", "minio.storage.svc", "minio.storage.svc.cluster.local"])
def test_a_service_by_each_of_its_names(asked: list[str], host: str) -> None:
    """A bare name is of the namespace of the pods."""
    with reachable_store(f"s3://data/prefix?endpoint=http://{host}:9000", Where(namespace="storage")) as uri:
        assert uri.startswith("s3://data/prefix?endpoint=http%3A%2F%2F127.0.0.1%3A")
    assert sorted(asked) == sorted(ANSWERS)


@pytest.mark.parametrize("host", ["minio.storage", "minio.storage.svc"])
def test_commands_reach_a_store_by_either_name(asked: list[str], numpy_digits: Path, host: str) -> None:
    """The service is found, but no pod of it is ready at this port."""
    change(numpy_digits, **{"store: store": f"store: s3://data/prefix?endpoint=http://{host}:9001"})
    done = CliRunner().invoke(app, ["runs", "-f", str(numpy_digits / "federation.yaml")])
    assert "service minio.storage: no pod is ready at port 9001" in str(done.exception)
    assert sorted(asked) == sorted(ANSWERS)


def test_a_short_name_that_is_no_service(asked: list[str]) -> None:
    """It may be a host that only pods can resolve; a whole name of a cluster is an error."""
    uri = "s3://data/prefix?endpoint=http://storage-box:9000"
    with reachable_store(uri, Where(namespace="storage")) as same:
        assert same == uri
    whole = "s3://data/prefix?endpoint=http://storage-box.storage.svc:9000"
    with pytest.raises(ClusterError, match=r"service storage-box\.storage: not found"), reachable_store(whole, Where()):
        raise AssertionError
    assert len(asked) == 2
