"""Defines the routes of the server: the Open Inference Protocol, the models and their states, metrics, and a page."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hmac
import itertools
import logging
import re
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from importlib import resources
from typing import Any, NamedTuple

import msgspec
from starlette.routing import Route, Router
from starlette.types import Receive, Scope, Send

from fedpipe.serving.follower import Follower, Served
from fedpipe.serving.limits import Limits
from fedpipe.serving.measures import Measures
from fedpipe.serving.memory import Memory, Share
from fedpipe.serving.protocol import HEADER_LENGTH, Answer, Request, answer, parse, size_of_answer
from fedpipe.serving.responses import JSON, Response, json_response, metadata_of, refusal, send_response
from fedpipe.serving.runner import Batching, Runner
from fedpipe.serving.runtime import Loaded
from fedpipe.serving.tensors import Array, RequestError, Room
from fedpipe.serving.waiting import within
from fedpipe.version import __version__

log = logging.getLogger("fedpipe")
_PAGE_RULES = (
    b"content-security-policy",
    b"default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' blob: data:; "
    b"form-action 'none'; base-uri 'none'; frame-ancestors 'none'",
)
_INFERENCE = re.compile(r"/v2/models/(?P<model>[^/]+)(?:/versions/(?P<version>[^/]+))?/infer")
_PUBLIC_PATHS = ("/", "/page.js", "/page.css", "/v2/health/live", "/v2/health/ready")
"""Paths that reveal nothing about a model and need no token."""


_LARGE = 2**16
"""Bytes from which a request or an answer is read, written and measured in a thread, one at a time."""


Handler = Callable[["Call"], Any]


class Call(NamedTuple):
    """Holds a request while it is answered."""

    scope: Scope
    receive: Receive
    headers: Mapping[bytes, bytes]

    @property
    def parameters(self) -> dict[str, str]:
        """Returns the parameters of the path."""
        parameters: dict[str, str] = self.scope["path_params"]
        return parameters


class App:
    """Serves all routes as one ASGI application.

    Args:
        follower: provides the loaded versions.
        measures: records the metrics.
        pool: threads, one for each concurrent run.
        limits: limits of requests.
        batching: how requests are combined.
        token: bearer token that clients must send; empty: none.
        access_log: write each request as a line of JSON to standard output.
    """

    def __init__(
        self, follower: Follower, measures: Measures, pool: ThreadPoolExecutor, *, limits: Limits | None = None,
        batching: Batching | None = None, token: str = "", access_log: bool = False,
    ) -> None:  # fmt: skip
        self._follower, self._measures, self._pool = follower, measures, pool
        self._limits, self._batching = limits or Limits(), batching or Batching()
        self._token, self._access_log = token.encode(), access_log
        self._numbers = itertools.count()
        self._runners: dict[int, Runner] = {}
        self._memory = Memory(max(self._limits.memory, 2 * self._limits.body))
        self._desk = ThreadPoolExecutor(1, "parse")
        self._open_inferences = 0
        self.draining = False
        self._inference = _Endpoint(self, self._infer, "POST")
        self._router = Router(self._routes(), redirect_slashes=False, default=_Endpoint(self, None, "GET"))

    def _routes(self) -> list[Route]:
        latest, versioned = "/v2/models/{model}", "/v2/models/{model}/versions/{version}"
        templates = resources.files("fedpipe") / "templates"
        paths = (latest, versioned)
        routes = [
            self._route("/v2", self._server),
            self._route("/v2/health/live", self._live),
            self._route("/v2/health/ready", self._ready),
            self._route("/models", self._models),
            self._route("/metrics", self._metrics),
        ]
        for path in paths:
            routes += [self._route(path, self._model), self._route(f"{path}/ready", self._model_ready)]
        for path, name, kind in (
            ("/", "serve.html", "text/html"),
            ("/page.js", "serve.js", "text/javascript"),
            ("/page.css", "serve.css", "text/css"),
        ):
            headers = ((b"content-type", f"{kind}; charset=utf-8".encode()), _PAGE_RULES)
            routes.append(self._route(path, _constant(Response(200, (templates / name).read_bytes(), headers))))
        return routes

    def _route(self, path: str, handler: Handler, method: str = "GET") -> Route:
        return Route(path, _Endpoint(self, handler, method))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Implements ASGI."""
        if scope["type"] != "http":
            return
        if found := _INFERENCE.fullmatch(scope["path"]):  # by far the most requests: the table of routes takes longer
            scope["path_params"] = {name: value for name, value in found.groupdict().items() if value is not None}
            await self._inference(scope, receive, send)
        else:
            await self._router(scope, receive, send)

    async def handle(self, handler: Handler | None, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request, even if its handler fails."""
        started = time.perf_counter()
        headers = dict(scope["headers"])
        try:
            self._authenticate(scope, headers)
            if handler is None:
                raise RequestError(404, f"the path {scope['path'][:200]!r} does not exist")
            response = await handler(Call(scope, receive, headers))
        except RequestError as error:
            response = refusal(error, scope)
        except _DisconnectedError:
            return
        except Exception:
            log.exception("a request failed")
            response = refusal(RequestError(500, "the server failed; its log shows why"), scope)
        seconds = time.perf_counter() - started
        self._measures.record_request(response.model, response.version, response.status, seconds)
        try:
            await send_response(response, send, self._limits.seconds)
        finally:
            if response.share:
                response.share.release()
        if self._access_log:
            self._log_access(scope, response, seconds)

    def _authenticate(self, scope: Scope, headers: Mapping[bytes, bytes]) -> None:
        if not self._token or scope["path"] in _PUBLIC_PATHS:
            return
        scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
        if scheme.lower() != b"bearer" or not hmac.compare_digest(token.strip(), self._token):
            raise RequestError(401, "a valid bearer token is required")

    def _log_access(self, scope: Scope, response: Response, seconds: float) -> None:
        line = {
            "time": time.time(),
            "client": (scope.get("client") or ("",))[0],
            "method": scope["method"],
            "path": scope["path"],
            "status": response.status,
            "seconds": round(seconds, 6),
            "bytes": response.size,
            "model": response.model,
            "version": response.version,
        }
        with contextlib.suppress(OSError):  # the reader of the log may have closed it
            sys.stdout.write(msgspec.json.encode(line).decode() + "\n")
            sys.stdout.flush()

    # Handlers.

    async def _server(self, _: Call) -> Response:
        return json_response({"name": "fedpipe", "version": __version__, "extensions": ["binary_tensor_data"]})

    async def _live(self, _: Call) -> Response:
        return json_response({"live": True})

    async def _ready(self, _: Call) -> Response:
        why_not = self._why_not_ready()
        problems = [self._follower.trouble] if self._follower.trouble else []
        problems += [f"{entry}: {failure.why}" for entry, failure in self._follower.failures.items()]
        content: dict[str, Any] = {"ready": not why_not, "degraded": bool(problems)}
        if not self._token:  # with a token, details are only at /models
            content |= {"why": problems, **({"error": why_not} if why_not else {})}
        return json_response(content, status=503 if why_not else 200)

    def _why_not_ready(self) -> str:
        """Returns why clients must not send requests now; empty if they may."""
        if self.draining:
            return "the server is shutting down"
        if not self._follower.has_refreshed:  # a server is ready once all of its models are loaded
            return "the models are not loaded yet"
        if not self._follower.served:
            return self._follower.trouble or f"no model below {self._follower.uri} can be served"
        return ""

    async def _models(self, _: Call) -> Response:
        """Lists every model with the versions that answer and those that failed; not part of the protocol."""
        failures = self._follower.failures
        names = sorted({*self._follower.served, *(entry.name for entry in failures)})
        return json_response({"models": [self._describe(name) for name in names], "trouble": self._follower.trouble})

    def _describe(self, name: str) -> dict[str, Any]:
        served = self._follower.served.get(name)
        failed = {str(e.version): f.why for e, f in self._follower.failures.items() if e.name == name}
        description: dict[str, Any] = {"name": name, "failed": failed}
        if served:
            description |= {
                "traffic": str(served.split),
                "version": served.primary.entry.version,
                "canary": served.canary.entry.version if served.canary else None,
                **metadata_of(served.primary, served),
            }
        return description

    async def _metrics(self, _: Call) -> Response:
        headers = ((b"content-type", b"text/plain; version=0.0.4; charset=utf-8"),)
        return Response(200, self._measures.render(self._follower, not self._why_not_ready()), headers)

    async def _model(self, call: Call) -> Response:
        loaded, served = self._find(call)
        return json_response(metadata_of(loaded, served))

    async def _model_ready(self, call: Call) -> Response:
        loaded, _ = self._find(call)
        return json_response(
            {"name": loaded.entry.name, "ready": not self.draining}, status=503 if self.draining else 200
        )

    def _find(self, call: Call) -> tuple[Loaded, Served]:
        """Returns the version in the path, or else the primary one, and all versions of its model."""
        name, version = call.parameters["model"], call.parameters.get("version")
        served = self._follower.served.get(name)
        if served is None:
            models = ", ".join(sorted(self._follower.served)[:20]) or "none"
            raise RequestError(404, f"model {name[:100]!r} is not served; served: {models}")
        if version is None:
            return served.primary, served
        loaded = served.version(int(version)) if version.isdecimal() and len(version) < 16 else None
        if loaded is None:
            versions = ", ".join(str(one.entry.version) for one in served.loaded)
            raise RequestError(404, f"version {version[:20]!r} of {name!r} is not served; served: {versions}")
        return loaded, served

    async def _infer(self, call: Call) -> Response:
        loaded, served = self._find(call)
        if "version" not in call.parameters:
            loaded = served.choose(next(self._numbers))
        name, version = loaded.entry.name, str(loaded.entry.version)
        self._open_inferences += 1
        share = self._memory.share()
        try:
            response = await self._run_inference(call, loaded, share)
        except BaseException as error:
            share.release()
            if isinstance(error, RequestError):
                return refusal(error, call.scope, name, version)
            raise
        finally:
            self._open_inferences -= 1
        return response._replace(share=share)  # until it is sent

    def _most_bytes(self, call: Call) -> int:
        """Returns the most bytes that the body may have, after checks of the head of the request."""
        if self._open_inferences > self._limits.requests:
            raise RequestError(503, f"more than {self._limits.requests} requests are waiting; retry later")
        encoding = call.headers.get(b"content-encoding", b"identity")
        if encoding != b"identity":
            raise RequestError(415, f"the content encoding {encoding[:50].decode('latin-1')!r} is not supported")
        length, head = call.headers.get(b"content-length", b""), call.headers.get(HEADER_LENGTH.encode())
        size, json = (int(text) if text and text.isdigit() else 0 for text in (length, head))
        if size > self._limits.body:
            raise RequestError(413, f"the body has {size} bytes, but at most {self._limits.body} are allowed")
        most = self._limits.body if head is not None else min(self._limits.json, self._limits.body)
        if size > most or json > self._limits.json:
            raise RequestError(413, self._limits.json_flaw(max(json, size if head is None else 0)))
        return most

    async def _run_inference(self, call: Call, loaded: Loaded, share: Share) -> Response:
        body = await self._read_body(call.receive, self._most_bytes(call), share)
        length = call.headers.get(HEADER_LENGTH.encode())
        model, room = loaded.model, Room(strings=self._limits.strings, reserve=share.grow)
        request = await self._at_desk(
            len(body), parse, body, None if length is None else length.decode("latin-1"), model.inputs, model.outputs,
            card=model.card, room=room,
        )  # fmt: skip
        outputs = await self._runner(loaded).run(request.feed)
        size = size_of_answer(request, outputs)
        share.grow(size)
        response = await self._at_desk(max(size, len(body)), self._measured_answer, loaded, request, outputs)
        headers: tuple[tuple[bytes, bytes], ...] = (JSON,)
        if response.header_length is not None:
            headers = (
                (b"content-type", b"application/octet-stream"),
                (HEADER_LENGTH.encode(), str(response.header_length).encode()),
            )
        return Response(200, response.pieces, headers, loaded.entry.name, str(loaded.entry.version))

    async def _at_desk(self, size: int, work: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        """Calls a function in the thread for large requests, or at once if the size is small."""
        if size < _LARGE:
            return work(*arguments, **named)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._desk, functools.partial(work, *arguments, **named))

    def _measured_answer(self, loaded: Loaded, request: Request, outputs: Mapping[str, Array]) -> Answer:
        self._measures.record_inference(loaded, request.feed, outputs)
        return answer(loaded.entry.name, loaded.entry.version, request, outputs)

    async def _read_body(self, receive: Receive, most: int, share: Share) -> bytearray:
        """Reads the body, and reserves memory for each piece."""
        body, end = bytearray(), time.monotonic() + self._limits.seconds
        while True:
            message = await self._receive(receive, end - time.monotonic())
            piece = message["body"]
            if len(body) + len(piece) > most:
                if most < self._limits.body:
                    raise RequestError(413, self._limits.json_flaw(0))
                raise RequestError(413, f"the body has more than the {most} bytes that are allowed")
            share.grow(len(piece))
            body += piece
            if not message.get("more_body"):
                return body

    async def _receive(self, receive: Receive, seconds: float) -> Any:
        try:
            message = await within(seconds, receive())
        except TimeoutError:
            raise RequestError(408, f"the body did not arrive within {self._limits.seconds:g} s") from None
        if message["type"] == "http.disconnect":
            raise _DisconnectedError
        return message

    def _runner(self, loaded: Loaded) -> Runner:
        runner = self._runners.get(id(loaded))
        if runner is None or runner.loaded is not loaded:
            current = {id(one) for served in self._follower.served.values() for one in served.loaded}
            self._runners = {key: one for key, one in self._runners.items() if key in current}
            runner = self._runners[id(loaded)] = Runner(
                loaded, self._pool, batching=self._batching, seconds=self._limits.seconds,
                most=self._limits.body,
                on_run=lambda rows: self._measures.record_run(loaded.entry.name, rows),
            )  # fmt: skip
        return runner


class _DisconnectedError(Exception):
    """Signals that the client has hung up."""


class _Endpoint:
    """Handles one route as an ASGI application, so that Starlette passes the request on unchanged."""

    def __init__(self, app: App, handler: Handler | None, method: str) -> None:
        self._app, self._handler, self._method = app, handler, method

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._handler and scope["method"] not in (self._method, "HEAD" if self._method == "GET" else self._method):
            await self._app.handle(self._wrong_method, scope, receive, send)
        else:
            await self._app.handle(self._handler, scope, receive, send)

    async def _wrong_method(self, call: Call) -> Response:
        raise RequestError(405, f"{call.scope['path'][:200]!r} accepts {self._method}, not {call.scope['method']}")


def _constant(response: Response) -> Handler:
    async def handler(_: Call) -> Response:
        return response

    return handler
