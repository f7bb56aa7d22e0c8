"""TCP proxies before an S3 server: one cuts connections, answers 503 and dawdles as a seed draws, one counts bytes."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from random import Random
from typing import Literal

REFUSAL = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/xml\r\nConnection: close\r\nContent-Length: 83\r\n\r\n"
    b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>busy</Message>   </Error>"
)
_PIECE = 1024


class _Listener:
    """Serves each connection of clients in a thread, until it is closed."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.endpoint = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while self._listener.fileno() >= 0:
            with contextlib.suppress(OSError):  # a client that died while it connected; or the end
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        raise NotImplementedError


class Proxy(_Listener):
    """Passes bytes on between clients and the server at `port`; one connection in `1 / share` is disturbed."""

    def __init__(self, port: int, seed: int, share: float = 0.1) -> None:
        self._random, self._share = Random(seed), share
        self.disturbed = 0
        super().__init__(port)

    def _serve(self, client: socket.socket) -> None:
        kind = self._random.choice(["cut up", "cut down", "503", "slow"]) if self._random.random() < self._share else ""
        limit = self._random.randint(0, 3000)
        self.disturbed += bool(kind)
        with client, contextlib.suppress(OSError):
            if kind == "503":
                client.recv(65536)
                client.sendall(REFUSAL)
                return
            if kind == "slow":
                time.sleep(self._random.uniform(0.05, 0.5))
            with socket.create_connection(("127.0.0.1", self._port)) as server:
                up = threading.Thread(
                    target=_pump, args=(client, server, limit if kind == "cut up" else None), daemon=True
                )
                up.start()
                _pump(server, client, limit if kind == "cut down" else None)
                up.join(0.01)


def _pump(source: socket.socket, target: socket.socket, limit: int | None) -> None:
    """Passes bytes on; after `limit` of them both ends are cut."""
    passed = 0
    with contextlib.suppress(OSError):
        while data := source.recv(_PIECE):
            passed += len(data)
            if limit is not None and passed > limit:
                break
            target.sendall(data)
    for end in (source, target):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


Way = Literal["up", "down"]


class Wire(_Listener):
    """Passes bytes on between clients and the server at `port`, counts them, and cuts one connection.

    Args:
        port: of the server.
        way: the way of the bytes that decide.
        limit: the connection that carries the byte with this number is cut; it does not arrive.
        then: is called then.
        mark: the limit counts these bytes instead, and the connection is cut behind them.
        dark: seconds after the cut in which all connections are cut.
    """

    def __init__(
        self, port: int, way: Way, limit: int, then: Callable[[], object] = lambda: None, *, mark: bytes = b"",
        dark: float = 0.0,
    ) -> None:  # fmt: skip
        self.passed: dict[Way, int] = {"up": 0, "down": 0}
        self.cut = 0
        self._way, self._limit, self._then, self._mark, self._dark = way, limit, then, mark, dark
        self._light, self._marks, self._lock = 0.0, 0, threading.Lock()
        super().__init__(port)

    def _serve(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            if time.monotonic() < self._light:
                return
            with socket.create_connection(("127.0.0.1", self._port)) as server:
                up = threading.Thread(target=self._carry, args=("up", client, server), daemon=True)
                up.start()
                self._carry("down", server, client)
                up.join()

    def _carry(self, way: Way, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                rest = self._rest(way, data)
                target.sendall(data[: len(data) - rest])
                if rest:
                    break
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _rest(self, way: Way, data: bytes) -> int:
        """Return how many bytes at the end are not passed on, because the connection is cut before them."""
        with self._lock:
            if time.monotonic() < self._light:
                return len(data)
            before = self.passed[way]
            self.passed[way] += len(data)
            if way != self._way or self.cut or (place := self._place(data, before)) is None:
                return 0
            self.cut += 1
            self._light = time.monotonic() + self._dark
        self._then()
        return max(1, len(data) - place)

    def _place(self, data: bytes, before: int) -> int | None:
        """Return the place at which these bytes are cut; None if they are not."""
        if not self._mark:
            return self._limit - before - 1 if before + len(data) >= self._limit else None
        parts = data.split(self._mark)
        missing = self._limit - self._marks
        self._marks += len(parts) - 1
        return len(self._mark.join([*parts[:missing], b""])) if len(parts) > missing else None


@contextlib.contextmanager
def cutting(
    port: int, way: Way, limit: int, then: Callable[[], object] = lambda: None, *, mark: bytes = b"", dark: float = 0.0
) -> Iterator[Wire]:
    """A wire that is closed afterwards."""
    wire = Wire(port, way, limit, then, mark=mark, dark=dark)
    try:
        yield wire
    finally:
        wire.close()


@contextlib.contextmanager
def disturbing(port: int, seed: int, share: float = 0.1) -> Iterator[Proxy]:
    """A proxy that is closed afterwards."""
    proxy = Proxy(port, seed, share)
    try:
        yield proxy
    finally:
        proxy.close()
