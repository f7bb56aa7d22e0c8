"""Paths are not URIs: `#`, `?` and `%` are parts of a name in one and have a meaning in the other."""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import quote, unquote_to_bytes, urlsplit

from fedpipe.errors import StoreError

_FILE = "file://"


def file_uri(path: Path) -> str:
    """Returns the `file://` URI of an absolute path; `path_of` is its inverse.

    >>> file_uri(Path("/proj#1/50% off"))
    'file:///proj%231/50%25%20off'
    """
    kept = (c if c.isprintable() and c not in " %#?\\" else quote(os.fsencode(c)) for c in str(path))
    return f"{_FILE}{''.join(kept)}"


def path_of(place: str) -> Path:
    """Returns the path that a `file://` URI or a path names.

    Raises:
        StoreError: the URI is ambiguous.
    """
    if not is_uri(place):
        return Path(place)
    assert place[: len(_FILE)].lower() == _FILE
    rest = place[len(_FILE) :]
    if match := re.search(r"[#?]", rest):
        sign = match[0]
        raise StoreError(
            f"the URI {place!r} has a part after {sign!r}, and a folder has none",
            remedy=f"Write {quote(sign)} for a {sign!r} in a name, or a path without file://.",
        )
    if re.search(r"%(?![0-9A-Fa-f]{2})", rest):
        raise StoreError(f"the URI {place!r} has a lone %", remedy="Write %25 for it, or a path without file://.")
    if rest.partition("/")[0] == "localhost":
        raise StoreError(f"the URI {place!r} names a host", remedy="Write file:///folder, with three slashes.")
    return Path(os.fsdecode(unquote_to_bytes(rest)))


def is_uri(place: str) -> bool:
    """Returns whether a place is a URI, not a path of this machine."""
    return "://" in place


def suffix_of(place: str) -> str:
    """Returns the suffix of the file that a path or a URI names, such as `.npz`."""
    is_remote = is_uri(place) and not place.startswith(_FILE)
    return (Path(urlsplit(place).path) if is_remote else path_of(place)).suffix
