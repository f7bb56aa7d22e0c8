"""A store whose keys another process holds passes the same contract, and its other side trusts no request."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from fedpipe.errors import NotFoundError, StoreError, StoreUnavailableError
from fedpipe.store import Store
from fedpipe.store.held import HeldStore, Line, Place, Request
from fedpipe.store.keyholder import Keyholder
from fedpipe.store.testing import StoreContract
from tests import servers

_numbers = itertools.count()


@pytest.fixture
def keyholder(minio_server: servers.Server, s3_keys: None) -> Iterator[Keyholder]:
    with Keyholder(minio_server.endpoint, {"twice": lambda name, data: [name, len(data) * 2]}) as holder:
        yield holder


@pytest.fixture
def line(keyholder: Keyholder) -> Line:
    return Line(Connection(os.dup(keyholder.theirs.fileno())))


@pytest.fixture
def place(minio_server: servers.Server) -> Place:
    return Place(f"s3://tests/held-{next(_numbers)}?endpoint={minio_server.endpoint}")


@pytest.fixture
def store(line: Line, place: Place) -> Store:
    return HeldStore(line, place)


def test_each_way_to_read_is_noted(minio_server: servers.Server, s3_keys: None, place: Place) -> None:
    noted: list[tuple[str, int]] = []
    with Keyholder(minio_server.endpoint, noted=lambda request, size: noted.append((request.op, size))) as holder:
        store = HeldStore(Line(Connection(os.dup(holder.theirs.fileno()))), place)
        store.create("a", b"content")
        store.read("a")
        store.poll("a")
        store.read_range("a", 0, 4)
        store.open("a").close()
        assert store.poll("nothing") is None
    assert noted == [("read", 7), ("poll", 7), ("read_range", 4), ("open", 7)]


class TestHeldStore(StoreContract):
    """The methods of a store, through the pipe to a real server."""

    def test_a_file_larger_than_a_piece_goes_there_and_back(self, store: Store, tmp_path: Path) -> None:
        data = os.urandom(3 * 2**20 + 5)
        (tmp_path / "a").write_bytes(data)
        store.upload("a", tmp_path / "a")
        store.download("a", tmp_path / "b")
        assert (tmp_path / "b").read_bytes() == data
        reader = store.open("a")
        assert reader.read(2 * 2**20) + reader.read(2 * 2**20) == data
        reader.close()

    def test_no_part_of_a_download_remains(self, store: Store, tmp_path: Path) -> None:
        with pytest.raises(NotFoundError):
            store.download("nothing", tmp_path / "a")
        assert list(tmp_path.iterdir()) == []

    def test_other_questions_are_answered_beside_the_store(self, line: Line) -> None:
        assert line.ask(Request("twice", key="a", payload=True), b"four")[0] == ["a", 8]

    def test_an_ended_keyholder_is_a_store_that_does_not_answer(self, line: Line, keyholder: Keyholder) -> None:
        line.ask(Request("twice", key="a", payload=True), b"")
        keyholder.close()
        with pytest.raises(StoreUnavailableError, match="the process that holds the keys has ended"):
            line.ask(Request("twice", key="a", payload=True), b"")


class TestHostileRequests:
    """Foreign code writes to the pipe what it likes."""

    @pytest.mark.parametrize(
        ("uri", "why"),
        [
            ("s3://tests/a?endpoint=http://127.0.0.1:1", "this step's keys are for"),
            ("s3://tests/a", "this step's keys are for"),
            ("file:///etc", "folders are opened by each process itself"),
            ("memory://a", "folders are opened by each process itself"),
            ("s3://", "names no bucket"),
        ],
    )
    def test_keys_go_to_the_endpoint_of_the_step_only(self, line: Line, uri: str, why: str) -> None:
        with pytest.raises(StoreError, match=why):
            HeldStore(line, Place(uri))

    def test_a_folder_or_a_pipe_is_no_file_to_upload(self, line: Line, place: Place, tmp_path: Path) -> None:
        for handle in (os.open(tmp_path, os.O_RDONLY), os.pipe()[0]):
            with pytest.raises(StoreError, match="only a file can be uploaded"):
                line.ask(Request("upload", place, "a"), file=handle)
            os.close(handle)

    @pytest.mark.parametrize(
        "request_",
        [
            Request("__class__"),
            Request("read"),
            Request("piece", number=7, length=10),
            Request("read", Place("s3://tests/a"), "a" * 2000),
            Request("read_range", None, "a", start=-5, length=-7),
        ],
    )
    def test_what_cannot_be_done_is_an_error_and_the_next_request_is_answered(
        self, line: Line, store: Store, request_: Request
    ) -> None:
        with pytest.raises(StoreError):
            line.ask(request_)
        assert store.create("a", b"1")

    @pytest.mark.parametrize("bytes_", [b"", b"[]", b"\xff", b"[" * 10_000, b'{"op": 1}', b'{"op":"read","place":{}}'])
    def test_what_is_no_request_closes_the_pipe(self, keyholder: Keyholder, bytes_: bytes) -> None:
        connection = Connection(os.dup(keyholder.theirs.fileno()))
        connection.send_bytes(bytes_)
        keyholder.theirs.close()
        with pytest.raises((EOFError, OSError)):
            connection.recv_bytes()

    def test_a_descriptor_without_a_store_is_taken_from_the_pipe(self, keyholder: Keyholder, line: Line) -> None:
        with Path(__file__).open("rb") as file, pytest.raises(StoreError, match="names no store"):
            line.ask(Request("upload"), file=file.fileno())
        assert line.ask(Request("twice", key="a", payload=True), b"")[0] == ["a", 0]

    def test_many_open_streams_are_refused(self, store: Store) -> None:
        store.create("a", b"1")
        readers = [store.open("a") for _ in range(64)]
        with pytest.raises(StoreError, match="more than 64"):
            store.open("a")
        readers[0].close()
        assert store.open("a").read(5) == b"1"
