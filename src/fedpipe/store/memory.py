"""Keeps a store in the memory of this process, for tests and notebooks."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

from fedpipe.errors import NotFoundError, TooLargeError
from fedpipe.store.base import SMALL, Blob, Entry, Reader, check_key, poll_by_reading


class _Shelf:
    """Holds the objects that all views of one memory store share."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.lock = threading.Lock()
        self.clock = clock
        self.objects: dict[str, Blob] = {}
        self.written: dict[str, float] = {}
        self.writes = 0


class _MemoryReader:
    def __init__(self, data: bytes) -> None:
        self.size = len(data)
        self._stream = io.BytesIO(data)

    def read(self, length: int) -> bytes:
        return self._stream.read(length)

    def close(self) -> None:
        self._stream.close()


class MemoryStore:
    """Keeps objects in a dictionary behind a lock.

    Args:
        name: part of its URI.
        prefix: of the keys in it.
        clock: the store's own clock, in seconds; a simulation passes its own.
    """

    def __init__(
        self, name: str = "", prefix: str = "", *, clock: Callable[[], float] = time.monotonic,
        _shelf: _Shelf | None = None,
    ) -> None:  # fmt: skip
        self._name, self._prefix, self._shelf = name, prefix, _shelf or _Shelf(clock)
        self.uri = f"memory://{name}/{prefix}" if prefix else f"memory://{name}"

    def below(self, prefix: str) -> Self:
        return type(self)(self._name, self._key(prefix), _shelf=self._shelf)

    def _key(self, key: str) -> str:
        check_key(key)
        return f"{self._prefix}/{key}" if self._prefix else key

    def _put(self, key: str, data: bytes) -> None:
        self._shelf.writes += 1
        self._shelf.objects[key] = Blob(bytes(data), str(self._shelf.writes))
        self._shelf.written[key] = self._shelf.clock()

    def read(self, key: str, *, limit: int = SMALL) -> Blob:
        blob = self._shelf.objects.get(self._key(key))
        if blob is None:
            raise NotFoundError("there is no such object", where=f"{self.uri}/{key}")
        if len(blob.data) > limit:
            raise TooLargeError(
                f"the object has {len(blob.data)} bytes, the limit is {limit}", where=f"{self.uri}/{key}"
            )
        return blob

    def poll(self, key: str, version: str = "", *, limit: int = SMALL) -> Blob | None:
        return poll_by_reading(self, key, version, limit)

    def age(self, key: str) -> float | None:
        with self._shelf.lock:
            known = self._key(key) in self._shelf.objects
            return self._shelf.clock() - self._shelf.written[self._key(key)] if known else None

    def open(self, key: str) -> Reader:
        return _MemoryReader(self.read(key, limit=2**63).data)

    def read_range(self, key: str, start: int, length: int) -> bytes:
        return self.read(key, limit=2**63).data[start : start + length]

    def size(self, key: str) -> int | None:
        blob = self._shelf.objects.get(self._key(key))
        return None if blob is None else len(blob.data)

    def create(self, key: str, data: bytes) -> bool:
        with self._shelf.lock:
            won = self._key(key) not in self._shelf.objects
            if won:
                self._put(self._key(key), data)
            return won

    def swap(self, key: str, data: bytes, version: str) -> bool:
        with self._shelf.lock:
            blob = self._shelf.objects.get(self._key(key))
            won = blob is not None and blob.version == version
            if won:
                self._put(self._key(key), data)
            return won

    def replace(self, key: str, data: bytes) -> None:
        with self._shelf.lock:
            self._put(self._key(key), data)

    def upload(self, key: str, path: Path) -> None:
        self.replace(key, path.read_bytes())

    def download(self, key: str, path: Path) -> None:
        path.write_bytes(self.read(key, limit=2**63).data)

    def keys(self, prefix: str = "", *, limit: int = 0) -> Iterator[str]:
        root = f"{self._prefix}/" if self._prefix else ""
        found = sorted(k[len(root) :] for k in list(self._shelf.objects) if k.startswith(root + prefix))
        yield from found[:limit] if limit else found

    def entries(self, prefix: str = "") -> Iterator[Entry]:
        root = f"{self._prefix}/" if self._prefix else ""
        for key in self.keys(prefix):
            if (blob := self._shelf.objects.get(root + key)) is not None:
                yield Entry(key, len(blob.data), self._shelf.written[root + key])

    def folders(self) -> list[str]:
        return sorted({key.partition("/")[0] for key in self.keys() if "/" in key})

    def delete(self, key: str) -> None:
        with self._shelf.lock:
            self._shelf.objects.pop(self._key(key), None)

    def probe(self) -> None:
        """Does nothing: memory is always ready."""
