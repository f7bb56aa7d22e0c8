"""Writes and reads content-addressed objects: named by the SHA-256 of their bytes and verified at every read."""

from __future__ import annotations

import contextlib
import hashlib
import math
import uuid
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta, Struct

from fedpipe.codec import from_json
from fedpipe.errors import CorruptError, InputError, NotFoundError, StoreError, StoreUnavailableError, TooLargeError
from fedpipe.store import SMALL, Store, keys

Digest = Annotated[str, Meta(pattern=r"^sha256:[0-9a-f]{64}\Z")]
T = TypeVar("T")

LOST = "Restore it from a copy of the store. Or begin another run, with training.start: fresh."
"""The remedy for objects that are missing or damaged."""
_AT_ONCE = 2**20
"""Largest file, in bytes, that a server gets without being asked first whether it has it: a request costs as much."""
_PIECE = 2**18
"""Bytes of a download that are hashed and written at a time; small enough for the processor's cache."""


def canonical(value: Any) -> bytes:
    """Encodes a value that was decoded or checked before: canonical JSON, with sorted keys and no spaces."""
    return msgspec.json.encode(value, order="sorted")


def encode(value: Any) -> bytes:
    """Encodes a value as canonical JSON: sorted keys, no spaces. Equal values give equal bytes.

    Raises:
        CorruptError: decoding would not give the value back. JSON has no infinity, for instance, and a type has bounds.
    """
    try:
        data = canonical(value)
        same = _is_finite(value) if not isinstance(value, Struct) else from_json(data, type(value)) == value
    except (msgspec.MsgspecError, ValueError, OverflowError, RecursionError) as error:
        raise CorruptError(f"{_named_type(value)} cannot be written, because {str(error)[:300]}") from error
    if not same:
        raise CorruptError(f"{_named_type(value)} cannot be written, because reading would not give it back")
    return data


def _named_type(value: Any) -> str:
    return f"the {type(value).__name__.lower()}"


def _is_finite(value: Any) -> bool:
    """Returns whether all numbers in nested builtin values are finite; JSON would have null in their place."""
    if isinstance(value, dict):
        return all(map(_is_finite, value.values()))
    if isinstance(value, list | tuple):
        return all(map(_is_finite, value))
    return not isinstance(value, float) or math.isfinite(value)


