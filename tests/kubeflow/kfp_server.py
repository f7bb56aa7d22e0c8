"""Serves KFP's API for tests, and checks requests against the models of that API.

It runs no pipelines: it shows the requests of a command, their order, and the objects that remain when KFP refuses.
Like KFP, it refuses a body with an unknown field or a field of another type.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kfp_server_api
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from fedpipe.kubeflow.where import Where

ROOT = "/apis/v2beta1"
KINDS = {
    "experiments": ("experiment_id", kfp_server_api.V2beta1Experiment),
    "pipelines": ("pipeline_id", kfp_server_api.V2beta1Pipeline),
    "runs": ("run_id", kfp_server_api.V2beta1Run),
    "recurringruns": ("recurring_run_id", kfp_server_api.V2beta1RecurringRun),
}
LISTS = {"recurringruns": "recurringRuns", "versions": "pipeline_versions"}


class KfpServer:
    """Records requests in `asked` and objects in `held`; requests that match `refuse`, or lack `prefix`, fail.

    Runs have no state until a test gives them one; with `state`, they have it at once.
    """

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, Any]] = []
        self.held: dict[str, dict[str, dict[str, Any]]] = {kind: {} for kind in (*KINDS, "versions")}
        self.files: dict[str, bytes] = {}
        self.refuse: tuple[str, str, int, str] | None = None
        self.token = ""
        self.prefix = ""
        self.state = ""
        self.page = 2
        self.health: Any = {"multi_user": False, "tag_name": "2.16.0", "commit_sha": "0"}
        self._ids = itertools.count(1)
        self.url = ""

    def where(self, **more: Any) -> Where:
        """Locates this server for the commands."""
        return Where(host=self.url, **more)

    def app(self) -> Starlette:
        return Starlette(routes=[Route("/{path:path}", self._answer, methods=["GET", "POST", "DELETE"])])

    async def _answer(self, request: Request) -> Response:
        if not request.url.path.startswith(self.prefix):
            return JSONResponse({"message": "404 page not found"}, 404)
        path, body = request.url.path.removeprefix(self.prefix).removeprefix(ROOT), await request.body()
        upload = path == "/pipelines/upload_version"
        given = json.loads(body) if body and not upload else None
        self.asked.append((request.method, path, given))
        if self.token and request.headers.get("authorization") != f"Bearer {self.token}":
            return JSONResponse({"error": "token expired", "code": 16}, 401)
        if self.refuse and self.refuse[0] == request.method and self.refuse[1] in path:
            return JSONResponse({"error": self.refuse[3], "message": self.refuse[3], "code": 13}, self.refuse[2])
        if path == "/healthz":
            return Response(self.health) if isinstance(self.health, str) else JSONResponse(self.health)
        if upload:
            return self._upload(request, body)
        return self._handle(request, path, given)

    def _upload(self, request: Request, body: bytes) -> Response:
        boundary = request.headers["content-type"].partition("boundary=")[2].encode()
        part = body.split(b"--" + boundary)[1].partition(b"\r\n\r\n")[2].removesuffix(b"\r\n")
        key, query = f"version-{next(self._ids)}", request.query_params
        made = {"pipeline_version_id": key, "pipeline_id": query["pipelineid"], "display_name": query["name"]}
        self.files[key], self.held["versions"][key] = part, made
        return JSONResponse(made)

    def _handle(self, request: Request, path: str, given: Any) -> Response:
        parts = path.strip("/").split("/")
        kind = "versions" if len(parts) > 2 and parts[2] == "versions" else parts[0]
        if request.method == "GET" and kind in self.held and len(parts) % 2:
            return self._list(kind, request)
        if request.method == "POST" and len(parts) == 1:
            return self._create(kind, given)
        key, _, action = parts[-1].partition(":")
        if key not in self.held[kind]:
            return JSONResponse({"error": f"{key} not found"}, 404)
        if request.method == "GET":
            return JSONResponse(self.held[kind][key])
        if action:
            self.held[kind][key] |= {"status": {"enable": "ENABLED", "disable": "DISABLED"}[action]}
        elif request.method == "DELETE":
            del self.held[kind][key]
        return JSONResponse({})

    def _list(self, kind: str, request: Request) -> Response:
        """Returns pages of at most `page` objects: two by default, so that each reader must follow the pages."""
        found = list(self.held[kind].values())
        if text := request.query_params.get("filter"):
            (predicate,) = json.loads(text)["predicates"]
            assert predicate["key"] == "display_name"
            found = [one for one in found if one["display_name"] == predicate["stringValue"]]
        start = int(request.query_params.get("page_token") or 0)
        end = start + min(self.page, int(request.query_params.get("page_size") or self.page))
        answer: dict[str, Any] = {LISTS.get(kind, kind): found[start:end]}
        if end < len(found):
            answer["next_page_token"] = str(end)
        return JSONResponse(answer)

    def _create(self, kind: str, given: Any) -> Response:
        id_name, model = KINDS[kind]
        if wrong := _difference(given, model):
            return JSONResponse({"error": f"invalid {kind}: {wrong}"}, 400)
        key = f"{kind}-{next(self._ids)}"
        made = {**given, id_name: key}
        if kind == "recurringruns":
            made["status"] = {"ENABLE": "ENABLED"}.get(given["mode"], "DISABLED")
        if kind == "runs":
            made |= {"created_at": "2026-11-21T12:00:00Z", **({"state": self.state} if self.state else {})}
        self.held[kind][key] = made
        return JSONResponse(made)


def _difference(given: Any, model: Any) -> str:
    """Describes how a body differs from a generated model; empty when it fits."""
    names = {key: (name, model.openapi_types[name]) for name, key in model.attribute_map.items()}
    for key, value in given.items():
        if key not in names:
            return f"unknown field {key!r}"
        kind = names[key][1]
        inner = getattr(kfp_server_api, kind, None)
        if inner is not None and hasattr(inner, "openapi_types") and isinstance(value, dict):
            if wrong := _difference(value, inner):
                return f"{key}: {wrong}"
        elif kind == "str" and not isinstance(value, (str, int)):  # int64 travels as either
            return f"{key} is not a text"
        elif kind == "bool" and not isinstance(value, bool):
            return f"{key} is not a boolean"
    return ""


@contextlib.contextmanager
def serving(certificates: Path | None = None, address: str = "127.0.0.1") -> Iterator[KfpServer]:
    """Starts a server on a free port; with TLS by the certificate in a folder, as `make_certificates` writes it."""
    kfp, files = KfpServer(), dict[str, Any]()
    if certificates:
        files = {"ssl_certfile": certificates / "public.crt", "ssl_keyfile": str(certificates / "private.key")}
    server = uvicorn.Server(uvicorn.Config(kfp.app(), log_level="error", ws="none", **files))
    with socket.create_server((address, 0), backlog=64) as listener:  # clients that come early wait in its queue
        kfp.url = f"{'https' if certificates else 'http'}://{address}:{listener.getsockname()[1]}"
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield kfp
        finally:
            server.should_exit = True
            thread.join()
