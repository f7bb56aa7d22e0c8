"""A TCP proxy before the store that holds an upload in its middle until it is released."""

from __future__ import annotations

import contextlib
import re
import socket
import threading
from urllib.parse import urlsplit


class Stall:
    """Passes bytes on to the store; the first PUT of an object by a user stops after half of what it brings.

    `held` is set while it is stopped.
    """

    def __init__(self, address: str, endpoint: str, user: str) -> None:
        target = urlsplit(endpoint)
        self._target, self._user = (target.hostname, target.port), user.encode()
        self._listener = socket.create_server((address, 0), backlog=64)
        self.endpoint = f"http://{address}:{self._listener.getsockname()[1]}"
        self.held, self.go_on = threading.Event(), threading.Event()
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self.go_on.set()
        self._listener.close()

    def _accept(self) -> None:
        while self._listener.fileno() >= 0:
            with contextlib.suppress(OSError):
                incoming, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(incoming,), daemon=True).start()

    def _serve(self, incoming: socket.socket) -> None:
        with incoming, socket.create_connection(self._target) as store:
            threading.Thread(target=self._pass, args=(store, incoming), daemon=True).start()
            with contextlib.suppress(OSError):
                while data := incoming.recv(65536):
                    if not self.held.is_set() and self._is_meant(data):
                        self._hold(data, incoming, store)
                        return
                    store.sendall(data)

    def _is_meant(self, data: bytes) -> bool:
        head = data.partition(b"\r\n\r\n")[0]
        return head.startswith(b"PUT ") and b"/objects/" in head.partition(b"\r\n")[0] and self._user in head

    def _hold(self, data: bytes, incoming: socket.socket, store: socket.socket) -> None:
        """Passes the head and half of the body on: the rest is promised, and does not come."""
        while b"\r\n\r\n" not in data:
            data += incoming.recv(65536)
        head, _, body = data.partition(b"\r\n\r\n")
        (length,) = re.findall(rb"(?i)content-length: *(\d+)", head)
        while len(body) < int(length) // 2:
            body += incoming.recv(65536)
        store.sendall(head + b"\r\n\r\n" + body[: int(length) // 2])
        self.held.set()
        self.go_on.wait(120)

    @staticmethod
    def _pass(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
