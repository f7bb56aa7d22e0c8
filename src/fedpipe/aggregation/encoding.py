"""Updates in fewer bytes: changes instead of weights, in bfloat16 or in whole numbers of 8 bits.

An encoded update is a file with one tensor of bytes. It holds the model's data in its order, so that both are read
together. Counters stay as they are. A float takes its own bytes, 2 (bfloat16), or 1 with a scale for each block:

    bytes of a block of n floats  =  scale s (float32), then n integers q in [-127, 127]
    value                         =  s q
    s                             =  max |value| / 127
    q                             =  floor(value / s + u), u uniform in [0, 1): the mean is the value

The rounding errors are added to the learner's next change (error feedback), so nothing is lost in the long run.

Source: Alistarh et al. 2017, "QSGD", section 3, with the largest value instead of the norm, by blocks; error feedback
as in Karimireddy et al. 2019, "Error Feedback Fixes SignSGD", Algorithm 2.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import ml_dtypes
import numpy as np
import numpy.typing as npt

from fedpipe.aggregation.arithmetic import Array, Floats
from fedpipe.aggregation.feeds import Chunk, Feed, Source, chunks_of, refusing
from fedpipe.errors import WeightsError
from fedpipe.federation.exchange import Exchange
from fedpipe.store import Store
from fedpipe.weights import Layout, layout_of

BLOCK = 256
"""Number of floats that share a scale: 260 bytes for 1024."""
_SCALE = 4
"""Bytes of a scale."""
_NAME = "exchange"
_LEVELS = 127
_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
Bytes = npt.NDArray[np.uint8]


class Encoding(NamedTuple):
    """How the updates of a round are encoded.

    Args:
        exchange: the settings of the federation.
        model: the layout of the global weights.
        base: the file of the global weights, from which changes count.
    """

    exchange: Exchange
    model: Layout
    base: Path

    @property
    def layout(self) -> Layout:
        """Return the layout of an encoded update."""
        count = sum(self.length(chunk) for chunk in chunks_of(self.model))
        return layout_of({_NAME: np.broadcast_to(np.uint8(0), count)})

    def length(self, chunk: Chunk) -> int:
        """Return the bytes of a chunk in an encoded update. All but the last of a dtype hold whole blocks."""
        count = _count(chunk)
        match _dtype(self.exchange, chunk):
            case "int8":
                return count + _SCALE * -(-count // BLOCK)
            case "bfloat16":
                return 2 * count
        return chunk.stop - chunk.start

    def start(self, chunk: Chunk) -> int:
        """Return where a chunk begins in the file of an encoded update."""
        before = (c._replace(stop=min(c.stop, chunk.start)) for c in chunks_of(self.model) if c.start < chunk.start)
        return self.layout.data_start + sum(self.length(piece) for piece in before)

    def decoded(self, data: bytes, chunk: Chunk) -> Array:
        """Return the weights that the bytes of a chunk stand for, in the model's dtype."""
        if not chunk.is_float:
            return np.frombuffer(data, chunk.dtype)
        with np.errstate(over="ignore", invalid="ignore"):  # values that are not finite are found later
            values = _lengthened(self.exchange, np.frombuffer(data, np.uint8), chunk)
            if self.exchange.changes:
                values += np.fromfile(self.base, chunk.dtype, count=values.size, offset=chunk.start)
            return values.astype(chunk.dtype)


def _count(chunk: Chunk) -> int:
    return (chunk.stop - chunk.start) // chunk.dtype.itemsize


def _dtype(exchange: Exchange, chunk: Chunk) -> str:
    """Return the dtype in which a chunk travels; empty for its own, if that is as short."""
    shorter = {"int8": 1, "bfloat16": 2}.get(exchange.dtype)
    return exchange.dtype if shorter and chunk.is_float and chunk.dtype.itemsize > shorter else ""


def _shortened(exchange: Exchange, values: Array, chunk: Chunk, random: np.random.Generator) -> Bytes:
    """Return the bytes for float64 values."""
    match _dtype(exchange, chunk):
        case "int8":
            return _quantised(values, random)
        case "bfloat16":
            return values.astype(_BFLOAT16).view(np.uint8)
    return values.astype(chunk.dtype).view(np.uint8)


def _lengthened(exchange: Exchange, data: Bytes, chunk: Chunk) -> Floats:
    """Return the float64 values of bytes."""
    match _dtype(exchange, chunk):
        case "int8":
            return _scaled(data, _count(chunk))
        case "bfloat16":
            return np.asarray(data.view(_BFLOAT16), np.float64)
    return data.view(chunk.dtype).astype(np.float64)


