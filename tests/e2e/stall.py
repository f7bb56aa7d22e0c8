"""A TCP proxy before the store that holds an upload in its middle until it is told to go on."""

from __future__ import annotations

import contextlib
import socket
import threading
from urllib.parse import urlsplit


class Stall:
    """Passes bytes on to the store; the first PUT whose path has `part` in it stops after half of what it brings.

    `held` is set while it is stopped.
    """

    def __init__(self, address: str, endpoint: str, part: str) -> None:
        target = urlsplit(endpoint)
        self._target, self._part = (target.hostname, target.port), part.encode()
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
                    if not self.held.is_set() and data.startswith(b"PUT ") and self._part in data.partition(b"\r\n")[0]:
                        self.held.set()
                        store.sendall(data[: len(data) // 2])  # its length is promised, and the rest is missing
                        self.go_on.wait(120)
                        return
                    store.sendall(data)

    @staticmethod
    def _pass(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
