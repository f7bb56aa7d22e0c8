"""Brings a dataset of this machine to the federation's store, where pods read it."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import NamedTuple

from fedpipe.commands.opened import settle
from fedpipe.errors import InputError
from fedpipe.federation.sources import Source
from fedpipe.store import keys, open_store


class Put(NamedTuple):
    """Describes a dataset in the store: its URI for `data.uri`, its bytes, and whether it was there already."""

    uri: str
    size: int
    found: bool


def put(source: Source, file: str | Path, *, store: str | None = None) -> Put:
    """Uploads a file below `datasets/` of the federation, under its digest; the same content is uploaded once.

    Args:
        source: the federation file, or its content.
        file: the dataset.
        store: URI of the store instead of the federation's.

    Raises:
        InputError: the file cannot be read, or has a name that cannot be part of a key.
        StoreError: the store refuses it.

    >>> import fedpipe
    >>> fedpipe.put("demo/federation.yaml", "demo/digits.npz", store="memory://put").size > 0
    True
    """
    (federation, uri), path = settle(source, store), Path(file)
    try:
        with path.open("rb") as opened:
            size, digest = path.stat().st_size, hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError as error:
        raise InputError(
            f"the file cannot be read: {error.strerror}", where=str(path), remedy="Check the path."
        ) from error
    if not re.fullmatch(r"[\w.\-]+", path.name):
        remedy = "Rename it: letters, digits, '.', '_', '-'."
        raise InputError(f"{path.name!r} cannot be part of a key", where=str(path), remedy=remedy)
    key = keys.dataset(digest, path.name)
    place = open_store(uri).below(federation.name)
    found = place.size(key) == size
    if not found:
        place.upload(key, path)
    base = uri.partition("?")[0].rstrip("/")
    return Put(f"{base}/{federation.name}/{key}", size, found)
