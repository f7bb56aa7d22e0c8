"""Stores shards: a learner's examples as objects in the store, in train, vote and test parts."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import numpy as np
from msgspec import Meta, Struct

from fedpipe import weights
from fedpipe.data.examples import Examples, label_counts
from fedpipe.errors import CorruptError
from fedpipe.store import Store, keys
from fedpipe.store.objects import Digest, decode, encode, fetch_file, get_bytes, put_bytes, put_file


class Shard(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Describes a learner's shard: its data object, the sizes of its parts, and the label counts over all parts."""

    format: int = 1
    learner: str
    data: Digest
    size: Annotated[int, Meta(ge=0)]
    parts: dict[str, int]
    labels: dict[str, int]


def put_parts(store: Store, parts: Mapping[str, Examples], owner: str | None = None) -> tuple[str, int]:
    """Writes examples as one object and returns its digest and its size in bytes."""
    arrays = {f"{part}/{name}": value for part, e in parts.items() for name, value in e._asdict().items()}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "examples"
        digest = weights.save(arrays, path)
        put_file(store, path, digest, owner)
        return digest, path.stat().st_size


def get_parts(store: Store, digest: str, owner: str | None = None) -> dict[str, Examples]:
    """Reads examples that `put_parts` wrote. Raises CorruptError and StoreError."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "examples"
        fetch_file(store, digest, path, owner)
        arrays = weights.load(path)
    try:
        return {p: Examples(arrays[f"{p}/x"], arrays[f"{p}/y"]) for p in sorted({n.split("/")[0] for n in arrays})}
    except KeyError as error:
        raise CorruptError(f"the examples are incomplete: {error} is missing", where=digest) from error


def put_shard(store: Store, learner: str, parts: Mapping[str, Examples]) -> tuple[Shard, str]:
    """Writes a learner's shard and returns it with the digest of its manifest."""
    data, size = put_parts(store, parts, learner)
    labels = label_counts(np.concatenate([e.y for e in parts.values()]))
    shard = Shard(learner=learner, data=data, size=size, parts={p: len(e.y) for p, e in parts.items()}, labels=labels)
    digest = put_bytes(store, encode(shard), learner)
    store.replace(keys.shard(learner), encode(shard))
    return shard, digest


def get_shard(store: Store, learner: str, digest: str) -> Shard:
    """Reads a shard's manifest. Raises CorruptError and StoreError."""
    return decode(get_bytes(store, digest, learner), Shard, where=f"shard of {learner}")