def decode(data: bytes, kind: type[T], *, where: str) -> T:
    """Decodes JSON bytes from outside into a struct. Raises CorruptError, which names the mistake."""
    try:
        found = from_json(data, kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        _check_format(data, kind, where)
        raise CorruptError(f"is not a valid {kind.__name__.lower()}: {str(error)[:300]}", where=where) from error
    if getattr(found, "format", FORMAT) not in _formats(kind):
        _check_format(data, kind, where)
    return found


def decoded_file(path: Path, kind: type[T]) -> T | None:
    """Reads a struct from a file of this machine; None without one. Raises InputError, and CorruptError as `decode`."""
    try:
        return decode(path.read_bytes(), kind, where=str(path))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", where=str(path)) from error


FORMAT = 1
"""The format of every manifest that this version reads and writes, unless its type has `FORMATS` or is `SPOKEN`."""
PROTOCOL = 1
"""The number of the protocol that the parties of a run speak; it grows when an earlier version could not follow.

It is the format of plans, boards, updates, ballots and records (`SPOKEN`). This version writes it and the one before,
and reads all earlier ones.
"""


def _formats(kind: type[Any]) -> Collection[int]:
    if getattr(kind, "SPOKEN", False):
        return range(1, PROTOCOL + 1)
    return getattr(kind, "FORMATS", (FORMAT,))


class _Formatted(Struct):
    """Any manifest, of which only the format matters."""

    format: int = FORMAT


def _check_format(data: bytes, kind: type[Any], where: str) -> None:
    """Raises CorruptError when a manifest has another format, which explains all other mistakes in it."""
    with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        if (found := from_json(data, _Formatted).format) not in _formats(kind):
            what = f"is not a valid {kind.__name__.lower()}: it has the unknown format {str(found)[:20]}"
            raise CorruptError(what, where=where, remedy="Upgrade fedpipe.")


def find(store: Store, key: str, kind: type[T], *, limit: int = SMALL) -> T | None:
    """Reads the struct at a key; returns None if there is none. Raises CorruptError, also above `limit` bytes."""
    try:
        return decode(store.read(key, limit=limit).data, kind, where=f"{store.uri}/{key}")
    except NotFoundError:
        return None
    except CorruptError as error:
        raise CorruptError(error.what, where=error.where, remedy=error.remedy or LOST) from error
    except TooLargeError as error:  # so a reader of another party's object expects one error only
        raise CorruptError(error.what, where=error.where, remedy=error.remedy) from error


def publish(store: Store, key: str, value: T, *, limit: int = SMALL) -> T:
    """Writes a struct unless the key exists, and returns the stored one: this one or an earlier one."""
    if store.create(key, encode(value)):
        return value
    return find(store, key, type(value), limit=limit) or value


def digest_of(data: bytes) -> str:
    """Returns the digest of some bytes: `sha256:` and 64 hexadecimal digits."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def put_bytes(store: Store, data: bytes, owner: str | None = None, kind: keys.Kind = "objects") -> str:
    """Writes an object unless it exists, and returns its digest."""
    digest = digest_of(data)
    _put(store, keys.content(digest, owner, kind), data)
    return digest


def put_file(store: Store, path: Path, digest: str, owner: str | None = None, kind: keys.Kind = "objects") -> None:
    """Uploads a file of any size as an object unless it exists; `digest` is that of the file."""
    key, size = keys.content(digest, owner, kind), path.stat().st_size
    if size <= _AT_ONCE and store.uri.startswith("s3://"):
        _put(store, key, path.read_bytes())
    elif _known_size(store, key) != size:
        store.upload(key, path)


def _put(store: Store, key: str, data: bytes) -> None:
    if not store.create(key, data) and _known_size(store, key) != len(data):
        store.replace(key, data)  # the stored bytes cannot match their name


def _known_size(store: Store, key: str) -> int | None:
    """Returns an object's size; None also if the store does not give it, because its writer encrypted it."""
    try:
        return store.size(key)
    except StoreUnavailableError:
        raise
    except StoreError:
        return None


def get_bytes(store: Store, digest: str, owner: str | None = None, *, limit: int = SMALL) -> bytes:
    """Reads an object's bytes. Raises CorruptError if they do not match the digest, and StoreError as `Store.read`."""
    key = keys.content(digest, owner)
    with _named():
        data = store.read(key, limit=limit).data
    _check(digest_of(data), digest, f"{store.uri}/{key}")
    return data


def fetch_file(
    store: Store, digest: str, path: Path, owner: str | None = None, kind: keys.Kind = "objects",
    *, limit: int | None = None,
) -> None:  # fmt: skip
    """Downloads an object to a file, which appears only once it is complete and matches the digest.

    Args:
        store: the federation's store.
        digest: of the object.
        path: of the file.
        owner: the learner that owns the object, if any.
        kind: the folder of the object.
        limit: bytes that it may have, if its size is known.

    Raises:
        CorruptError: the bytes do not match the digest, or are more than the limit.
        StoreError: the object is missing, or cannot be read.
    """
    key = keys.content(digest, owner, kind)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    found = hashlib.sha256()
    try:
        with _named():
            opened = store.open(key)
        with contextlib.closing(opened) as reader, temporary.open("wb") as file:
            if limit is not None and reader.size > limit:
                what = f"the object has {reader.size} bytes, the limit is {limit}"
                raise CorruptError(what, where=f"{store.uri}/{key}")
            left = reader.size
            while left > 0 and (piece := reader.read(min(_PIECE, left))):
                found.update(piece)
                file.write(piece)
                left -= len(piece)
        _check(f"sha256:{found.hexdigest()}", digest, f"{store.uri}/{key}")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def _named() -> Iterator[None]:
    """Names the remedy of a missing object."""
    try:
        yield
    except NotFoundError as error:
        raise NotFoundError("the object is missing from the store", where=error.where, remedy=LOST) from error


def _check(found: str, expected: str, where: str) -> None:
    if found != expected:
        raise CorruptError(f"the bytes have the digest {found}, not the one in their name", where=where, remedy=LOST)
