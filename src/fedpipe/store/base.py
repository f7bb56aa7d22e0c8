"""What a store is: named objects, conditional writes that answer who won."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Protocol, Self

from fedpipe.errors import NotFoundError, StoreError

SECRET_DIR = "FEDPIPE_SECRET_DIR"  # noqa: S105  (the name of a variable)
"""Environment variable: a folder that holds a mounted secret: `accesskey`, `secretkey` and perhaps `signingkey`."""
SMALL = 16 * 2**20
"""Largest object, in bytes, that `read` takes into memory unless told otherwise."""

_SEGMENT = re.compile(r"[A-Za-z0-9_.\-]{1,255}")


class Blob(NamedTuple):
    """A whole small object: its bytes and the version token that `swap` takes."""

    data: bytes
    version: str


class Reader(Protocol):
    """An object opened for one pass from start to end."""

    size: int

    def read(self, length: int) -> bytes:
        """The next `length` bytes, fewer only at the end of the object."""

    def close(self) -> None:
        """Gives the connection or the file back."""


class Store(Protocol):
    """Objects under keys such as `runs/first/3/record`.

    Every implementation passes `tests/store/contract.py`. Writes are atomic: a reader sees the old object or the
    new one, never half of one. Errors are `fedpipe.errors.StoreError` and its children.
    """

    uri: str

    def below(self, prefix: str) -> Self:
        """The same store seen from `prefix`."""

    def read(self, key: str, *, limit: int = SMALL) -> Blob:
        """The whole object. Raises NotFoundError, or TooLargeError when it is larger than `limit` bytes."""

    def poll(self, key: str, version: str = "", *, limit: int = SMALL) -> Blob | None:
        """The whole object when its version is another than `version`; None when it is the same or absent.

        What a waiting step asks again and again: an S3 server answers 304 and sends no bytes. Raises TooLargeError when
        it is larger than `limit` bytes.
        """

    def age(self, key: str) -> float | None:
        """Seconds since the object was last written, by the store's own clock; None when there is none.

        The clocks of those who ask do not matter. An S3 server tells whole seconds.
        """

    def open(self, key: str) -> Reader:
        """The object as a stream. Raises NotFoundError."""

    def read_range(self, key: str, start: int, length: int) -> bytes:
        """Bytes [start, start + length), fewer where the object ends. Raises NotFoundError."""

    def size(self, key: str) -> int | None:
        """The object's size in bytes; None when there is none."""

    def create(self, key: str, data: bytes) -> bool:
        """Writes the object unless there is one. True when the object was made by this call."""

    def swap(self, key: str, data: bytes, version: str) -> bool:
        """Replaces the object if it still has this version. True when this call replaced it."""

    def replace(self, key: str, data: bytes) -> None:
        """Writes the object, whatever was there."""

    def upload(self, key: str, path: Path) -> None:
        """Writes a file of any size; for keys that name their content, where a second writer changes nothing."""

    def download(self, key: str, path: Path) -> None:
        """Writes the object to a file that appears only when it is whole. Raises NotFoundError."""

    def keys(self, prefix: str = "") -> Iterator[str]:
        """All keys that begin with `prefix` (any text, a folder or a part of a name), sorted."""

    def folders(self) -> list[str]:
        """The first segments of all keys that have more than one, sorted; cheap however many keys there are."""

    def delete(self, key: str) -> None:
        """Removes the object; silent when there is none."""

    def probe(self) -> None:
        """Checks reach, credentials, and that conditional writes are honoured. Raises StoreError with the remedy."""


def check_key(key: str) -> str:
    """Returns the key when it is safe in every store.

    Raises:
        StoreError: empty, absolute, longer than 900 characters, or a segment that is `.`, `..` or holds anything
            but letters, digits, `_`, `.` and `-`.
    """
    segments = key.split("/")
    if len(key) > 900 or not all(_SEGMENT.fullmatch(s) and s not in (".", "..") for s in segments):
        raise StoreError(f"not a safe object key: {key[:200]!r}")
    return key


def poll_by_reading(store: Store, key: str, version: str, limit: int) -> Blob | None:
    """`Store.poll` for a store that has no conditional read."""
    try:
        blob = store.read(key, limit=limit)
    except NotFoundError:
        return None
    return None if blob.version == version else blob


def probe_conditional_writes(store: Store, name: str) -> None:
    """Creates an object twice, swaps it with a stale version, and removes it.

    Raises:
        StoreError: a write that had to be refused was accepted.
    """
    key = f"probe-{name}"
    try:
        store.create(key, b"first")
        version = store.read(key).version
        honoured = not store.create(key, b"second") and store.swap(key, b"third", version)
        honoured = honoured and not store.swap(key, b"fourth", version)
    finally:
        store.delete(key)
    if not honoured:
        raise StoreError(
            "the store does not honour conditional writes (If-None-Match, If-Match)",
            where=store.uri,
            remedy="Two runs could overwrite each other's rounds. Use one that does, such as MinIO or AWS S3.",
        )
