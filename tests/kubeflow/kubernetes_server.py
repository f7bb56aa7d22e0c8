"""Answers requests as a Kubernetes does that has some objects; tests/e2e has a real one."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml


@contextlib.contextmanager
def answering(objects: Mapping[str, Any], kubeconfig: Path) -> Iterator[list[str]]:
    """Starts a server, writes its kubeconfig, and yields the paths that it was asked for.

    Args:
        objects: by their paths.
        kubeconfig: the file to write.
    """
    paths: list[str] = []

    class Api(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            paths.append(self.path)
            found = objects.get(self.path)
            self.send_response(200 if found else 404)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(json.dumps(found or {"kind": "Status", "message": "not found"}).encode())

        def log_message(self, format: str, *arguments: Any) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Api) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        config = {
            "apiVersion": "v1", "kind": "Config", "current-context": "c", "users": [{"name": "u", "user": {}}],
            "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
            "clusters": [{"name": "k", "cluster": {"server": f"http://127.0.0.1:{server.server_port}"}}],
        }  # fmt: skip
        kubeconfig.write_text(yaml.safe_dump(config))
        yield paths
        server.shutdown()
