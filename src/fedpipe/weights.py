"""Weights: named arrays as safetensors bytes, canonical, checked, streamed.

A file has the safetensors format: 8 bytes (little-endian length of the header), the header, the data. The header is
JSON: name -> dtype, shape, [start, stop) of the data. We use the canonical form that the safetensors library itself
writes. Tensors are sorted by dtype (widest first), then by name. The header is padded with spaces to 8 bytes, and there
is no metadata. So equal weights give equal bytes and one SHA-256, in any order and from any framework.

Source: https://github.com/huggingface/safetensors, README, "Format".
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import ml_dtypes
import numpy as np
import numpy.typing as npt

from fedpipe.errors import WeightsError

Array = npt.NDArray[Any]
Fetch = Callable[[int, int], bytes]
"""Reads `length` bytes from `start`: of a file, of bytes, or of an object in a store."""

MAX_HEADER = 16 * 2**20
"""Largest accepted header, in bytes (some 100 000 tensors)."""
_SLACK = 2**12
"""Bytes by which a header may exceed that of its model, so that a mistake is still named."""
MAX_RANK = 32
MAX_NAME = 1024

# In the order in which the safetensors library sorts: the last one comes first in a file.
_DTYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "U8": np.dtype(np.uint8),
    "I8": np.dtype(np.int8),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "I16": np.dtype("<i2"),
    "U16": np.dtype("<u2"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I32": np.dtype("<i4"),
    "U32": np.dtype("<u4"),
    "F32": np.dtype("<f4"),
    "F64": np.dtype("<f8"),
    "I64": np.dtype("<i8"),
    "U64": np.dtype("<u8"),
}
_RANK = {name: rank for rank, name in enumerate(_DTYPES)}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
FLOATS = frozenset({"F8_E5M2", "F8_E4M3", "F16", "BF16", "F32", "F64"})
"""The dtypes that are averaged; all others are counters (see `fedpipe.aggregation`)."""


class Tensor(NamedTuple):
    """One entry of a header; `start` and `stop` count bytes from the beginning of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def numpy_dtype(self) -> np.dtype[Any]:
        """The NumPy dtype of the elements."""
        return _DTYPES[self.dtype]


class Layout(NamedTuple):
    """The layout of a weights file: its tensors in the order of their bytes, and its size in bytes."""

    tensors: tuple[Tensor, ...]
    data_start: int
    size: int

    def difference(self, other: Layout) -> str | None:
        """Return the first difference of `other` in names, dtypes or shapes, in words; None when they agree."""
        if self is other:
            return None
        mine = {t.name: t for t in self.tensors}
        theirs = {t.name: t for t in other.tensors}
        if missing := sorted(mine.keys() - theirs.keys()):
            return f"tensor {missing[0]!r} is missing"
        if extra := sorted(theirs.keys() - mine.keys()):
            return f"tensor {extra[0][:200]!r} is not part of the model"
        for name, tensor in mine.items():
            found = theirs[name]
            if (tensor.dtype, tensor.shape) != (found.dtype, found.shape):
                return (
                    f"tensor {name!r} is {found.dtype}{list(found.shape)} where the model has "
                    f"{tensor.dtype}{list(tensor.shape)}"
                )
        return None


