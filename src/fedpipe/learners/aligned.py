"""The common rows of a party of a cut network, which it found before the first round and keeps for itself."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fedpipe import weights
from fedpipe.data.shards import Indices
from fedpipe.errors import CorruptError, DataError, WeightsError
from fedpipe.store import Store
from fedpipe.store.objects import LOST, fetch_file, put_bytes
from fedpipe.weights import Array

_PLACES, _DIGEST = "places", "digest"


class Kept(NamedTuple):
    """The places of a party's common rows in their common order, and a digest of their ids."""

    places: Indices
    digest: bytes


def digest_of_ids(ids: Iterable[str]) -> bytes:
    """Return a digest of ids in their order."""
    found = hashlib.sha256()
    for text in ids:
        data = text.encode()
        found.update(len(data).to_bytes(8, "little") + data)
    return found.digest()


def in_common_order(places: Indices, ids: Array) -> Kept:
    """Return common rows in the order of their ids, which is the same at all parties."""
    ordered = np.array(sorted(places.tolist(), key=lambda place: str(ids[place])), np.int64)
    return Kept(ordered, digest_of_ids(ids[ordered]))


def keep_rows(store: Store, party: str, kept: Kept) -> str:
    """Write a party's common rows where only the party reads, and return their digest."""
    arrays: dict[str, Array] = {_PLACES: kept.places, _DIGEST: np.frombuffer(kept.digest, np.uint8)}
    return put_bytes(store, weights.dumps(arrays), party, "personal")


def read_kept(store: Store, party: str, digest: str) -> Kept:
    """Return a party's common rows, from the digest of their object. Raises CorruptError and StoreError."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows"
        fetch_file(store, digest, path, party, "personal")
        try:
            arrays = weights.load(path)
            return Kept(arrays[_PLACES].astype(np.int64), arrays[_DIGEST].tobytes())
        except (WeightsError, KeyError) as error:
            raise CorruptError(f"the common rows of {party} cannot be read", remedy=LOST) from error


def check_kept(kept: Kept, ids: Array, where: str) -> None:
    """Check that a party's rows are those of which it found the common ones. Raises DataError."""
    if len(kept.places) and (kept.places.max() >= len(ids) or digest_of_ids(ids[kept.places]) != kept.digest):
        raise DataError(
            "its rows have changed since the parties of this run found their common ones", where=where,
            remedy="Restore the file, or begin another run.",
        )  # fmt: skip
