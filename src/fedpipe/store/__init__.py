"""The federation's bulletin board: where weights, manifests and HEAD live."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlsplit

from fedpipe.errors import StoreError
from fedpipe.store.base import SECRET_DIR, SMALL, Blob, Reader, Store
from fedpipe.store.local import LocalStore
from fedpipe.store.memory import MemoryStore

__all__ = [
    "SECRET_DIR", "SMALL", "Blob", "LocalStore", "MemoryStore", "Reader", "Store", "check_uri", "chosen_uri",
    "endpoint_of", "open_store", "with_endpoint",
]  # fmt: skip

_SCHEMES = ("file", "s3", "memory")
_REGION = "us-east-1"


@functools.cache
def _memory(name: str) -> MemoryStore:
    return MemoryStore(name)


def check_uri(uri: str, *, folder: Path | None = None) -> str:
    """The URI in its full form.

    Args:
        uri: `s3://bucket/prefix[?endpoint=...&region=...]`, `file:///dir`, `memory://name`, or a path.
        folder: where a relative path starts; the current folder by default.

    Raises:
        StoreError: another scheme, no bucket, or a query that is not known.
    """
    if "://" not in uri:
        return f"file://{((folder or Path.cwd()) / uri).resolve()}"
    parts = urlsplit(uri)
    query = dict(parse_qsl(parts.query, keep_blank_values=True))
    if parts.scheme not in _SCHEMES:
        raise StoreError(f"unknown store {uri!r}", remedy="Use s3://bucket/prefix, file:///folder or memory://name.")
    if parts.scheme == "file" and parts.netloc:  # file://store and file://./store mean a folder beside the file
        return f"file://{((folder or Path.cwd()) / (parts.netloc + unquote(parts.path))).resolve()}"
    if parts.scheme == "s3" and not parts.netloc:
        raise StoreError(f"no bucket in {uri!r}", remedy="Write s3://bucket/prefix.")
    if unknown := set(query) - ({"endpoint", "region"} if parts.scheme == "s3" else set()):
        raise StoreError(f"{sorted(unknown)[0]!r} in {uri!r} is not known", remedy="endpoint and region can be set.")
    return uri


def with_endpoint(uri: str, default: str) -> str:
    """An S3 URI without an endpoint takes that of the default.

    >>> with_endpoint("s3://other", "s3://b/p?endpoint=http://host:9000")
    's3://other?endpoint=http://host:9000'
    """
    known = urlsplit(default)
    if uri.startswith("s3://") and "?" not in uri and known.scheme == "s3" and known.query:
        return f"{uri}?{known.query}"
    return uri


def chosen_uri(given: str | None, default: str) -> str:
    """The store that a command was given, in its full form, or the federation's. Raises StoreError."""
    return with_endpoint(check_uri(given), default) if given else default


def endpoint_of(uri: str, *, endpoint: str | None = None, region: str | None = None) -> str:
    """Where an S3 URI is served: what is given, its query's, that of the environment, or AWS."""
    query = dict(parse_qsl(urlsplit(uri).query))
    region = region or query.get("region") or os.environ.get("AWS_REGION") or _REGION
    found = endpoint or query.get("endpoint") or os.environ.get("AWS_ENDPOINT_URL")
    return found or f"https://s3.{region}.amazonaws.com"


def open_store(
    uri: str, *, endpoint: str | None = None, region: str | None = None, deadline: float | None = None
) -> Store:
    """Opens a store.

    Args:
        uri: see `check_uri`.
        endpoint: for S3, `http(s)://host[:port]`; else the URI's query, `AWS_ENDPOINT_URL` or AWS.
        region: for S3; else the URI's query, `AWS_REGION` or us-east-1.
        deadline: for S3, seconds after which a server that does not answer is given up.

    Raises:
        StoreError: the URI is malformed, or there are no credentials. Nothing is sent yet: `probe` does.

    >>> open_store("memory://readme").create("a/b", b"1")
    True
    """
    parts = urlsplit(check_uri(uri))
    if parts.scheme == "memory":
        shelf = _memory(parts.netloc)
        return shelf.below(parts.path.strip("/")) if parts.path.strip("/") else shelf
    if parts.scheme == "file":
        return LocalStore(Path(unquote(parts.path)))
    from fedpipe.store.s3 import MinioStore  # 0.3 s that a local store need not pay
    from fedpipe.store.s3_client import DEADLINE

    query = dict(parse_qsl(parts.query))
    return MinioStore(
        parts.netloc,
        parts.path.strip("/"),
        endpoint=endpoint_of(uri, endpoint=endpoint, region=region),
        region=region or query.get("region") or os.environ.get("AWS_REGION") or _REGION,
        deadline=DEADLINE if deadline is None else deadline,
    )
