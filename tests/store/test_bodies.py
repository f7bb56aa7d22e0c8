"""Answers of servers that lie about sizes: a real server, with an answer from the test."""

from __future__ import annotations

import contextlib
import gzip
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import urllib3

from fedpipe.errors import CorruptError, FedpipeError, StoreError
from fedpipe.store import Store, open_store
from fedpipe.store.network import Pool, RouteError

ETAG = b'ETag: "1"\r\n'
ENDLESS = b"HTTP/1.1 200 OK\r\n" + ETAG + b"Transfer-Encoding: chunked\r\n"


@contextlib.contextmanager
def answering(head: bytes, body: bytes = b"", *, repeated: int = 1) -> Iterator[str]:
    """A server that gives every request this answer, and hangs up."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection, contextlib.suppress(OSError):
                    connection.recv(2**16)
                    connection.sendall(head + b"Connection: close\r\n\r\n")
                    for _ in range(repeated):
                        connection.sendall(body)
                    connection.shutdown(socket.SHUT_WR)
                    connection.recv(2**16)

        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def ways(store: Store, folder: Path) -> dict[str, Callable[[], object]]:
    return {
        "read": lambda: store.read("a", limit=1000),
        "poll": lambda: store.poll("a", limit=1000),
        "open": lambda: store.open("a").read(1000),
        "range": lambda: store.read_range("a", 0, 10),
        "middle": lambda: store.read_range("a", 5, 10),
        "download": lambda: store.download("a", folder / "a"),
    }


WAYS = ["read", "poll", "open", "range", "middle", "download"]


@pytest.mark.usefixtures("s3_keys")
@pytest.mark.parametrize("way", WAYS)
class TestLies:
    def _refused(self, url: str, way: str, folder: Path) -> FedpipeError:
        store = open_store(f"s3://tests/lies?endpoint={url}", deadline=0.3)
        with pytest.raises((StoreError, CorruptError)) as caught:
            ways(store, folder)[way]()
        assert list(folder.iterdir()) == []
        return caught.value

    def test_no_size_is_announced(self, way: str, tmp_path: Path) -> None:
        with answering(ENDLESS, chunk(bytes(2**16)), repeated=1000) as url:
            self._refused(url, way, tmp_path)

    @pytest.mark.parametrize("size", [b"-1", b"1e9", b"9" * 30, b"0x10", b""])
    def test_the_size_is_none(self, way: str, size: bytes, tmp_path: Path) -> None:
        with answering(b"HTTP/1.1 200 OK\r\n" + ETAG + b"Content-Length: " + size + b"\r\n", bytes(10)) as url:
            self._refused(url, way, tmp_path)

    def test_the_body_ends_early(self, way: str, tmp_path: Path) -> None:
        with answering(b"HTTP/1.1 200 OK\r\n" + ETAG + b"Content-Length: 1000\r\n", bytes(10)) as url:
            self._refused(url, way, tmp_path)


@pytest.mark.usefixtures("s3_keys")
@pytest.mark.parametrize("status", [b"200 OK", b"403 Forbidden", b"404 Not Found", b"503 Busy"])
def test_an_endless_answer_is_cut_off(status: bytes) -> None:
    """Also one that the minio package reads itself, such as a list or a refusal."""
    head = b"HTTP/1.1 " + status + b"\r\nContent-Type: application/xml\r\nTransfer-Encoding: chunked\r\n"
    with answering(head, chunk(bytes(2**20)), repeated=200) as url:
        store = open_store(f"s3://tests/lies?endpoint={url}", deadline=0.3)
        for act in (lambda: list(store.keys()), lambda: store.create("a", b""), lambda: store.delete("a")):
            with pytest.raises(StoreError, match="more than 16777216 bytes"):
                act()


@pytest.mark.parametrize("streamed", [False, True])
def test_no_answer_is_decoded(streamed: bool) -> None:
    body = gzip.compress(bytes(2**24))
    head = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n" % len(body)
    with answering(head, body) as url:
        response = Pool(retries=False).urlopen("GET", url, preload_content=not streamed)
        assert response.read() == body


def test_the_limit_of_a_pool() -> None:
    with answering(b"HTTP/1.1 200 OK\r\nContent-Length: 1001\r\n", bytes(1001)) as url:
        assert len(Pool(retries=False, most=1001).urlopen("GET", url).data) == 1001
        with pytest.raises(RouteError, match="more than 1000 bytes"):
            Pool(retries=False, most=1000).urlopen("GET", url)


@pytest.mark.parametrize("status", [b"200 OK", b"302 Found", b"500 Oops"])
def test_clients_of_other_packages(status: bytes) -> None:
    from fedpipe.store.bodies import TooLongError, bound

    manager = urllib3.PoolManager(retries=False)
    bound(manager, 1000)
    with answering(b"HTTP/1.1 " + status + b"\r\nContent-Length: 1001\r\n", bytes(1001)) as url:
        with pytest.raises(TooLongError):
            manager.request("GET", url)
        with pytest.raises(TooLongError):
            manager.request("POST", url, body=b"x")
