"""Holds the keys of a step for the process that does its work, and serves the store to it through a pipe.

The other process runs code of others, so its requests are guilty. They are decoded to a fixed type, and sizes are
bounded. Keys serve the step's own endpoint only. The process can do what the step may do in the store, and no more. It
never sees a key.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import socket
import stat
import threading
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle
from pathlib import Path
from typing import Any

import msgspec

from fedpipe.codec import from_json
from fedpipe.errors import Failure, FedpipeError, StoreError, one_line
from fedpipe.store.base import Reader, Store
from fedpipe.store.held import PIECE, Answer, Place, Request
from fedpipe.store.uri import check_uri, endpoint_of, open_store

log = logging.getLogger("fedpipe")

Other = Callable[[str, bytes], Any]
"""Answers a request that is not about a store, given its name and its bytes."""
Check = Callable[[Request, int, bytes], None]
"""Takes each request before it is made: with the number of bytes that it would send, and those bytes unless they are a
file. Raises FedpipeError to refuse it."""
Noted = Callable[[Request, int], None]
"""Takes each request that has opened or read an object, and the number of its bytes."""
_HEADER = 2**16
_PAYLOAD = 2**30
_READERS = 64
_Result = tuple[Any, bytes | None]


class Keyholder:
    """Answers the requests of one process until its end of the pipe is closed.

    Args:
        endpoint: the only endpoint at which stores are opened; see `endpoint_of`.
        others: answers by operation, such as `sign`.
        check: refuses requests of the store; by default, the keys decide alone.
        folder: URI of the only folder that is opened; by default, each process opens folders itself.
        noted: keeps the account of objects that are read.
    """

    def __init__(
        self, endpoint: str, others: Mapping[str, Other] | None = None, check: Check = lambda *_: None,
        folder: str = "", noted: Noted = lambda *_: None,
    ) -> None:  # fmt: skip
        self._check, self._folder, self._noted = check, folder, noted
        self._endpoint, self._others = endpoint, dict(others or {})
        self._readers: dict[int, Reader] = {}
        self._opened = functools.lru_cache(maxsize=16)(self._open)
        self._socket, self.theirs = socket.socketpair()
        self._connection = Connection(os.dup(self._socket.fileno()))

    def __enter__(self) -> Keyholder:
        threading.Thread(target=self._serve, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Answer no further request."""
        self.theirs.close()
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _serve(self) -> None:
        try:
            while True:
                self._answer(from_json(self._connection.recv_bytes(_HEADER), Request))
        except (EOFError, OSError):
            pass
        except (msgspec.DecodeError, RecursionError) as error:
            log.error("the process of the step asked for something malformed: %s", one_line(error))
        for reader in self._readers.values():
            with contextlib.suppress(FedpipeError, OSError):
                reader.close()
        self._connection.close()
        self.close()

    def _answer(self, request: Request) -> None:
        """Answer one request; whatever is wrong with it is an error of the other process only."""
        payload = self._connection.recv_bytes(_PAYLOAD) if request.payload else b""
        try:
            value, data = self._done(request, payload)
            answer = Answer(value=value, payload=data is not None)
        except FedpipeError as error:
            data, answer = None, Answer(failure=Failure.of(error))
        except Exception as error:  # such as a descriptor of something else
            refused = StoreError(f"the process that holds the keys cannot {request.op[:20]}: {one_line(error)}")
            data, answer = None, Answer(failure=Failure.of(refused))
        self._connection.send_bytes(msgspec.json.encode(answer))
        if data is not None:
            self._connection.send_bytes(data)

    def _done(self, request: Request, payload: bytes) -> _Result:
        if request.op == "upload":
            return self._uploaded(request)
        if request.op in self._others:
            return self._others[request.op](request.key, payload), None
        self._check(request, len(payload), payload)
        if request.op in ("piece", "close"):
            return self._read_on(request)
        store = self._store(request)
        if request.op == "open":
            return self._stream(request, store.open(request.key)), None
        operation = _OPERATIONS.get(request.op)
        if operation is None:
            raise StoreError(f"the process that holds the keys knows no operation {request.op[:20]!r}")
        value, data = operation(store, request, payload)
        if request.op in ("read", "poll", "read_range") and data is not None:
            self._noted(request, len(data))
        return value, data

    def _store(self, request: Request) -> Store:
        if request.place is None:
            raise StoreError("the request names no store")
        return self._opened(request.place)

    def _open(self, place: Place) -> Store:
        if not check_uri(place.uri).startswith("s3://") and place.uri != self._folder:
            raise StoreError("folders are opened by each process itself", where=place.uri)
        found = endpoint_of(place.uri, endpoint=place.endpoint, region=place.region)
        if found != self._endpoint and place.uri != self._folder:
            raise StoreError(
                f"the store is at {found}, but this step's keys are for {self._endpoint}",
                where=place.uri,
                remedy="Bring the data to the federation's own store.",
            )
        store = open_store(place.uri, endpoint=place.endpoint, region=place.region, deadline=place.deadline)
        return store.below(place.prefix) if place.prefix else store

    def _stream(self, request: Request, reader: Reader) -> tuple[int, int]:
        try:
            if len(self._readers) >= _READERS:
                raise StoreError(f"more than {_READERS} objects are read at once")
            self._noted(request, reader.size)
        except FedpipeError:
            reader.close()
            raise
        number = max(self._readers, default=0) + 1
        self._readers[number] = reader
        return number, reader.size

    def _read_on(self, request: Request) -> _Result:
        if request.op == "close":
            if reader := self._readers.pop(request.number, None):
                reader.close()
            return None, None
        return None, self._readers[request.number].read(max(0, min(request.length, PIECE)))

    def _uploaded(self, request: Request) -> _Result:
        """Upload the file of a descriptor, so that this process opens no path that the other one chooses."""
        handle = recv_handle(self._connection)
        try:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise StoreError("only a file can be uploaded")
            self._check(request, os.fstat(handle).st_size, b"")
            self._store(request).upload(request.key, Path(f"/proc/self/fd/{handle}"))
        finally:
            os.close(handle)
        return None, None


