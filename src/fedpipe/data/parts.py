"""Stores shards: a learner's examples as objects in the store, in train, vote and test parts."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated
from urllib.parse import quote, unquote

import numpy as np
from msgspec import Meta, Struct

from fedpipe import weights
from fedpipe.data.examples import Examples, first_labels, label_counts
from fedpipe.data.schema import Column
from fedpipe.data.trees import Array, Tree, leaves, pack_strings, unpack_strings
from fedpipe.errors import CorruptError
from fedpipe.store import Store, keys
from fedpipe.store.objects import Digest, decode, encode, fetch_file, get_bytes, put_bytes, put_file

_TEXT, _ENDS = "#text", "#ends"
"""Suffixes of the two arrays that hold strings."""
_MOST_HEADER = 2**20
"""Bytes of the header of a data object: some thousand arrays."""
_COLUMNS = "#columns"
"""The array of a table's columns, as JSON."""


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
    arrays = {f"{part}/{path}": array for part, e in parts.items() for path, array in _flat(e)}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "examples"
        digest = weights.save(arrays, path)
        put_file(store, path, digest, owner)
        return digest, path.stat().st_size


def get_parts(
    store: Store, digest: str, owner: str | None = None, *, size: int | None = None
) -> dict[str, Examples]:  # fmt: skip
    """Reads examples of `put_parts`, an object of at most `size` bytes. Raises CorruptError and StoreError."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "examples"
        fetch_file(store, digest, path, owner, limit=size)
        arrays = weights.load(path, most=_MOST_HEADER)
    parts: dict[str, dict[str, Array]] = {}
    for name, array in arrays.items():
        part, _, rest = name.partition("/")
        parts.setdefault(part, {})[rest] = array
    return {part: _unflat(own, digest) for part, own in sorted(parts.items())}


def dump_examples(examples: Examples) -> bytes:
    """Returns examples as bytes, for a process with another NumPy; see `load_examples`."""
    return weights.dumps(dict(_flat(examples)))


def load_examples(data: bytes) -> Examples:
    """Returns the examples that `dump_examples` wrote. Raises CorruptError."""
    return _unflat(dict(weights.loads(data)), "examples")


def _flat(examples: Examples) -> Iterator[tuple[str, Array]]:
    """Yields arrays of numbers by path: `x`, or `x/<name>` for one of several; strings as two arrays."""
    if examples.weight is not None:
        yield "weight", examples.weight
    if examples.columns:
        yield _COLUMNS, np.frombuffer(encode(examples.columns), np.uint8)
    for side, tree in (("x", examples.x), ("y", examples.y)):
        for name, leaf in leaves(tree):
            path = f"{side}/{quote(name, safe='')}" if isinstance(tree, dict) else side
            if leaf.dtype == object:
                text, ends = pack_strings(leaf)
                yield f"{path}{_TEXT}", text
                yield f"{path}{_ENDS}", ends
            else:
                yield path, leaf


def _unflat(arrays: dict[str, Array], where: str) -> Examples:
    for name in [name for name in arrays if name.endswith(_TEXT)]:
        path = name.removesuffix(_TEXT)
        arrays[path] = unpack_strings(arrays.pop(name), arrays.pop(f"{path}{_ENDS}", np.empty(0)), where)
    sides: dict[str, Tree] = {}
    for side in ("x", "y"):
        named = {unquote(n.removeprefix(f"{side}/")): a for n, a in sorted(arrays.items()) if n.startswith(f"{side}/")}
        if not named and side not in arrays:
            raise CorruptError(f"the examples are incomplete: {side!r} is missing", where=where)
        sides[side] = named or arrays[side]
    held = arrays.get(_COLUMNS)
    columns = () if held is None else decode(held.tobytes(), tuple[Column, ...], where=where)
    return Examples(sides["x"], sides["y"], arrays.get("weight"), columns)


def put_shard(store: Store, learner: str, parts: Mapping[str, Examples]) -> tuple[Shard, str]:
    """Writes a learner's shard and returns it with the digest of its manifest."""
    data, size = put_parts(store, parts, learner)
    labels = label_counts(np.concatenate([first_labels(e.y) for e in parts.values()]))
    shard = Shard(learner=learner, data=data, size=size, parts={p: e.count for p, e in parts.items()}, labels=labels)
    digest = put_bytes(store, encode(shard), learner)
    store.replace(keys.shard(learner), encode(shard))
    return shard, digest


def get_shard_parts(store: Store, learner: str, digest: str) -> dict[str, Examples]:
    """Reads the examples of a shard by the digest of its manifest. Raises CorruptError and StoreError."""
    shard = get_shard(store, learner, digest)
    return get_parts(store, shard.data, learner, size=shard.size)


def get_shard(store: Store, learner: str, digest: str) -> Shard:
    """Reads a shard's manifest. Raises CorruptError and StoreError."""
    return decode(get_bytes(store, digest, learner), Shard, where=f"shard of {learner}")
