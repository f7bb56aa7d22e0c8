"""Content-addressed objects: named by the SHA-256 of their bytes, written once, verified whenever they are read."""

from __future__ import annotations

import contextlib
import hashlib
import re
import uuid
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta

from fedpipe.errors import CorruptError, NotFoundError
from fedpipe.store import SMALL, Store

Digest = Annotated[str, Meta(pattern=r"^sha256:[0-9a-f]{64}\Z")]
T = TypeVar("T")

_PIECE = 2**18
"""Bytes of a download that are hashed and written at a time, while they are in the processor's cache."""


def encode(value: Any) -> bytes:
    """Canonical JSON: keys sorted, no spaces. Equal values give equal bytes."""
    return msgspec.json.encode(value, order="sorted")


def decode(data: bytes, kind: type[T], *, where: str) -> T:
    """JSON bytes from outside to a struct. Raises CorruptError, naming what is wrong."""
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise CorruptError(f"not a valid {kind.__name__.lower()}: {str(error)[:300]}", where=where) from error


def find(store: Store, key: str, kind: type[T], *, limit: int = SMALL) -> T | None:
    """The struct at a key; None when there is nothing. Raises CorruptError, and TooLargeError above the limit."""
    try:
        return decode(store.read(key, limit=limit).data, kind, where=f"{store.uri}/{key}")
    except NotFoundError:
        return None


def publish(store: Store, key: str, value: T, *, limit: int = SMALL) -> T:
    """Writes a struct once and returns the one that counts: this one, or what was there before it."""
    if store.create(key, encode(value)):
        return value
    return find(store, key, type(value), limit=limit) or value


def digest_of(data: bytes) -> str:
    """`sha256:` and 64 hexadecimal digits."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


Kind = Literal["objects", "proposals", "coordinator"]
"""A learner's objects are its own; every learner may read its proposals; no learner reads what is the coordinator's."""


def key_of(digest: str, owner: str | None = None, kind: Kind = "objects") -> str:
    """The key of an object: `objects/<hex>`, `coordinator/<hex>`, or one below `learners/<owner>/`."""
    if not re.fullmatch(r"sha256:[0-9a-f]{64}", digest):
        raise CorruptError(f"not a digest: {digest[:100]!r}")
    if owner:
        return f"learners/{owner}/{kind}/{digest.removeprefix('sha256:')}"
    folder = "coordinator" if kind == "coordinator" else "objects"
    return f"{folder}/{digest.removeprefix('sha256:')}"


def put_bytes(store: Store, data: bytes, owner: str | None = None) -> str:
    """Writes an object unless it is there, and returns its digest."""
    digest = digest_of(data)
    key = key_of(digest, owner)
    if not store.create(key, data) and store.size(key) != len(data):
        store.replace(key, data)  # what is there cannot be what its name says
    return digest


def put_file(store: Store, path: Path, digest: str, owner: str | None = None, kind: Kind = "objects") -> None:
    """Writes a file of any size as an object unless it is there; `digest` is the file's."""
    key = key_of(digest, owner, kind)
    if store.size(key) != path.stat().st_size:
        store.upload(key, path)


def get_bytes(store: Store, digest: str, owner: str | None = None, *, limit: int = SMALL) -> bytes:
    """The object's bytes. Raises CorruptError when they do not match the digest, StoreError as `Store.read`."""
    key = key_of(digest, owner)
    data = store.read(key, limit=limit).data
    _check(digest_of(data), digest, f"{store.uri}/{key}")
    return data


def fetch_file(store: Store, digest: str, path: Path, owner: str | None = None, kind: Kind = "objects") -> None:
    """Writes the object to a file that appears only when it is whole and matches the digest."""
    key = key_of(digest, owner, kind)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    found = hashlib.sha256()
    try:
        with contextlib.closing(store.open(key)) as reader, temporary.open("wb") as file:
            while piece := reader.read(_PIECE):
                found.update(piece)
                file.write(piece)
        _check(f"sha256:{found.hexdigest()}", digest, f"{store.uri}/{key}")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _check(found: str, expected: str, where: str) -> None:
    if found != expected:
        raise CorruptError(f"the bytes have the digest {found}, not the one in their name", where=where)