def _read(store: Store, request: Request, _: bytes) -> _Result:
    blob = store.read(request.key, limit=min(request.length, _PAYLOAD))
    return blob.version, blob.data


def _poll(store: Store, request: Request, _: bytes) -> _Result:
    blob = store.poll(request.key, request.version, limit=min(request.length, _PAYLOAD))
    return (None, None) if blob is None else (blob.version, blob.data)


def _read_range(store: Store, request: Request, _: bytes) -> _Result:
    return None, store.read_range(request.key, request.start, min(request.length, _PAYLOAD))


_OPERATIONS: dict[str, Callable[[Store, Request, bytes], _Result]] = {
    "uri": lambda store, _, __: (store.uri, None),
    "read": _read,
    "poll": _poll,
    "read_range": _read_range,
    "age": lambda store, request, _: (store.age(request.key), None),
    "size": lambda store, request, _: (store.size(request.key), None),
    "create": lambda store, request, data: (store.create(request.key, data), None),
    "swap": lambda store, request, data: (store.swap(request.key, data, request.version), None),
    "replace": lambda store, request, data: (store.replace(request.key, data), None),  # type: ignore[func-returns-value]
    "keys": lambda store, request, _: (list(store.keys(request.key, limit=request.length)), None),
    "entries": lambda store, request, _: ([list(entry) for entry in store.entries(request.key)], None),
    "folders": lambda store, _, __: (store.folders(), None),
    "delete": lambda store, request, _: (store.delete(request.key), None),  # type: ignore[func-returns-value]
    "probe": lambda store, _, __: (store.probe(), None),  # type: ignore[func-returns-value]
}
