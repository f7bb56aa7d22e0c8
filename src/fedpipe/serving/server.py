"""The server process: uvicorn with deadlines for slow clients, and an end that lets the last requests finish."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import resource
import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FrameType
from typing import NamedTuple

from fedpipe.errors import InputError, MissingExtraError
from fedpipe.registry.prediction import runtime
from fedpipe.serving.catalogue import Catalogue, Location
from fedpipe.serving.follower import Follower
from fedpipe.serving.runner import Batching
from fedpipe.serving.runtime import cores, load
from fedpipe.store import LocalStore, Store

try:
    import httptools  # noqa: F401
    import prometheus_client  # noqa: F401
    import starlette  # noqa: F401
    import uvicorn
    import uvloop  # noqa: F401
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
except ImportError as error:
    raise MissingExtraError(error.name or "uvicorn", "serve") from error

from fedpipe.serving.app import App, Limits
from fedpipe.serving.measures import Measures

log = logging.getLogger("fedpipe")
HEADER_SECONDS = 10.0
"""What the head of a request may take."""
_BACKLOG = 2048
_GRACE = 30
"""Seconds that the last requests get at the end."""


class Options(NamedTuple):
    """How to serve.

    Args:
        host: the address to listen at.
        port: 0: a free one.
        cache: folder for copies; None: `fedpipe/serve` in the user's cache folder.
        token: that clients must show; empty: none.
        poll: seconds between looks for new versions.
        sessions: runs at a time; 0: one for every four cores, at least one.
        threads: of one run; 0: cores divided by sessions.
        batching: whether requests are run together.
        limits: of a request.
        drain: seconds between the word that the server ends and the end of taking requests.
        access_log: whether each request is a line of JSON on standard output.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    cache: Path | None = None
    token: str = ""
    poll: float = 5.0
    sessions: int = 0
    threads: int = 0
    batching: Batching = Batching()
    limits: Limits = Limits()
    drain: float = 0.0
    access_log: bool = True


class _Protocol(HttpToolsProtocol):
    """Hangs up when the head of a request does not arrive in time, and answers in JSON what is no HTTP."""

    _guard: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        if self._guard is None and (self.cycle is None or self.cycle.response_complete):
            self._watch()
        super().data_received(data)

    def on_headers_complete(self) -> None:
        self._unwatch()
        super().on_headers_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._unwatch()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        body = b'{"error":"this is not a valid HTTP request"}'
        head = b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: "
        self.transport.write(b"%s%d\r\n\r\n%s" % (head, len(body), body))
        self.transport.close()

    def _watch(self) -> None:
        self._guard = self.loop.call_later(HEADER_SECONDS, self._hang_up)

    def _unwatch(self) -> None:
        if self._guard is not None:
            self._guard.cancel()
            self._guard = None

    def _hang_up(self) -> None:
        self._guard = None
        self.transport.abort()


class _Server(uvicorn.Server):
    """Says first that it is not ready any more, and takes requests for a while yet: routers need time to hear of it."""

    def __init__(self, config: uvicorn.Config, app: App, drain: float) -> None:
        super().__init__(config)
        self._app, self._drain = app, drain

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._app.draining or not self._drain:
            self._app.draining = True
            self.should_exit = True
            return
        self._app.draining = True
        log.info("ending in %g s", self._drain)
        timer = threading.Timer(self._drain, setattr, (self, "should_exit", True))
        timer.daemon = True
        timer.start()


def _cache(uri: str, given: Path | None) -> Store:
    home = given or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fedpipe" / "serve"
    folder = home / hashlib.sha256(uri.encode()).hexdigest()[:16]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"the folder for copies cannot be made: {error.strerror}", where=str(folder)) from error
    return LocalStore(folder)


def serve(place: Location, options: Options, *, told: Callable[[str], None] = lambda _: None) -> None:
    """Serves until SIGTERM or SIGINT.

    Args:
        place: where the models are.
        options: how.
        told: hears the server's address once it listens.

    Raises:
        InputError: the address or the folder for copies cannot be had.
        MissingExtraError: a package of the extra `serve` is not installed.
    """
    runtime()
    cache = None if place.is_local else _cache(place.store.uri, options.cache)
    catalogue = Catalogue(place, cache)
    listener = _listening(options.host, options.port)
    _allow_many_connections()
    sessions = options.sessions or max(1, cores() // 4)  # few that are wide: as much a second, and sooner
    threads = options.threads or max(1, cores() // sessions)
    measures = Measures()
    follower = Follower(
        catalogue, lambda entry, data: load(entry, data, threads=threads),
        failed=lambda entry, _: measures.failed(entry.name, entry.version), changed=measures.changed,
    )  # fmt: skip
    ended = threading.Event()
    with contextlib.closing(listener), ThreadPoolExecutor(sessions, "run") as pool:
        app = App(
            follower, measures, pool, limits=options.limits, batching=options.batching, token=options.token,
            access_log=options.access_log,
        )  # fmt: skip
        following = threading.Thread(target=follower.follow, args=(options.poll, ended), name="follower", daemon=True)
        following.start()
        told(_address(listener))
        try:
            _Server(_config(app), app, options.drain).run(sockets=[listener])
        except KeyboardInterrupt:
            pass
        finally:
            ended.set()


def _config(app: App) -> uvicorn.Config:
    return uvicorn.Config(
        app, loop="uvloop", http=_Protocol, ws="none", lifespan="off", log_config=None, access_log=False,
        server_header=False, timeout_keep_alive=75, timeout_graceful_shutdown=_GRACE, backlog=_BACKLOG,
    )  # fmt: skip


def _listening(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)  # whoever asks before the first model is loaded waits
    except (OSError, OverflowError, UnicodeError) as error:
        raise InputError(
            f"the address cannot be had: {getattr(error, 'strerror', None) or error}",
            where=f"{host}:{port}",
            remedy="Choose another --host or --port; port 0 takes a free one.",
        ) from error
    return listener


def _address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _allow_many_connections() -> None:
    """Takes as many open files as this process may have: idle connections must not keep others out."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
