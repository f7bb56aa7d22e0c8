"""URIs of stores: checked, completed and opened."""

from __future__ import annotations

import functools
import os
import re
from pathlib import Path
from urllib.parse import parse_qsl, urlencode, urlsplit

from fedpipe.errors import StoreError
from fedpipe.store import held
from fedpipe.store.base import Credentials, Store
from fedpipe.store.files import obstacle
from fedpipe.store.local import LocalStore
from fedpipe.store.memory import MemoryStore
from fedpipe.store.places import file_uri, is_uri, path_of
from fedpipe.store.userinfo import check_no_credentials

_SCHEMES = ("file", "s3", "memory")
_REGION = "us-east-1"
_PARAMETERS = {"endpoint", "region", "style"}
_STYLES = ("path", "virtual")
_FILE = "file://"
_ONE_SLASH = re.compile(r"(s3|file|memory|https?|gs):(?!//)")
"""A URI without its slashes, which would be a path."""
_ENDPOINT = "AWS_ENDPOINT_URL"


def check_uri(uri: str, *, folder: Path | None = None) -> str:
    """Returns the URI in its full form.

    Args:
        uri: `s3://bucket/prefix[?endpoint=...&region=...&style=...]`, `file:///dir`, `memory://name`, or a path.
        folder: where a relative path starts; the current folder by default.

    Raises:
        StoreError: the scheme or a parameter is unknown, or the bucket is missing.
        InputError: it contains credentials.
    """
    check_no_credentials(uri, "store")
    if not uri.strip():
        raise StoreError("the store has no name", remedy="Use s3://bucket/prefix, file:///folder or a path.")
    if "\0" in uri:
        raise StoreError(f"the store {uri!r} contains a zero byte", remedy="Remove it.")
    if match := _ONE_SLASH.match(uri):
        raise StoreError(
            f"the store {uri!r} lacks // after {match[0]}",
            remedy=f"Write {match[1]}://... for a URI, or ./{uri} for a folder of this name.",
        )
    if not is_uri(uri):
        return file_uri(((folder or Path.cwd()) / uri).resolve())
    try:
        parts = urlsplit(uri)
        query = dict(pairs := parse_qsl(parts.query, keep_blank_values=True))
    except ValueError as error:
        raise StoreError(f"the store {uri!r} is malformed: {error}", remedy="Write s3://bucket/prefix.") from error
    if parts.scheme not in _SCHEMES:
        raise StoreError(
            f"the store {uri!r} has an unknown scheme",
            remedy="Use s3://bucket/prefix, file:///folder or memory://name.",
        )
    if parts.scheme == "file" and not query:  # file://store and file://./store name a relative folder
        path = path_of(uri)
        return file_uri(path if path.is_absolute() else ((folder or Path.cwd()) / path).resolve())
    if any(c.isspace() or not c.isprintable() for c in uri):
        raise StoreError(f"the store {uri!r} contains a space or a control character", remedy="Remove it.")
    if parts.fragment or uri.endswith("#"):
        raise StoreError(f"the store {uri!r} has a part after '#'", remedy="Remove it.")
    if len(pairs) > len(query):
        raise StoreError(f"the store {uri!r} has a parameter twice", remedy="Keep one.")
    if parts.scheme == "s3" and not parts.netloc:
        raise StoreError(f"the store {uri!r} names no bucket", remedy="Write s3://bucket/prefix.")
    if parts.scheme == "s3" and {".", ".."} & set(parts.path.split("/")):
        raise StoreError(f"the store {uri!r} has a part '.' or '..'", remedy="Write the whole key without it.")
    if unknown := set(query) - (_PARAMETERS if parts.scheme == "s3" else set()):
        remedy = "Remove the query. In a name, write %3F."
        remedy = "Use only endpoint, region and style." if parts.scheme == "s3" else remedy
        raise StoreError(f"the store {uri!r} has an unknown parameter {sorted(unknown)[0]!r}", remedy=remedy)
    if (style := query.get("style", "path")) not in _STYLES:
        raise StoreError(f"the store {uri!r} has the style {style!r}", remedy="Use path or virtual.")
    return parts.scheme + uri[len(parts.scheme) :]


