"""The S3 store against two real servers."""

from __future__ import annotations

import contextlib
import datetime
import gzip
import hashlib
import io
import itertools
import random
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import minio.time
import pytest
import urllib3

from fedpipe.errors import CorruptError, StoreError, StoreUnavailableError
from fedpipe.store import Store, open_store
from fedpipe.store.s3 import MinioStore
from fedpipe.store.s3_client import DEADLINE
from fedpipe.store.testing import StoreContract
from tests import servers

_numbers = itertools.count()


@pytest.mark.usefixtures("s3_keys")
class TestMinioStore(StoreContract):
    @pytest.fixture
    def store(self, s3_server: servers.Server) -> Store:
        return open_store(f"s3://tests/prefix-{next(_numbers)}?endpoint={s3_server.endpoint}")

    def write_encoded(self, store: Store, key: str, data: bytes, encoding: str) -> None:
        assert isinstance(store, MinioStore)
        store._put(key, data, {"Content-Encoding": encoding})

    @pytest.mark.parametrize("size", [544, 3_000_000])
    def test_an_object_with_a_content_encoding_is_refused(self, store: Store, tmp_path: Path, size: int) -> None:
        """It is the writer's mistake, so readers of a learner's objects drop that learner."""
        store.create("a", b"before")
        seen = store.poll("a")
        assert seen is not None
        self.write_encoded(store, "a", gzip.compress(random.Random(0).randbytes(size)), "gzip")
        for act in (
            lambda: store.read("a"),
            lambda: store.poll("a"),
            lambda: store.poll("a", seen.version),
            lambda: store.open("a"),
            lambda: store.read_range("a", 0, 8),
            lambda: store.read_range("a", 5, 100),
            lambda: store.download("a", tmp_path / "a"),
        ):
            with pytest.raises(CorruptError, match="the object is stored with the content encoding 'gzip'"):
                act()
        assert list(tmp_path.iterdir()) == []

    def test_bytes_and_version_belong_together_while_others_write(
        self, store: Store, s3_server: servers.Server
    ) -> None:
        """VersityGW sends the bytes of one version under the ETag of another: in one of five reads here."""
        store.replace("a", b"0")
        busy = threading.Event()

        def write() -> None:
            for number in itertools.count():
                store.replace("a", str(number).encode() * 50)
                if busy.is_set():
                    return

        writer = threading.Thread(target=write)
        writer.start()
        try:
            blobs = [store.read("a") for _ in range(50)]
            blobs += [blob for _ in range(50) if (blob := store.poll("a")) is not None]
        finally:
            busy.set()
            writer.join()
        for blob in blobs:
            assert blob.version.strip('"') == hashlib.md5(blob.data, usedforsecurity=False).hexdigest()

    def test_a_version_that_is_no_digest_of_the_bytes_is_taken_when_it_comes_again(self, store: Store) -> None:
        """Encrypted objects have such versions."""
        data, version = b"bytes", '"' + "0" * 32 + '"'
        assert isinstance(store, MinioStore)

        def made(data: bytes, version: str) -> urllib3.HTTPResponse:
            headers = {"Content-Length": "5", "ETag": version}
            return urllib3.HTTPResponse(io.BytesIO(data), headers, preload_content=False)

        for _ in range(3):
            with pytest.raises(OSError, match="was written while it was read"):
                store._whole(made(data, version), "a", 100)
        assert store._whole(made(data, version), "a", 100) == (data, version)


