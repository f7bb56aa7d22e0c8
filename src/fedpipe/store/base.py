"""Defines the interface of a store: named objects, with conditional writes that report who won."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Protocol, Self

from fedpipe.errors import NotFoundError, StoreError
from fedpipe.store import keys

SECRET_DIR = "FEDPIPE_SECRET_DIR"  # noqa: S105  (the name of a variable)
"""Environment variable: a folder with a mounted secret: `accesskey`, `secretkey` and optionally `signingkey`."""
SMALL = 16 * 2**20
"""Largest object, in bytes, that `read` loads into memory by default."""

_SEGMENT = re.compile(r"[A-Za-z0-9_.\-]{1,255}")


class Credentials(NamedTuple):
    """Holds the credentials of an S3 store, and never prints them."""

    access_key: str
    secret_key: str
    session_token: str | None = None

    def __repr__(self) -> str:
        return "Credentials(***)"


class Blob(NamedTuple):
    """Holds a whole small object: its bytes, and the version that `swap` expects."""

    data: bytes
    version: str


class Entry(NamedTuple):
    """Describes an object in a listing: its size in bytes, and when it was written, in seconds of the store's clock."""

    key: str
    size: int
    written: float


class Reader(Protocol):
    """Reads an object once, from start to end."""

    size: int

    def read(self, length: int) -> bytes:
        """Returns the next `length` bytes; fewer only at the end of the object."""

    def close(self) -> None:
        """Releases the connection or the file."""


class Store(Protocol):
    """Keeps objects under keys such as `runs/first/3/record` (`fedpipe.store.keys` lists them).

    Every implementation passes `fedpipe.store.testing.StoreContract`. Writes are atomic: a reader sees the old object
    or the new one, never a part of one. Errors are `fedpipe.errors.StoreError` and its subclasses.
    """

    uri: str

    def below(self, prefix: str) -> Self:
        """Returns the same store, seen from `prefix`."""

    def read(self, key: str, *, limit: int = SMALL) -> Blob:
        """Reads the whole object. Raises NotFoundError, or TooLargeError if it is larger than `limit` bytes."""

    def poll(self, key: str, version: str = "", *, limit: int = SMALL) -> Blob | None:
        """Reads the whole object if its version is not `version`; returns None if it is, or if there is no object.

        A waiting step polls with this call: while nothing changes, an S3 server answers 304 and sends no bytes.

        Raises:
            TooLargeError: the object is larger than `limit` bytes.
        """

    def age(self, key: str) -> float | None:
        """Returns the seconds since the object was last written; None if there is none.

        Only the store's own clock counts, not the caller's. S3 servers report whole seconds.
        """

    def open(self, key: str) -> Reader:
        """Opens the object as a stream. Raises NotFoundError."""

    def read_range(self, key: str, start: int, length: int) -> bytes:
        """Reads bytes [start, start + length); fewer if the object ends before. Raises NotFoundError."""

    def size(self, key: str) -> int | None:
        """Returns the object's size in bytes; None if there is none."""

    def create(self, key: str, data: bytes) -> bool:
        """Writes the object unless it exists. Returns whether this call created it."""

    def swap(self, key: str, data: bytes, version: str) -> bool:
        """Replaces the object if it still has this version. Returns whether this call replaced it."""

    def replace(self, key: str, data: bytes) -> None:
        """Writes the object unconditionally."""

    def upload(self, key: str, path: Path) -> None:
        """Uploads a file of any size. Use it for keys that name their content: equal writers change nothing."""

    def download(self, key: str, path: Path) -> None:
        """Downloads the object to a file, which appears only once it is complete. Raises NotFoundError."""

    def keys(self, prefix: str = "", *, limit: int = 0) -> Iterator[str]:
        """Lists all keys that begin with `prefix` (a folder, or part of a name), sorted.

        Where another party may write, pass a limit: the listing ends after so many keys, whatever that party leaves.
        """

    def entries(self, prefix: str = "") -> Iterator[Entry]:
        """Lists the objects whose keys begin with `prefix`, sorted by key."""

    def folders(self) -> list[str]:
        """Lists the first segments of all keys that have several, sorted; cheap for any number of keys."""

    def delete(self, key: str) -> None:
        """Removes the object if it exists."""

    def probe(self) -> None:
        """Checks that the store is reachable, accepts the credentials, and honours conditional writes.

        Raises:
            StoreError: one of them fails; with the remedy.
        """


@functools.lru_cache(maxsize=1024)
def is_safe(key: str) -> bool:
    """Returns whether a key is one that fedpipe writes; other clients of a bucket may use any text."""
    segments = key.split("/")
    return len(key) <= 900 and all(_SEGMENT.fullmatch(s) and s not in (".", "..") for s in segments)


def check_key(key: str) -> str:
    """Returns the key if it is safe in every store.

    Raises:
        StoreError: the key is empty, absolute or longer than 900 characters, or a segment is empty, `.` or `..`. Or a
            character is not a letter, a digit, `_`, `.`, `-` or `/`.
    """
    if not is_safe(key):
        raise StoreError(
            f"{key[:200]!r} is not a safe object key", remedy="Use only letters, digits, '_', '.', '-' and '/'."
        )
    return key


def poll_by_reading(store: Store, key: str, version: str, limit: int) -> Blob | None:
    """Implements `Store.poll` for a store without conditional reads."""
    try:
        blob = store.read(key, limit=limit)
    except NotFoundError:
        return None
    return None if blob.version == version else blob


def probe_conditional_writes(store: Store, name: str) -> None:
    """Creates an object twice, swaps it with a stale version, and removes it.

    Raises:
        StoreError: the store accepted a write that it had to refuse.
    """
    key = keys.probe(name)
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
            remedy="Use one that does, such as MinIO or AWS S3; otherwise runs could overwrite each other.",
        )
