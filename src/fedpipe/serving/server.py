"""Runs the server process: uvicorn with deadlines for slow clients, and a shutdown that finishes the last requests."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import hashlib
import html
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FrameType
from typing import NamedTuple, Self

from fedpipe.errors import InputError, MissingExtraError
from fedpipe.frameworks import cores
from fedpipe.registry.prediction import runtime
from fedpipe.serving.catalogue import Catalogue, Location
from fedpipe.serving.follower import Follower
from fedpipe.serving.runner import Batching
from fedpipe.serving.runtime import load
from fedpipe.store import LocalStore, Store
from fedpipe.store.files import allow_files

try:
    import httptools  # noqa: F401
    import prometheus_client  # noqa: F401
    import starlette  # noqa: F401
    import uvicorn
    import uvloop  # noqa: F401
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
except ImportError as error:
    raise MissingExtraError(error.name or "uvicorn", "serve") from error

from fedpipe.serving.app import App
from fedpipe.serving.limits import Limits
from fedpipe.serving.measures import Measures

log = logging.getLogger("fedpipe")
HEADER_SECONDS = 10.0
"""Time limit for the head of a request."""
_BACKLOG = 2048
_CONNECTIONS = 2**20
"""Most connections, if the system allows as many: idle ones do not keep others out."""
_MMAP_THRESHOLD, _ARENA_MAX = -3, -8
"""Parameters of glibc's mallopt."""
_SHUTDOWN_SECONDS = 30
"""How long the last requests may take at shutdown."""