def _quantised(values: Array, random: np.random.Generator) -> Bytes:
    count = values.size
    rows = np.zeros((-(-count // BLOCK), BLOCK))
    rows.reshape(-1)[:count] = values
    scales = (np.abs(rows).max(axis=1, keepdims=True) / _LEVELS).astype("<f4")
    steps = np.where(scales > 0, scales, 1).astype(np.float64)
    whole = np.floor(rows / steps + random.random(rows.shape, np.float32))
    found = np.empty((len(rows), BLOCK + _SCALE), np.uint8)
    found[:, :_SCALE] = scales.view(np.uint8)
    found[:, _SCALE:] = np.clip(whole, -_LEVELS, _LEVELS).astype(np.int8).view(np.uint8)
    return found.reshape(-1)[: count + _SCALE * len(rows)]


def _scaled(data: Bytes, count: int) -> Floats:
    whole = np.zeros(-(-count // BLOCK) * (BLOCK + _SCALE), np.uint8)
    whole[: data.size] = data
    rows = whole.reshape(-1, BLOCK + _SCALE)
    scales = np.ascontiguousarray(rows[:, :_SCALE]).view("<f4").astype(np.float64)
    return np.asarray(rows[:, _SCALE:].view(np.int8) * scales).reshape(-1)[:count]


class Encoded(NamedTuple):
    """An encoded update, and what rounding took away from it."""

    update: dict[str, Array]
    residual: dict[str, Array]


def encode(
    exchange: Exchange, weights: Mapping[str, Array], base: Mapping[str, Array], residual: Mapping[str, Array],
    random: np.random.Generator,
) -> Encoded:  # fmt: skip
    """Return a learner's update in fewer bytes.

    Args:
        exchange: how.
        weights: after the training, by the names of the model.
        base: the global weights that the training began from.
        residual: what rounding took away from the learner's last update; empty for nothing.
        random: draws the rounding.

    Returns:
        The tensor of the file, and the next residual by the names of the model's floats, if a change is rounded.

    Raises:
        WeightsError: the weights have other names, dtypes or shapes than the base.
    """
    layout = layout_of(base)
    if difference := layout.difference(layout_of(weights)):
        raise WeightsError(f"the weights do not fit the model: {difference}")
    pieces: list[Bytes] = []
    lost: dict[str, list[Array]] = {}
    for chunk, parts in _chunks(layout):
        values = np.concatenate([_flat(weights[name])[span] for name, span in parts])
        if not chunk.is_float:
            pieces.append(values.view(np.uint8))
            continue
        wanted = values.astype(np.float64)
        if exchange.changes:
            wanted -= np.concatenate([_flat(base[name])[span] for name, span in parts])
        for name, part, span in _places(parts):
            if name in residual:
                wanted[part] += _flat(residual[name])[span]
        data = _shortened(exchange, wanted, chunk, random)
        pieces.append(data)
        if exchange.keeps_residual:
            missing = (wanted - _lengthened(exchange, data, chunk)).astype(np.float32)
            for name, part, _ in _places(parts):
                lost.setdefault(name, []).append(missing[part])
    kept = {name: np.concatenate(found).reshape(base[name].shape) for name, found in lost.items()}
    return Encoded({_NAME: np.concatenate(pieces) if pieces else np.empty(0, np.uint8)}, kept)


def _flat(array: Array) -> Array:
    return np.ascontiguousarray(array).reshape(-1)


def _places(parts: list[tuple[str, slice]]) -> Iterator[tuple[str, slice, slice]]:
    """Yield the names of parts, with their places in the chunk and in their tensors."""
    position = 0
    for name, span in parts:
        size = span.stop - span.start
        yield name, slice(position, position + size), span
        position += size


def _chunks(layout: Layout) -> Iterator[tuple[Chunk, list[tuple[str, slice]]]]:
    """Yield chunks of a layout with the parts of tensors that they hold."""
    tensors = [tensor for tensor in layout.tensors if tensor.stop > tensor.start]
    for chunk in chunks_of(layout):
        while tensors and tensors[0].stop <= chunk.start:
            tensors.pop(0)
        parts = []
        for tensor in tensors:
            if tensor.start >= chunk.stop:
                break
            size = chunk.dtype.itemsize
            first, last = max(tensor.start, chunk.start), min(tensor.stop, chunk.stop)
            parts.append((tensor.name, slice((first - tensor.start) // size, (last - tensor.start) // size)))
        if parts:
            yield chunk, parts


class EncodedFeed(Feed):
    """One encoded update in the store, read as the weights that it stands for."""

    def __init__(self, store: Store, source: Source, encoding: Encoding) -> None:
        self._encoding = encoding
        super().__init__(store, source, encoding.layout)

    def read(self, chunk: Chunk) -> bytes:
        """See `Operand.read`. The digest is that of the encoded bytes."""
        length = self._encoding.length(chunk)
        with refusing(self._store, self.learner):  # its owner may delete or change it in the meantime
            data = self._hashed(chunk.start, length)
        return self._encoding.decoded(data, chunk).tobytes() if len(data) == length else b""


def opened(store: Store, source: Source, layout: Layout, encoding: Encoding | None) -> Feed:
    """Open an update in the store. Raises RefusedError."""
    return Feed(store, source, layout) if encoding is None else EncodedFeed(store, source, encoding)
