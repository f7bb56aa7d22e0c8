"""Servers that answer in every wrong way; and one that forwards to another and loses answers."""

from __future__ import annotations

import contextlib
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Asked:
    """The requests that a server got: methods, paths and headers."""

    def __init__(self) -> None:
        self.url = ""
        self.requests: list[tuple[str, str, dict[str, str]]] = []


Answer = Callable[[BaseHTTPRequestHandler], None]


@contextlib.contextmanager
def answering(answer: Answer) -> Iterator[Asked]:
    """A server that answers every request in this way."""
    asked = Asked()

    class Handler(BaseHTTPRequestHandler):
        def handle_any(self) -> None:
            asked.requests.append((self.command, self.path, {k.lower(): v for k, v in self.headers.items()}))
            with contextlib.suppress(OSError):
                answer(self)
            self.close_connection = True

        do_GET = do_POST = do_PUT = do_PATCH = handle_any  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    asked.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield asked
    finally:
        server.shutdown()
        server.server_close()


def body(status: int, data: bytes, **headers: str) -> Answer:
    """Answers with these bytes."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data)

    return answer


def silent(handler: BaseHTTPRequestHandler) -> None:
    """Takes the request and does not answer."""
    time.sleep(3600)


def dripping(handler: BaseHTTPRequestHandler) -> None:
    """Sends a byte now and then, for ever."""
    handler.send_response(200)
    handler.end_headers()
    while True:
        handler.wfile.write(b" ")
        handler.wfile.flush()
        time.sleep(0.05)


def endless(handler: BaseHTTPRequestHandler) -> None:
    """Sends bytes as fast as they are taken, for ever."""
    handler.send_response(200)
    handler.end_headers()
    while True:
        handler.wfile.write(b" " * 2**16)


def closed(handler: BaseHTTPRequestHandler) -> None:
    """Ends the connection without an answer."""
    handler.connection.close()


def losing(target: str, loses: Callable[[str, int], bool]) -> Answer:
    """Forwards requests, and loses the answers to some: by path, and how often it was asked before."""
    counts: dict[str, int] = {}

    def answer(handler: BaseHTTPRequestHandler) -> None:
        length = int(handler.headers.get("Content-Length") or 0)
        data = handler.rfile.read(length) if length else None
        path = handler.path.partition("?")[0]
        counts[path] = counts.get(path, 0) + 1
        kept = {name: value for name, value in handler.headers.items() if name.lower() not in ("host", "connection")}
        request = urllib.request.Request(f"{target}{handler.path}", data=data, method=handler.command, headers=kept)
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                status, found = response.status, response.read()
        except urllib.error.HTTPError as error:
            status, found = error.code, error.read()
        if loses(path, counts[path]):
            closed(handler)
        else:
            body(status, found, Content_Type="application/json")(handler)

    return answer
