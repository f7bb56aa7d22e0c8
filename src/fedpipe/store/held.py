"""A store whose keys another process holds: every request goes through a pipe to it (`fedpipe.store.keyholder`).

The user's `model.py` runs in the process of a step. In a pod, that process has no keys. It asks its parent, which has
them, to read and write, and to sign. Requests and answers are JSON, followed by bytes; files go as open descriptors.
"""

from __future__ import annotations

import functools
import os
import threading
import uuid
from collections.abc import Iterator
from multiprocessing.connection import Connection
from multiprocessing.reduction import send_handle
from pathlib import Path
from typing import Any, Self

import msgspec
from msgspec import Struct

from fedpipe.codec import from_json
from fedpipe.errors import Failure, StoreUnavailableError
from fedpipe.store.base import SMALL, Blob, Entry, Reader

KEYHOLDER = "FEDPIPE_KEYHOLDER"
"""Environment variable: the descriptor of the pipe to the process that holds the keys."""
FOLDER = "FEDPIPE_HELD_FOLDER"
"""Environment variable: URI of the one folder that this process reaches as a store at the keyholder only."""
PIECE = 2**20
"""Bytes of a download in one answer."""


class Place(Struct, frozen=True):
    """The arguments of `open_store`, and the prefix below it."""

    uri: str
    endpoint: str | None = None
    region: str | None = None
    deadline: float | None = None
    prefix: str = ""


class Request(Struct, frozen=True, omit_defaults=True):
    """A request to the keyholder. With `payload`, bytes follow."""

    op: str
    place: Place | None = None
    key: str = ""
    version: str = ""
    number: int = 0
    start: int = 0
    length: int = 0
    payload: bool = False


class Answer(Struct, frozen=True, omit_defaults=True):
    """An answer: a value, or an error. With `payload`, bytes follow."""

    value: Any = None
    failure: Failure | None = None
    payload: bool = False


class Line:
    """The client's end of the pipe. Threads share it."""

    def __init__(self, connection: Connection) -> None:
        self._connection, self._lock = connection, threading.Lock()

    def ask(self, request: Request, payload: bytes | None = None, file: int | None = None) -> tuple[Any, bytes]:
        """Send a request, and return the value and the bytes of its answer.

        Args:
            request: with `payload` if bytes follow.
            payload: these bytes.
            file: a descriptor that follows.

        Raises:
            FedpipeError: as the store's method, or StoreUnavailableError if the keyholder has ended.
        """
        with self._lock:
            try:
                self._connection.send_bytes(msgspec.json.encode(request))
                if payload is not None:
                    self._connection.send_bytes(payload)
                if file is not None:
                    send_handle(self._connection, file, None)
                answer = from_json(self._connection.recv_bytes(), Answer)
                data = self._connection.recv_bytes() if answer.payload else b""
            except (EOFError, OSError) as error:
                raise StoreUnavailableError("the process that holds the keys has ended") from error
        if answer.failure is not None:
            raise answer.failure.error()
        return answer.value, data


@functools.cache
def line() -> Line | None:
    """Return the pipe to the process that holds the keys; None where this process has them itself."""
    handle = os.environ.get(KEYHOLDER)
    return Line(Connection(int(handle))) if handle else None


class HeldStore:
    """A store at the keyholder; see `fedpipe.store.Store`.

    Args:
        line: the pipe.
        place: the arguments of `open_store`.

    Raises:
        StoreError: the store cannot be opened there.
    """

    def __init__(self, line: Line, place: Place) -> None:
        self._line, self._place = line, place
        self.uri: str = self._asked("uri")

    def below(self, prefix: str) -> Self:
        """See `Store.below`."""
        joined = "/".join(part for part in (self._place.prefix, prefix.strip("/")) if part)
        return type(self)(self._line, msgspec.structs.replace(self._place, prefix=joined))

    def read(self, key: str, *, limit: int = SMALL) -> Blob:
        """See `Store.read`."""
        version, data = self._line.ask(Request("read", self._place, key, length=limit))
        return Blob(data, version)

    def poll(self, key: str, version: str = "", *, limit: int = SMALL) -> Blob | None:
        """See `Store.poll`."""
        found, data = self._line.ask(Request("poll", self._place, key, version, length=limit))
        return None if found is None else Blob(data, found)

    def age(self, key: str) -> float | None:
        """See `Store.age`."""
        found = self._asked("age", key)
        return None if found is None else float(found)

    def open(self, key: str) -> Reader:
        """See `Store.open`."""
        number, size = self._asked("open", key)
        return _HeldReader(self._line, number, size)

    def read_range(self, key: str, start: int, length: int) -> bytes:
        """See `Store.read_range`."""
        return self._line.ask(Request("read_range", self._place, key, start=start, length=length))[1]

    def size(self, key: str) -> int | None:
        """See `Store.size`."""
        found = self._asked("size", key)
        return None if found is None else int(found)

    def create(self, key: str, data: bytes) -> bool:
        """See `Store.create`."""
        return bool(self._line.ask(Request("create", self._place, key, payload=True), data)[0])

    def swap(self, key: str, data: bytes, version: str) -> bool:
        """See `Store.swap`."""
        return bool(self._line.ask(Request("swap", self._place, key, version, payload=True), data)[0])

    def replace(self, key: str, data: bytes) -> None:
        """See `Store.replace`."""
        self._line.ask(Request("replace", self._place, key, payload=True), data)

    def upload(self, key: str, path: Path) -> None:
        """See `Store.upload`."""
        with path.open("rb") as file:
            self._line.ask(Request("upload", self._place, key), file=file.fileno())

    def download(self, key: str, path: Path) -> None:
        """See `Store.download`."""
        part = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
        reader = self.open(key)
        try:
            with part.open("wb") as file:
                while data := reader.read(PIECE):
                    file.write(data)
            part.replace(path)
        finally:
            reader.close()
            part.unlink(missing_ok=True)

    def keys(self, prefix: str = "", *, limit: int = 0) -> Iterator[str]:
        """See `Store.keys`."""
        yield from self._line.ask(Request("keys", self._place, prefix, length=limit))[0]

    def entries(self, prefix: str = "") -> Iterator[Entry]:
        """See `Store.entries`."""
        for key, size, written in self._asked("entries", prefix):
            yield Entry(key, size, written)

    def folders(self) -> list[str]:
        """See `Store.folders`."""
        return list(self._asked("folders"))

    def delete(self, key: str) -> None:
        """See `Store.delete`."""
        self._asked("delete", key)

    def probe(self) -> None:
        """See `Store.probe`."""
        self._asked("probe")

    def _asked(self, op: str, key: str = "") -> Any:
        return self._line.ask(Request(op, self._place, key))[0]


class _HeldReader:
    """A stream of an object; see `fedpipe.store.Reader`."""

    def __init__(self, line: Line, number: int, size: int) -> None:
        self._line, self._number, self.size = line, number, size

    def read(self, length: int) -> bytes:
        """See `Reader.read`."""
        pieces = []
        while length > 0 and (data := self._piece(min(length, PIECE))):
            pieces.append(data)
            length -= len(data)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _piece(self, length: int) -> bytes:
        return self._line.ask(Request("piece", number=self._number, length=length))[1]

    def close(self) -> None:
        """See `Reader.close`."""
        self._line.ask(Request("close", number=self._number))