def _laid_out(entries: Iterable[tuple[str, str, tuple[int, ...]]]) -> tuple[Layout, bytes]:
    """Return the canonical layout of these tensors, and the bytes before their data."""
    position, spans = 0, []
    for name, dtype, shape in sorted(entries, key=lambda e: (-_RANK[e[1]], e[0])):
        length = math.prod(shape) * _DTYPES[dtype].itemsize
        spans.append((name, dtype, shape, position, position + length))
        position += length
    table = {n: {"dtype": d, "shape": list(s), "data_offsets": [a, b]} for n, d, s, a, b in spans}
    text = json.dumps(table, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    start = 8 + len(text)
    tensors = tuple(Tensor(n, d, s, start + a, start + b) for n, d, s, a, b in spans)
    return Layout(tensors, start, start + position), len(text).to_bytes(8, "little") + text


def head_bytes(layout: Layout) -> bytes:
    """Return the bytes before the data of a canonical layout."""
    return _laid_out([(t.name, t.dtype, t.shape) for t in layout.tensors])[1]


@functools.lru_cache(maxsize=4)
def _expected_head(layout: Layout) -> bytes | None:
    """Return the bytes before the data of a layout, if it is canonical."""
    found, head = _laid_out([(t.name, t.dtype, t.shape) for t in layout.tensors])
    return head if found == layout else None


def layout_of(arrays: Mapping[str, npt.ArrayLike]) -> Layout:
    """Return the canonical layout of named arrays. Raises WeightsError for invalid names or dtypes."""
    return _laid_out(_entries(arrays))[0]


def _entries(arrays: Mapping[str, npt.ArrayLike]) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    for name, value in arrays.items():
        array = np.asarray(value)
        dtype = _NAMES.get(array.dtype.newbyteorder("<"))
        if dtype is None:
            raise WeightsError(f"tensor {name!r} has dtype {array.dtype}, which weights cannot hold")
        if not _is_name(name):
            raise WeightsError(f"not a tensor name: {name!r}")
        yield name, dtype, array.shape


def _is_name(name: object) -> bool:
    return isinstance(name, str) and 0 < len(name) <= MAX_NAME and name.isprintable() and name != "__metadata__"


def pieces(arrays: Mapping[str, npt.ArrayLike]) -> Iterator[bytes | memoryview]:
    """Yield the file's bytes, piece by piece, without copying contiguous arrays."""
    layout, head = _laid_out(_entries(arrays))
    yield head
    for tensor in layout.tensors:
        array = np.ascontiguousarray(arrays[tensor.name], dtype=tensor.numpy_dtype)
        if array.size:
            yield array.reshape(-1).view(np.uint8).data


def dumps(arrays: Mapping[str, npt.ArrayLike]) -> bytes:
    """Return named arrays as bytes.

    >>> dumps({"b": np.zeros((), np.float32)})[8:]
    b'{"b":{"dtype":"F32","shape":[],"data_offsets":[0,4]}}   \\x00\\x00\\x00\\x00'
    """
    return b"".join(pieces(arrays))


def save(arrays: Mapping[str, npt.ArrayLike], path: Path) -> str:
    """Write named arrays to a file, one tensor at a time, and return its digest `sha256:...`."""
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for piece in pieces(arrays):
            digest.update(piece)
            file.write(piece)
    return f"sha256:{digest.hexdigest()}"


def digest_of(arrays: Mapping[str, npt.ArrayLike]) -> str:
    """Return the digest `sha256:...` of the canonical bytes, without allocating them."""
    digest = hashlib.sha256()
    for piece in pieces(arrays):
        digest.update(piece)
    return f"sha256:{digest.hexdigest()}"


def read_layout(fetch: Fetch, size: int, model: Layout | None = None, *, most: int = MAX_HEADER) -> Layout:
    """Read and check the header of a weights file of `size` bytes.

    The claims of the header are checked before any memory is allocated. Its length must fit the file. Each span must
    equal shape x dtype and follow the one before without a gap. The last span must end where the file ends.

    Args:
        fetch: reads pieces of the file.
        size: of the file.
        model: the layout that is expected, if it is known. It bounds the header; its tensors are not compared. It is
            returned itself for a file with the same header, which is then not parsed.
        most: bytes of a header that are read; parsing takes some twenty times as many.

    Raises:
        WeightsError: the file is truncated, or its header violates the format.
    """
    prefix = fetch(0, 8)
    length = int.from_bytes(prefix, "little")
    if len(prefix) < 8 or length > size - 8:
        raise WeightsError(f"truncated: {size} bytes do not hold the header")
    if model is not None and length > model.data_start + _SLACK:
        raise WeightsError(f"the header claims {length} bytes where that of the model has {model.data_start - 8}")
    if length > most:
        raise WeightsError(f"the header claims {length} bytes; at most {most} are read")
    head = fetch(8, length)
    if len(head) < length:
        raise WeightsError("truncated inside the header")
    if model is not None and size == model.size and _expected_head(model) == bytes(prefix) + bytes(head):
        return model
    tensors = tuple(_checked_tensors(_parsed(head), 8 + length))
    end = tensors[-1].stop if tensors else 8 + length
    if end != size:
        raise WeightsError(f"the tensors end at byte {end}, the file at byte {size}")
    return Layout(tensors, 8 + length, size)


def _parsed(head: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        table = dict(pairs)
        if len(table) != len(pairs):
            raise WeightsError("the header names a tensor twice")
        return table

    try:
        table = json.loads(bytes(head).decode(), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise WeightsError("the header is not JSON") from error
    if not isinstance(table, dict):
        raise WeightsError("the header is not a table")
    table.pop("__metadata__", None)
    return table


def _checked_tensors(table: dict[str, Any], data_start: int) -> Iterator[Tensor]:
    entries = [_checked_tensor(name, entry) for name, entry in table.items()]
    position = 0
    for tensor in sorted(entries, key=lambda t: (t.start, t.stop)):
        if tensor.start != position:
            raise WeightsError(f"tensor {tensor.name!r} overlaps another or leaves a gap")
        if tensor.stop - tensor.start != math.prod(tensor.shape) * tensor.numpy_dtype.itemsize:
            raise WeightsError(f"tensor {tensor.name!r}: its bytes do not make its shape and dtype")
        position = tensor.stop
        yield tensor._replace(start=data_start + tensor.start, stop=data_start + tensor.stop)


def _checked_tensor(name: str, entry: Any) -> Tensor:
    if not _is_name(name):
        raise WeightsError(f"not a tensor name: {name[:200]!r}")
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise WeightsError(f"tensor {name!r}: dtype, shape and data_offsets are needed, and nothing else")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise WeightsError(f"tensor {name!r}: unknown dtype {str(dtype)[:40]!r}")
    if not _are_counts(shape) or len(shape) > MAX_RANK or math.prod(size or 1 for size in shape) >= 2**59:
        raise WeightsError(f"tensor {name!r}: not a shape")
    if not _are_counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise WeightsError(f"tensor {name!r}: not a span of bytes")
    return Tensor(name, dtype, tuple(shape), *offsets)


def _are_counts(values: Any) -> bool:
    return isinstance(values, list) and all(type(v) is int and 0 <= v < 2**63 for v in values)


def stream(
    fetch: Fetch, size: int, model: Layout | None = None, *, most: int = MAX_HEADER
) -> Iterator[tuple[str, Array]]:
    """Yield names and arrays, with one tensor in memory at a time; see `read_layout`. Raises WeightsError."""
    for tensor in read_layout(fetch, size, model, most=most).tensors:
        data = fetch(tensor.start, tensor.stop - tensor.start)
        if len(data) != tensor.stop - tensor.start:
            raise WeightsError(f"truncated inside tensor {tensor.name!r}")
        yield tensor.name, np.frombuffer(data, tensor.numpy_dtype).reshape(tensor.shape)


def loads(data: bytes) -> dict[str, Array]:
    """Return named, read-only arrays that share the memory of the bytes. Raises WeightsError."""
    view = memoryview(data)
    return dict(stream(lambda start, length: view[start : start + length], len(data)))  # type: ignore[arg-type,return-value]


def load(path: Path, *, most: int = MAX_HEADER) -> dict[str, Array]:
    """Read a file tensor by tensor, and return named arrays; see `read_layout`. Raises WeightsError."""
    with path.open("rb") as file:
        return dict(stream(fetch_from(file), path.stat().st_size, most=most))


def fetch_from(file: BinaryIO) -> Fetch:
    """Return a function that reads pieces of an open file."""

    def fetch(start: int, length: int) -> bytes:
        file.seek(start)
        return file.read(length)

    return fetch


def check_finite(arrays: Mapping[str, Array]) -> None:
    """Raise WeightsError, with the tensor's name, when a float is NaN or infinite."""
    for name, array in arrays.items():
        if _NAMES.get(array.dtype) in FLOATS and not np.isfinite(array).all():
            raise WeightsError(f"tensor {name!r} holds NaN or infinity")
