"""Ports that are forwarded to a store in a cluster, with a server that answers as Kubernetes does."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from fedpipe.kubeflow.forwarding import reachable_stores
from fedpipe.kubeflow.where import Where

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
    paths: list[str] = []

    class Api(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            paths.append(self.path)
            found = ANSWERS.get(self.path)
            self.send_response(200 if found else 404)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(json.dumps(found or {"kind": "Status", "message": "not found"}).encode())

        def log_message(self, format: str, *arguments: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Api)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    config = {
        "apiVersion": "v1", "kind": "Config", "current-context": "c", "users": [{"name": "u", "user": {}}],
        "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
        "clusters": [{"name": "k", "cluster": {"server": f"http://127.0.0.1:{server.server_port}"}}],
    }  # fmt: skip
    (tmp_path / "kubeconfig").write_text(yaml.safe_dump(config))
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    yield paths
    server.shutdown()
    server.server_close()


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
