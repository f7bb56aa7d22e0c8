"""Add masked vectors, and turn their sum into weights."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from msgspec import UnsetType

from fedpipe.errors import CorruptError, DroppedError, NotFoundError
from fedpipe.federation.algorithms import LEAST_BOUND, Averaging, QuantileBound
from fedpipe.federation.names import LARGE
from fedpipe.rounds.manifests import Record
from fedpipe.rounds.plan import Plan
from fedpipe.rounds.received import Source, cleaned, guarded
from fedpipe.secure.masks import CHUNK
from fedpipe.secure.numbers import Grid, Words, packed_size, quantile_of, unpack
from fedpipe.secure.party import Form
from fedpipe.secure.vector import Vector
from fedpipe.store import Store, keys
from fedpipe.store.objects import fetch_file
from fedpipe.weights import FLOATS, Layout, check_finite, head_bytes


def bound_after(plan: Plan, previous: Record) -> float:
    """Return the bound of the changes in the round after a record, which follows from the record alone."""
    secure = plan.federation.secure
    assert secure is not None
    if not isinstance(secure.bound, QuantileBound):
        return secure.bound
    last = previous.secure
    if isinstance(last, UnsetType) or not last.bound:
        return secure.bound.initial
    if not any(last.magnitudes):
        return last.bound
    found = last.bound * secure.bound.margin * quantile_of(last.magnitudes, secure.bound.quantile)
    return min(max(found, LEAST_BOUND), LARGE)


def grid_of(plan: Plan, bound: float) -> Grid:
    """Return the grid of the vectors of a round with this bound."""
    secure = plan.federation.secure
    assert secure is not None
    return Grid(secure.bits, bound, len(plan.federation.learners))


def vector_of(plan: Plan, layout: Layout, metrics: tuple[str, ...], bound: float) -> Vector:
    """Return the form of the vectors of a round with this bound."""
    secure = plan.federation.secure
    assert secure is not None
    return Vector(grid_of(plan, bound), layout, metrics, isinstance(secure.bound, QuantileBound))


def largest_examples(plan: Plan) -> int:
    """Return the most train examples of any learner, which all weights are relative to; 0 if all weigh the same."""
    algorithm = plan.federation.algorithm
    assert isinstance(algorithm, Averaging)
    if algorithm.weighting != "examples":
        return 0
    dealt = max((sizes.get("train", 0) for sizes in plan.sizes.values()), default=0)
    return max(dealt, algorithm.most_examples) if any(one.brings_data for one in plan.federation.learners) else dealt


class Sum(NamedTuple):
    """The sum of masked vectors, and the preambles of their objects."""

    total: Words
    preambles: Mapping[str, bytes]


def add_vectors(
    store: Store, run: str, form: Form, vector: Vector, vectors: Mapping[str, str]
) -> tuple[Sum, dict[str, str]]:
    """Download and add masked vectors, one after the other.

    Args:
        store: the federation's store.
        run: the run's name.
        form: of the preambles.
        vector: the form of each vector.
        vectors: the digest of each object, by learner.

    Returns:
        The sum of those that can be used, and the reasons why the others cannot.
    """
    total = np.zeros(vector.size, vector.grid.dtype)
    preambles, refused = dict[str, bytes](), dict[str, str]()
    for name in sorted(vectors):
        try:
            source = Source(store, run, keys.content(vectors[name], name), "masked vector")
            preambles[name] = _added(source, form, vector, name, vectors[name], total)
        except DroppedError as error:
            refused[name] = cleaned(error.what)
    return Sum(total, preambles), refused


def _added(source: Source, form: Form, vector: Vector, name: str, digest: str, total: Words) -> bytes:
    """Add one vector to the total, once it is verified, and return its preamble. Raises DroppedError."""
    size = form.size + vector.bytes
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vector"
        try:
            guarded(source, lambda: fetch_file(source.store, digest, path, name, limit=size))
        except (CorruptError, NotFoundError) as error:
            raise DroppedError(error.what) from error
        if not path.exists() or path.stat().st_size != size:
            raise DroppedError("its masked vector is missing, or has another size")
        with path.open("rb") as file:
            preamble = file.read(form.size)
            for start in range(0, total.size, CHUNK):
                part = total[start : start + CHUNK]
                data = file.read(packed_size(part.size, vector.grid.width))
                part += unpack(data, vector.grid.width, vector.grid.dtype)
    return preamble


def parcels(form: Form, preambles: Mapping[str, bytes], recipient: str) -> bytes:
    """Return the boxes for a member from all others, sorted by name, each with its marks."""
    return b"".join(form.parcel(preambles[name], recipient) for name in sorted(preambles) if name != recipient)


def cut_parcels(form: Form, members: Iterable[str], recipient: str, data: bytes) -> dict[str, bytes]:
    """Return the boxes for a member by their sender; see `parcels`."""
    each = form.box + form.marks
    names = [name for name in sorted(members) if name != recipient]
    return {name: data[place * each : (place + 1) * each] for place, name in enumerate(names)}


def write_mean(vector: Vector, total: Words, parties: int, factor: float, base: Path, path: Path) -> None:
    """Write the base moved by the mean change, tensor by tensor. Raises WeightsError if it is not finite."""
    layout = vector.layout
    changes = vector.decode(total, parties)
    with path.open("wb") as file, base.open("rb") as old:
        file.write(head_bytes(layout))
        for tensor in layout.tensors:
            old.seek(tensor.start)
            left = tensor.stop - tensor.start
            if tensor.dtype not in FLOATS:
                file.write(old.read(left))
                continue
            while left:
                of, _, change = next(changes)
                assert of.name == tensor.name
                size = change.size * tensor.numpy_dtype.itemsize
                values = np.frombuffer(old.read(size), tensor.numpy_dtype).astype(np.float64)
                with np.errstate(over="ignore"):
                    moved = (values + factor * change).astype(tensor.numpy_dtype)
                check_finite({tensor.name: moved})
                file.write(moved.tobytes())
                left -= size


def digest_of_file(path: Path) -> str:
    """Return the digest of a file."""
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
