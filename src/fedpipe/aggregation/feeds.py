"""Operands of a pass over a round's updates: an update in the store, one in a file, or a sum of several.

All of them hold the same coordinates at the same places, so a pass takes one chunk of each at a time.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from fedpipe.aggregation.arithmetic import ADDED
from fedpipe.errors import (
    CorruptError,
    FedpipeError,
    NotFoundError,
    StoreError,
    StoreUnavailableError,
    WeightsError,
)
from fedpipe.store import Reader, Store, keys
from fedpipe.weights import FLOATS, Layout, read_layout

STRIP = 8 * ADDED
"""Bytes of an update in which all dtypes have whole strips that are added up, or measured, at a time."""
PIECE = 2 * STRIP
"""Bytes of an update that are read at a time."""
Piece = bytes | memoryview
"""A part of an operand's bytes."""
_AHEAD = 24
"""Number of pieces that are read before they are needed."""
_MOST_READERS = 4
"""Most threads that read."""


class Source(NamedTuple):
    """An update's weights in the store, and how much it counts.

    `place` is the learner's position among all learners of the federation, which decides the order of sums. `steps` are
    those of its training, which bound how far it may go.
    """

    learner: str
    digest: str
    size: int
    weight: float
    place: int
    steps: int = 1


class RefusedError(FedpipeError):
    """An update that cannot be used."""

    def __init__(self, learner: str, why: str) -> None:
        super().__init__(why)
        self.learner = learner


@contextlib.contextmanager
def refusing(store: Store, learner: str) -> Iterator[None]:
    """Turn every failure to read a learner's weights into a refusal, unless the store fails for all objects.

    Raises:
        RefusedError: the weights are missing, changed or malformed, or the store refuses to give them.
        StoreError: the store gives nothing.
    """
    try:
        yield
    except StoreUnavailableError:
        raise
    except NotFoundError as error:
        raise RefusedError(learner, "the weights are not in the store") from error
    except CorruptError as error:
        raise RefusedError(learner, error.what) from error
    except StoreError as error:  # the object may be encrypted with a key of its writer
        store.size(keys.HEAD)  # raises if the store refuses everything
        raise RefusedError(learner, f"the weights cannot be read: {error.what}"[:500]) from error


class Chunk(NamedTuple):
    """Bytes [start, stop) of the files, all of one dtype."""

    start: int
    stop: int
    dtype: np.dtype[Any]
    is_float: bool

    @property
    def sum_bytes(self) -> int:
        """Bytes of this chunk in a sum, whose floats are float64."""
        size = self.stop - self.start
        return size // self.dtype.itemsize * 8 if self.is_float else size


def chunks_of(layout: Layout, piece: int = PIECE) -> Iterator[Chunk]:
    """Cut the data of a layout at changes of dtype, and after `piece` bytes, a multiple of 8."""
    position = 0
    tensors = layout.tensors
    while position < len(tensors):
        last = position
        while last + 1 < len(tensors) and tensors[last + 1].dtype == tensors[position].dtype:
            last += 1
        first, stop = tensors[position], tensors[last].stop
        for start in range(first.start, stop, piece):
            yield Chunk(start, min(start + piece, stop), first.numpy_dtype, first.dtype in FLOATS)
        position = last + 1


class Operand(Protocol):
    """One update, or a sum of several (`summed`: its floats are float64 and weighted)."""

    learner: str
    place: int
    weight: float
    summed: bool

    def read(self, chunk: Chunk) -> bytes:
        """Read the bytes of the next chunk, and add them to the digest; fewer when the operand is truncated."""

    def verify(self) -> None:
        """Check the digest of all that was read, after the last chunk. Raises RefusedError."""

    def close(self) -> None:
        """Release the connection or the file."""