def with_endpoint(uri: str, default: str) -> str:
    """Adds the default's endpoint, and what belongs to it, to an S3 URI that names none.

    >>> with_endpoint("s3://other?region=eu", "s3://b/p?endpoint=http://host:9000&region=us-east-1")
    's3://other?endpoint=http://host:9000&region=eu'
    """
    place, _, query = uri.partition("?")
    known, given = urlsplit(default), dict(parse_qsl(query, keep_blank_values=True))
    if not uri.startswith("s3://") or known.scheme != "s3" or not known.query or "endpoint" in given:
        return uri
    return f"{place}?{urlencode({**dict(parse_qsl(known.query)), **given}, safe=':/') if given else known.query}"


def chosen_uri(given: str | None, default: str) -> str:
    """Returns the full form of the URI given to a command, or the federation's without one. Raises StoreError."""
    return with_endpoint(check_uri(given), default) if given is not None else default


def endpoint_of(uri: str, *, endpoint: str | None = None, region: str | None = None) -> str:
    """Returns the endpoint of an S3 URI: the given one, the query's, the environment's, or that of AWS."""
    query = dict(parse_qsl(urlsplit(uri).query))
    given = {"endpoint": endpoint, "store": query.get("endpoint"), _ENDPOINT: os.environ.get(_ENDPOINT)}
    for where, found in given.items():
        if found:
            return check_no_credentials(found, where)
    return f"https://s3.{region_of(uri, region)}.amazonaws.com"


def open_store(
    uri: str, *, endpoint: str | None = None, region: str | None = None, deadline: float | None = None,
    credentials: Credentials | None = None,
) -> Store:  # fmt: skip
    """Opens a store. It sends no request yet; `probe` does.

    Args:
        uri: see `check_uri`.
        endpoint: for S3, `http(s)://host[:port]`; else the URI's query, `AWS_ENDPOINT_URL` or AWS.
        region: for S3; else the URI's query, `AWS_REGION` or us-east-1.
        deadline: for S3, seconds after which a request to a server that does not answer fails.
        credentials: for S3; else those of the environment.

    Raises:
        StoreError: the URI is malformed, or there are no credentials.

    In a process whose parent holds the keys, an S3 store is opened there (`fedpipe.store.held`).

    >>> open_store("memory://readme").create("a/b", b"1")
    True
    """
    parts = urlsplit(check_uri(uri))
    if parts.scheme == "memory":
        shelf = _memory(parts.netloc)
        return shelf.below(parts.path.strip("/")) if parts.path.strip("/") else shelf
    line = held.line() if credentials is None else None
    if parts.scheme == "file" and not (line and os.environ.get(held.FOLDER) == check_uri(uri)):
        return LocalStore(path_of(check_uri(uri)))
    if line:
        return held.HeldStore(line, held.Place(check_uri(uri), endpoint, region, deadline))
    from fedpipe.store.s3 import MinioStore  # takes 0.3 s, which a local store need not pay
    from fedpipe.store.s3_client import DEADLINE

    return MinioStore(
        parts.netloc,
        parts.path.strip("/"),
        endpoint=endpoint_of(uri, endpoint=endpoint, region=region),
        region=region_of(uri, region),
        credentials=credentials,
        style=dict(parse_qsl(parts.query)).get("style", ""),
        deadline=DEADLINE if deadline is None else deadline,
    )


def check_folder(uri: str) -> None:
    """Checks that a store's folder can be created and written, and leaves nothing there. Raises StoreError."""
    if what := obstacle(path_of(uri)):
        raise StoreError(what, where=uri, remedy="Choose another folder for the store, or check its permissions.")


def region_of(uri: str, given: str | None = None) -> str:
    """Returns the region of an S3 URI: the given one, the query's, the environment's, or us-east-1."""
    query = dict(parse_qsl(urlsplit(uri).query))
    return given or query.get("region") or os.environ.get("AWS_REGION") or _REGION


@functools.cache
def _memory(name: str) -> MemoryStore:
    return MemoryStore(name)
