"""Reads the bodies of HTTP responses: as they were sent, never decoded, and never more than was announced.

An object stored with `Content-Encoding: gzip` would otherwise grow after its size was checked: 544 bytes to 256 MiB.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Callable, Mapping
from typing import Any

import urllib3

from fedpipe.errors import CorruptError, StoreError
from fedpipe.store.base import Blob

MOST_ANSWER = 16 * 2**20
"""Bytes of an answer that a client reads into memory by default."""
_PIECE = 2**20
_PLAIN = ("", "identity", "aws-chunked")
"""Content encodings that leave the bytes as they are; `aws-chunked` only describes how they were uploaded."""


class TooLongError(urllib3.exceptions.HTTPError):
    """An answer has more bytes than its reader allows."""


class TornError(OSError):
    """The server sent the bytes of one version with the ETag of another."""


def is_torn(blob: Blob, headers: Mapping[str, str]) -> bool:
    """Returns whether the ETag is the MD5 of other bytes than these.

    VersityGW opens the file first and reads its ETag afterwards. After a write in between, a client that waits for a
    change would never see it. ETags of multipart or encrypted objects are not MD5s. If one looks like an MD5 all the
    same, the retry returns it again, and it is accepted.
    """
    found = re.fullmatch(r'"?([0-9a-f]{32})"?', blob.version)
    if found is None or "x-amz-server-side-encryption" in headers:
        return False
    return hashlib.md5(blob.data, usedforsecurity=False).hexdigest() != found[1]


def size_of(response: Any, where: str) -> int:
    """Returns the size that a response with an object announces.

    Raises:
        CorruptError: the object is stored with a content encoding.
        StoreError: the server does not announce the size.
    """
    encoding = response.headers.get("Content-Encoding", "")
    if any(part.strip().lower() not in _PLAIN for part in encoding.split(",")):
        raise CorruptError(
            f"the object is stored with the content encoding {encoding[:40]!r}, and is not decoded",
            where=where,
            remedy="Store it without Content-Encoding.",
        )
    text = response.headers.get("Content-Length", "")
    if not (text.isascii() and text.isdigit()):
        raise StoreError("the server does not announce the object's size", where=where)
    return int(text)


def version_of(response: Any, where: str) -> str:
    """Returns the ETag of a response with an object. Raises StoreError without one."""
    version = response.headers.get("ETag")
    if not version:
        kind = response.headers.get("Content-Type", "no type").partition(";")[0]
        what = f"the server is not an S3 store: its answer of type {kind[:60]} names no version"
        raise StoreError(what, where=where, remedy="Check the endpoint.")
    return str(version)


def check_start(response: Any, start: int, where: str) -> None:
    """Checks that a response begins at this byte of the object. Raises StoreError."""
    begins = response.headers.get("Content-Range", "").startswith(f"bytes {start}-")
    if not (response.status == 206 and begins) and (start or response.status != 200):
        raise StoreError("the server does not send the range that was asked for", where=where)


def read_exactly(response: Any, size: int, where: str) -> bytes:
    """Reads a body of `size` bytes.

    Raises:
        urllib3.exceptions.ProtocolError: the connection ended early.
        CorruptError: more bytes follow.
    """
    data = _read(response, size)
    if len(data) < size:
        raise urllib3.exceptions.ProtocolError("the connection ended early")
    if response.read(1):
        raise CorruptError(f"the server sends more than the {size} bytes that it announced", where=where)
    return data


def _read(response: Any, most: int) -> bytes:
    """Reads at most so many bytes, in pieces: a server may announce a size that it never sends."""
    first: bytes = response.read(min(most, _PIECE))
    if len(first) == most or not first:
        return first
    pieces, left = [first], most - len(first)
    while left and (piece := response.read(min(left, _PIECE))):
        pieces.append(piece)
        left -= len(piece)
    return b"".join(pieces)


def whole(response: Any, most: int) -> urllib3.BaseHTTPResponse:
    """Reads a response into memory and returns it as one whose connection is free again. Raises TooLongError."""
    try:
        data = _read(response, most + 1)
    except BaseException:
        response.close()
        raise
    if len(data) > most:
        response.close()
        raise TooLongError(f"the answer has more than {most} bytes")
    response.release_conn()
    return urllib3.HTTPResponse(
        io.BytesIO(data), response.headers, response.status, reason=response.reason, preload_content=False,
        decode_content=False, enforce_content_length=False,
    )  # fmt: skip


def bound(manager: urllib3.PoolManager, most: int) -> None:
    """Makes a pool of connections send its requests by `fetch`, as those of other packages do not."""
    manager.urlopen = _bounded(manager.urlopen, most)  # type: ignore[method-assign]


def _bounded(send: Callable[..., Any], most: int) -> Callable[..., Any]:
    def urlopen(method: str, url: str, redirect: bool = True, **more: Any) -> Any:
        return fetch(send, method, url, redirect, most=most, **more)

    return urlopen


def fetch(send: Callable[..., Any], method: str, url: str, redirect: bool, *, most: int, **more: Any) -> Any:
    """Sends a request by `urlopen` of urllib3. Its answer is not decoded, and has a limit if it is read at once.

    Args:
        send: `urlopen` of a pool.
        method: of HTTP.
        url: of the request.
        redirect: whether redirects are followed.
        most: bytes of an answer that is read at once: a refusal, or any answer unless `preload_content` is False.
        more: other arguments of `urlopen`.

    Raises:
        TooLongError: the answer has more bytes.
    """
    streamed = more.pop("preload_content", True) is False
    response = send(method, url, redirect, **{**more, "preload_content": False, "decode_content": False})
    return response if streamed and response.status < 300 else whole(response, most)


def release(response: Any) -> None:
    """Returns the connection to the pool; closes it if the body has not been read to its end."""
    if response.length_remaining != 0:  # None without a valid size
        response.close()
    response.release_conn()