class Feed:
    """One update in the store, read once from its header on."""

    def __init__(self, store: Store, source: Source, layout: Layout) -> None:
        self.learner, self.place, self.weight, self.summed = source.learner, source.place, source.weight, False
        self._source, self._digest = source, hashlib.sha256()
        self._store = store
        with refusing(store, source.learner):
            self._reader: Reader = store.open(keys.content(source.digest, source.learner))
        try:
            with refusing(store, source.learner):
                if self._reader.size != source.size:
                    raise WeightsError(f"the weights have {self._reader.size} bytes, the manifest says {source.size}")
                found = read_layout(self._hashed, self._reader.size, layout)
                if found != layout:
                    raise WeightsError(layout.difference(found) or "the tensors are not in canonical order")
        except RefusedError:
            self.close()
            raise

    def _hashed(self, _start: int, length: int) -> bytes:
        data = self._reader.read(length)
        self._digest.update(data)
        return data

    def read(self, chunk: Chunk) -> bytes:
        """See `Operand.read`."""
        with refusing(self._store, self.learner):  # its owner may delete or change it in the meantime
            return self._hashed(chunk.start, chunk.stop - chunk.start)

    def verify(self) -> None:
        """See `Operand.verify`."""
        if f"sha256:{self._digest.hexdigest()}" != self._source.digest:
            raise RefusedError(self._source.learner, "the weights do not match their digest")

    def close(self) -> None:
        """See `Operand.close`."""
        self._reader.close()


class Kept:
    """An update in a file that was fetched and verified before, or a sum of such updates.

    Args:
        path: the data of the tensors without their header; of a sum, floats are float64.
        learner: whose update; of a sum, the first learner's.
        place: of the first learner.
        weight: of all together.
        summed: whether it is a sum.
    """

    def __init__(self, path: Path, learner: str, place: int, weight: float, *, summed: bool) -> None:
        self.path, self.learner, self.place, self.weight, self.summed = path, learner, place, weight, summed
        self._file: Any = None

    def read(self, chunk: Chunk) -> bytes:
        """See `Operand.read`."""
        self._file = self._file or self.path.open("rb", buffering=0)
        data: bytes = self._file.read(chunk.sum_bytes if self.summed else chunk.stop - chunk.start)
        return data

    def verify(self) -> None:
        """Do nothing: the file was verified."""

    def close(self) -> None:
        """See `Operand.close`."""
        if self._file is not None:
            self._file.close()
        self._file = None


def bytes_of(values: npt.NDArray[Any]) -> Piece:
    """Return the bytes of a flat array that will not change, without a copy."""
    return values.view(np.uint8).data


class Aside:
    """A thread that hashes or writes pieces in their order; its queue is short."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1)
        self._waiting: deque[Future[None]] = deque()

    def do(self, function: Callable[[Piece], None], data: Piece) -> None:
        """Call the function with a piece in the thread."""
        self._waiting.append(self._pool.submit(function, data))
        if len(self._waiting) > _AHEAD:
            self._waiting.popleft().result()

    def finish(self) -> None:
        """Wait until all is done. Raises what a function raised."""
        while self._waiting:
            self._waiting.popleft().result()

    def close(self) -> None:
        """End the thread."""
        self._pool.shutdown()


class Ahead:
    """Threads that read and hash the chunks of all operands, a few pieces ahead: each has some of the operands.

    A piece is hashed at once, while it is in the cache of the core.
    """

    def __init__(self, operands: Sequence[Operand], chunks: Callable[[], Iterator[Chunk]]) -> None:
        count = max(1, min(len(operands), (os.cpu_count() or 1) // 2, _MOST_READERS))
        self._readers = [_Reader(operands[k::count], chunks(), _AHEAD // count) for k in range(count)]

    def next(self, position: int) -> bytes:
        """Return the next piece of the operand at a position. Raises what reading raised."""
        return self._readers[position % len(self._readers)].next()

    def close(self) -> None:
        """End the threads."""
        for reader in self._readers:
            reader.close()


class _Reader:
    """A thread that reads the chunks of operands in order."""

    def __init__(self, operands: Sequence[Operand], chunks: Iterator[Chunk], ahead: int) -> None:
        self._queue: queue.Queue[bytes | BaseException] = queue.Queue(ahead)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._read, args=(operands, chunks), daemon=True)
        self._thread.start()

    def _read(self, operands: Sequence[Operand], chunks: Iterator[Chunk]) -> None:
        try:
            for chunk in chunks:
                for operand in operands:
                    self._put(operand.read(chunk))
                    if self._stopped.is_set():
                        return
        except BaseException as error:
            self._put(error)

    def _put(self, item: bytes | BaseException) -> None:
        while not self._stopped.is_set():
            with contextlib.suppress(queue.Full):
                self._queue.put(item, timeout=0.1)
                return

    def next(self) -> bytes:
        item = self._queue.get()
        if isinstance(item, BaseException):
            raise item
        return item

    def close(self) -> None:
        self._stopped.set()
        self._thread.join()