@pytest.mark.usefixtures("s3_keys")
class TestMistakes:
    def test_a_bucket_that_does_not_exist(self, s3_server: servers.Server) -> None:
        with pytest.raises(StoreError, match="the bucket 'absent' does not exist"):
            open_store(f"s3://absent?endpoint={s3_server.endpoint}").probe()

    def test_wrong_credentials(self, s3_server: servers.Server, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong-wrong-wrong")
        with pytest.raises(StoreError, match="refuses the credentials"):
            open_store(s3_server.uri).probe()

    @pytest.mark.parametrize("hours", [-24, 24])
    def test_a_clock_that_is_a_day_off(
        self, s3_server: servers.Server, hours: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        """Signatures are made by the server's clock then; ages never depend on ours."""
        real = minio.time.utcnow
        monkeypatch.setattr(minio.time, "utcnow", lambda: real() + datetime.timedelta(hours=hours))
        store = open_store(f"s3://tests/skewed-{hours}-{next(_numbers)}?endpoint={s3_server.endpoint}")
        store.probe()
        assert store.create("a", b"one")
        blob = store.poll("a")
        assert blob is not None
        assert store.swap("a", b"two", blob.version)
        assert store.read("a").data == b"two"
        age = store.age("a")
        assert age is not None
        assert age < 30
        (tmp_path / "large").write_bytes(bytes(70 * 2**20))  # in several parts
        store.upload("large", tmp_path / "large")
        assert store.size("large") == 70 * 2**20
        assert list(store.keys()) == ["a", "large"]

    def test_nothing_listens_there(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("fedpipe.store.s3.PROBE_DEADLINE", 0.5)
        store = open_store(f"s3://tests?endpoint=http://127.0.0.1:{servers.free_port()}")
        started = time.monotonic()
        with pytest.raises(StoreUnavailableError, match="the store cannot be reached") as caught:
            store.probe()
        assert time.monotonic() - started < DEADLINE / 2  # a probe waits less than other requests
        assert caught.value.exit_code == 2

    @pytest.mark.parametrize("endpoint", ["localhost:9000", "ftp://host", "http://host/path"])
    def test_no_endpoint(self, endpoint: str) -> None:
        with pytest.raises(StoreError, match="not an endpoint"):
            open_store("s3://tests", endpoint=endpoint)

    def test_a_server_that_ignores_conditions_is_refused(self, minio_server: servers.Server) -> None:
        ignoring = _proxy(minio_server, drop=(b"If-None-Match", b"If-Match"))
        with ignoring as endpoint, pytest.raises(StoreError, match="does not honour conditional writes"):
            open_store(f"s3://tests/ignoring?endpoint={endpoint}").probe()
        assert list(open_store(minio_server.uri).below("ignoring").keys()) == []

    def test_something_else_listens_there(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            threading.Thread(target=_answer_html, args=(listener,), daemon=True).start()
            with pytest.raises(StoreError, match=r"not an S3 store|cannot be reached|does not honour"):
                open_store(f"s3://tests?endpoint=http://127.0.0.1:{listener.getsockname()[1]}").probe()


def _answer_html(listener: socket.socket) -> None:
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        with connection:
            connection.recv(65536)
            connection.sendall(
                b'HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Type: text/html\r\nETag: "x"\r\n\r\nhello'
            )


class _proxy:  # noqa: N801  (used like a function)
    """A TCP proxy before a server that removes headers, or cuts a number of connections after some bytes."""

    def __init__(self, server: servers.Server, drop: tuple[bytes, ...] = (), cut_after: int = 0, cuts: int = 0) -> None:
        self._target = ("127.0.0.1", int(server.endpoint.rsplit(":", 1)[1]))
        self._drop, self._cut_after, self.cuts = drop, cut_after, cuts
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open = [self._listener]
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> str:
        self._start(self._accept)
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def __exit__(self, *_: object) -> None:
        for connection in self._open:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for connection in self._open:
            connection.close()

    def _start(self, target: Callable[..., None], *arguments: socket.socket) -> None:
        self._threads.append(threading.Thread(target=target, args=arguments, daemon=True))
        self._threads[-1].start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            upstream = socket.create_connection(self._target)
            self._open += [client, upstream]
            self._start(self._up, client, upstream)
            self._start(self._down, upstream, client)

    def _up(self, client: socket.socket, upstream: socket.socket) -> None:
        while data := _received(client):
            for name in self._drop:
                data = data.replace(name, b"X-Dropped-" + name[-5:])
            _sent(upstream, data)

    def _down(self, upstream: socket.socket, client: socket.socket) -> None:
        passed = 0
        while data := _received(upstream):
            passed += len(data)
            if self.cuts and self._cut_after and passed > self._cut_after:
                self.cuts -= 1
                for connection in (client, upstream):
                    with contextlib.suppress(OSError):
                        connection.shutdown(socket.SHUT_RDWR)  # closing alone says nothing while another thread reads
                return
            _sent(client, data)


def _received(connection: socket.socket) -> bytes:
    try:
        return connection.recv(65536)
    except OSError:
        return b""


def _sent(connection: socket.socket, data: bytes) -> None:
    try:
        connection.sendall(data)
    except OSError:
        return


@pytest.mark.usefixtures("s3_keys")
class TestBrokenConnections:
    def test_a_stream_goes_on_where_it_broke(self, minio_server: servers.Server) -> None:
        data = bytes(range(256)) * 20_000
        open_store(minio_server.uri).create("broken/stream", data)
        proxy = _proxy(minio_server, cut_after=1_000_000, cuts=3)
        with proxy as endpoint:
            reader = open_store(f"s3://tests?endpoint={endpoint}").open("broken/stream")
            found = b"".join(iter(lambda: reader.read(2**20), b""))
            reader.close()
        assert found == data
        assert proxy.cuts == 0

    def test_a_download_survives_too(self, minio_server: servers.Server, tmp_path: Path) -> None:
        data = bytes(range(256)) * 20_000
        open_store(minio_server.uri).create("broken/file", data)
        with _proxy(minio_server, cut_after=1_000_000, cuts=2) as endpoint:
            open_store(f"s3://tests?endpoint={endpoint}").download("broken/file", tmp_path / "file")
        assert (tmp_path / "file").read_bytes() == data

    def test_a_create_whose_answer_was_lost_is_known_as_won(self, minio_server: servers.Server) -> None:
        with _proxy(minio_server, cut_after=1, cuts=1) as endpoint:
            assert open_store(f"s3://tests/lost?endpoint={endpoint}").create("answer", b"ours")
            assert not open_store(f"s3://tests/lost?endpoint={endpoint}").create("answer", b"theirs")


@pytest.mark.parametrize("bucket", ["b", "Upper", "under_score", "-dash", "x" * 64])
def test_a_bucket_that_can_be_none(bucket: str, s3_keys: None) -> None:
    with pytest.raises(StoreError, match=r"is not a valid bucket name\. Use 3 to 63"):
        open_store(f"s3://{bucket}?endpoint=http://127.0.0.1:1")