class Options(NamedTuple):
    """Configures a server.

    Args:
        host: the address to listen at.
        port: the port; 0 chooses a free one.
        cache: folder for copies of models; None: `fedpipe/serve` in the user's cache folder.
        token: bearer token that clients must send; empty: none.
        poll: seconds between checks for new versions.
        sessions: concurrent runs; 0: one for every four cores, at least one.
        threads: threads of one run; 0: cores divided by sessions.
        batching: how requests are combined.
        limits: limits of requests.
        drain: seconds after SIGTERM in which the server still accepts requests.
        access_log: write each request as a line of JSON to standard output.
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
    """Hangs up when the head of a request does not arrive in time, and answers invalid HTTP in JSON."""

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._start_timer()

    def data_received(self, data: bytes) -> None:
        if self._timer is None and (self.cycle is None or self.cycle.response_complete):
            self._start_timer()
        super().data_received(data)

    def on_headers_complete(self) -> None:
        self._stop_timer()
        super().on_headers_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        body = b'{"error":"this is not a valid HTTP request"}'
        head = b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: "
        self.transport.write(b"%s%d\r\n\r\n%s" % (head, len(body), body))
        self.transport.close()

    def _start_timer(self) -> None:
        self._timer = self.loop.call_later(HEADER_SECONDS, self._hang_up)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _hang_up(self) -> None:
        self._timer = None
        self.transport.abort()


class _Server(uvicorn.Server):
    """Reports first that it is not ready, and still accepts requests for a while: routers need time to react."""

    def __init__(self, config: uvicorn.Config, app: App, drain: float) -> None:
        super().__init__(config)
        self._app, self._drain = app, drain

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._app.draining or not self._drain:
            self._app.draining = True
            self.force_exit, self.should_exit = self.should_exit, True
            return
        self._app.draining = True
        log.info("shutting down in %g s", self._drain)
        timer = threading.Timer(self._drain, setattr, (self, "should_exit", True))
        timer.daemon = True
        timer.start()


def _open_cache(uri: str, folder: Path | None) -> Store:
    base = folder or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fedpipe" / "serve"
    of_store = base / hashlib.sha256(uri.encode()).hexdigest()[:16]
    try:
        of_store.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"the folder for copies cannot be created: {error.strerror}",
            where=str(of_store),
            remedy="Choose a writable folder with --cache.",
        ) from error
    return LocalStore(of_store)


class Server:
    """Listens at an address, and serves models there: `run` until SIGTERM, `start` in a thread until `stop`.

    Args:
        location: where the models are.
        options: the configuration.

    Raises:
        InputError: the address is not available, or the folder for copies cannot be created.
        MissingExtraError: a package of the extra `serve` is not installed.
    """

    def __init__(self, location: Location, options: Options) -> None:
        runtime()
        cache = None if location.is_local else _open_cache(location.store.uri, options.cache)
        self._options, self._measures = options, Measures()
        sessions = options.sessions or max(1, cores() // 4)  # few with many threads: same throughput, lower latency
        threads = options.threads or max(1, cores() // sessions)
        self._follower = Follower(
            Catalogue(location, cache), lambda entry, data: load(entry, data, threads=threads),
            on_failure=lambda entry, _: self._measures.record_failure(entry.name, entry.version),
            on_change=self._measures.record_change,
        )  # fmt: skip
        self._listener = _listen(options.host, options.port)
        self.url = _address(self._listener)
        self._pool = ThreadPoolExecutor(sessions, "run")
        app = App(
            self._follower, self._measures, self._pool, limits=options.limits, batching=options.batching,
            token=options.token, access_log=options.access_log,
        )  # fmt: skip
        self._server = _Server(_config(app), app, options.drain)
        self._thread = threading.Thread(target=self.run, name="server", daemon=True)

    def run(self) -> None:
        """Serves until `stop`, or until a signal that `ended_by_signals` takes."""
        allow_files(_CONNECTIONS)
        _return_memory()
        stop = threading.Event()
        follow = (self._options.poll, stop)
        with contextlib.closing(self._listener), self._pool:
            threading.Thread(target=self._follower.follow, args=follow, name="follower", daemon=True).start()
            try:
                self._server.run(sockets=[self._listener])
            finally:
                stop.set()

    @contextlib.contextmanager
    def ended_by_signals(self) -> Iterator[None]:
        """Lets SIGINT and SIGTERM end the server from its first moment: uvicorn takes them once its loop runs."""
        ended = self._server.handle_exit
        earlier = {number: signal.signal(number, ended) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in earlier.items():
                signal.signal(number, handler)

    def start(self, wait: float) -> None:
        """Serves in a thread of its own, and waits at most so many seconds until the models are loaded."""
        self._thread.start()
        until = time.monotonic() + wait
        while self._thread.is_alive() and time.monotonic() < until:
            if self._follower.has_refreshed or self._follower.trouble:
                return
            time.sleep(0.01)

    def stop(self) -> None:
        """Ends the server after its last requests."""
        self._server.should_exit = True
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def __repr__(self) -> str:
        return f"<server at {self.url}{self._state}>"

    def _repr_html_(self) -> str:
        return f'<a href="{self.url}">{self.url}</a>{html.escape(self._state)}'

    @property
    def _state(self) -> str:
        """Returns what is unusual about the server, for its user."""
        if not self._thread.is_alive():
            return " (stopped)"
        if self._follower.trouble:
            return f" ({self._follower.trouble})"
        return "" if self._follower.served else " (nothing is published yet: publish a model with `fedpipe run`)"


def serve(location: Location, options: Options, *, on_listening: Callable[[str], None] = lambda _: None) -> None:
    """Serves until SIGTERM or SIGINT.

    Args:
        location: where the models are.
        options: the configuration.
        on_listening: receives the server's address once it listens.

    Raises:
        InputError: the address is not available, or the folder for copies cannot be created.
        MissingExtraError: a package of the extra `serve` is not installed.
    """
    server = Server(location, options)
    with server.ended_by_signals():
        on_listening(server.url)
        server.run()


def _config(app: App) -> uvicorn.Config:
    return uvicorn.Config(
        app, loop="uvloop", http=_Protocol, ws="none", lifespan="off", log_config=None, access_log=False,
        server_header=False, timeout_keep_alive=75, timeout_graceful_shutdown=_SHUTDOWN_SECONDS, backlog=_BACKLOG,
    )  # fmt: skip


def _listen(host: str, port: int) -> socket.socket:
    listener: socket.socket | None = None
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        with contextlib.ExitStack() as undo:
            undo.enter_context(contextlib.closing(listener))
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(_BACKLOG)  # clients that connect before the server runs wait
            undo.pop_all()
    except (OSError, OverflowError, UnicodeError) as error:
        if listener is not None:
            listener.close()
        raise InputError(
            f"the address is not available: {getattr(error, 'strerror', None) or error}",
            where=f"{host}:{port}",
            remedy="Choose another --host or --port; port 0 chooses a free one.",
        ) from error
    return listener


def _address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _return_memory() -> None:
    """Makes the C library return large blocks to the system at once; by default glibc keeps those below 32 MiB."""
    with contextlib.suppress(OSError, AttributeError):  # another C library
        library = ctypes.CDLL("libc.so.6")
        library.mallopt(_MMAP_THRESHOLD, 2**18)
        library.mallopt(_ARENA_MAX, 2)
