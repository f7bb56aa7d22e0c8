"""Aggregation of updates that stay in the store: constant memory, identical bytes in any order of arrival.

All updates of a round have one layout, so their files are the same coordinates at the same bytes. They are read side
by side, one chunk of each at a time, verified and combined while the next chunks are fetched. Memory is a few chunks,
whatever the size of the model and the number of learners.
"""

from __future__ import annotations

import contextlib
import hashlib
import queue
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fedpipe.aggregation.rules import BLOCK, Rule, check_weights, largest
from fedpipe.aggregation.server import ServerStep
from fedpipe.errors import FedpipeError, NotFoundError, WeightsError
from fedpipe.objects import fetch_file, key_of
from fedpipe.store import Reader, Store
from fedpipe.weights import FLOATS, Layout, head_bytes, layout_of, read_layout

_PIECE = 4 * BLOCK
"""Bytes of an update that are combined at a time."""
_AHEAD = 32
"""Pieces that are fetched before they are needed."""

Floats = npt.NDArray[np.float64]


class Source(NamedTuple):
    """An update's weights in the store, with its weight in the mean."""

    learner: str
    digest: str
    size: int
    weight: float


class Combined(NamedTuple):
    """The next global weights and optimizer state as files, and the learners that were refused, with the reason."""

    weights: tuple[Path, str]
    state: dict[str, tuple[Path, str]]
    accepted: tuple[str, ...]
    refused: dict[str, str]


class _RefusedError(FedpipeError):
    """An update that cannot be used."""

    def __init__(self, learner: str, why: str) -> None:
        super().__init__(why)
        self.learner = learner


class _Chunk(NamedTuple):
    """Bytes [start, stop) of the files, all of one dtype."""

    start: int
    stop: int
    dtype: np.dtype[Any]
    is_float: bool


def combine(
    store: Store,
    sources: Sequence[Source],
    *,
    layout: Layout,
    base: str,
    state: dict[str, str],
    rule: Rule,
    server: ServerStep,
    folder: Path,
) -> Combined:
    """Combines updates from the store into the next global weights.

    An update whose bytes are missing, truncated, altered, differently laid out or not finite is refused, and the
    pass is repeated without it: nothing of it remains in the result.

    Args:
        sources: the updates; their order does not matter.
        layout: the layout of the global weights, which every update must have.
        base: digest of the global weights that the updates began from.
        state: digests of the server optimizer's arrays; empty before the first step.
        folder: where the result's files are written.

    Raises:
        WeightsError: no update could be used, or the result is not finite.
        StoreError: the store failed; the step can be repeated.
    """
    left = sorted(sources, key=lambda s: s.learner)
    refused: dict[str, str] = {}
    with contextlib.closing(_Optimizer(store, server, base, state, layout, folder)) as optimizer:
        while left:
            try:
                path, digest = _one_pass(store, left, layout, rule, optimizer, folder)
            except _RefusedError as error:
                refused[error.learner] = error.what
                left = [s for s in left if s.learner != error.learner]
                continue
            return Combined((path, digest), optimizer.finish(), tuple(s.learner for s in left), refused)
    raise WeightsError("no update can be used: " + "; ".join(f"{k}: {v}" for k, v in sorted(refused.items())))


def _one_pass(
    store: Store, sources: list[Source], layout: Layout, rule: Rule, optimizer: _Optimizer, folder: Path
) -> tuple[Path, str]:
    check_weights([s.weight for s in sources])
    optimizer.restart()
    path, out = folder / "weights", hashlib.sha256()
    with contextlib.ExitStack() as stack, path.open("wb") as file:
        feeds = [stack.enter_context(contextlib.closing(_Feed(store, s, layout))) for s in sources]
        pieces = stack.enter_context(contextlib.closing(_Ahead(feeds, _chunks(layout))))
        hasher = stack.enter_context(contextlib.closing(_Hasher()))
        _emit(head_bytes(layout), file, out)
        for chunk in _chunks(layout):
            values = (_taken(pieces, feed, chunk, hasher) for feed in feeds)
            result = _combined(chunk, values, [s.weight for s in sources], rule, optimizer)
            if not (chunk.is_float and not np.isfinite(result).all()):
                _emit(result.tobytes(), file, out)
                continue
            _find_culprit(store, sources, chunk)
            raise WeightsError("the aggregate is not finite although every update is: lower the learning rates")
        hasher.close()
        for feed in feeds:
            feed.verify()
    return path, f"sha256:{out.hexdigest()}"


def _emit(data: bytes, file: Any, digest: Any) -> None:
    digest.update(data)
    file.write(data)


def _taken(pieces: _Ahead, feed: _Feed, chunk: _Chunk, hasher: _Hasher) -> npt.NDArray[Any]:
    data = pieces.next()
    if len(data) != chunk.stop - chunk.start:
        raise _RefusedError(feed.source.learner, "the weights are truncated")
    hasher.update(feed.digest, data)
    return np.frombuffer(data, chunk.dtype)


def _combined(
    chunk: _Chunk, values: Iterator[npt.NDArray[Any]], weights: list[float], rule: Rule, optimizer: _Optimizer
) -> npt.NDArray[Any]:
    if not chunk.is_float:
        return largest(values)
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is found and named afterwards
        stepped = optimizer.step(chunk, rule(values, weights))
        return stepped.astype(chunk.dtype)


def _find_culprit(store: Store, sources: list[Source], chunk: _Chunk) -> None:
    for source in sources:
        data = store.read_range(key_of(source.digest, source.learner), chunk.start, chunk.stop - chunk.start)
        if not np.isfinite(np.frombuffer(data, chunk.dtype)).all():
            raise _RefusedError(source.learner, "the weights hold NaN or infinity")


def _chunks(layout: Layout) -> Iterator[_Chunk]:
    """The data of a layout, cut at changes of dtype and at _PIECE bytes."""
    position = 0
    tensors = layout.tensors
    while position < len(tensors):
        last = position
        while last + 1 < len(tensors) and tensors[last + 1].dtype == tensors[position].dtype:
            last += 1
        first, stop = tensors[position], tensors[last].stop
        for start in range(first.start, stop, _PIECE):
            yield _Chunk(start, min(start + _PIECE, stop), first.numpy_dtype, first.dtype in FLOATS)
        position = last + 1


class _Feed:
    """One update's bytes, from its header on."""

    def __init__(self, store: Store, source: Source, layout: Layout) -> None:
        self.source, self.digest = source, hashlib.sha256()
        try:
            self._reader: Reader = store.open(key_of(source.digest, source.learner))
        except NotFoundError as error:
            raise _RefusedError(source.learner, "the weights are not in the store") from error
        try:
            if self._reader.size != source.size:
                raise WeightsError(f"the weights have {self._reader.size} bytes, the manifest says {source.size}")
            found = read_layout(self._hashed, self._reader.size)
            difference = layout.difference(found)
            if difference is None and found != layout:
                difference = "the tensors are not in canonical order"
            if difference is not None:
                raise WeightsError(difference)
        except WeightsError as error:
            self.close()
            raise _RefusedError(source.learner, error.what) from error

    def _hashed(self, _start: int, length: int) -> bytes:
        data = self._reader.read(length)
        self.digest.update(data)
        return data

    def read(self, length: int) -> bytes:
        return self._reader.read(length)

    def verify(self) -> None:
        if f"sha256:{self.digest.hexdigest()}" != self.source.digest:
            raise _RefusedError(self.source.learner, "the weights do not match their digest")

    def close(self) -> None:
        self._reader.close()


class _Hasher:
    """Hashes pieces in their order in another thread, and lets only a few of them wait."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1)
        self._waiting: deque[Future[None]] = deque()

    def update(self, digest: Any, data: bytes) -> None:
        self._waiting.append(self._pool.submit(digest.update, data))
        if len(self._waiting) > _AHEAD:
            self._waiting.popleft().result()

    def close(self) -> None:
        self._pool.shutdown()


class _Ahead:
    """Reads the chunks of all feeds in order, in a thread of its own, a few pieces ahead."""

    def __init__(self, feeds: list[_Feed], chunks: Iterator[_Chunk]) -> None:
        self._queue: queue.Queue[bytes | BaseException] = queue.Queue(_AHEAD)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._read, args=(feeds, chunks), daemon=True)
        self._thread.start()

    def _read(self, feeds: list[_Feed], chunks: Iterator[_Chunk]) -> None:
        try:
            for chunk in chunks:
                for feed in feeds:
                    self._put(feed.read(chunk.stop - chunk.start))
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


class _Optimizer:
    """The server optimizer over chunks: base and state come from verified files, the new state goes to files."""

    def __init__(
        self, store: Store, server: ServerStep, base: str, state: dict[str, str], layout: Layout, folder: Path
    ) -> None:
        self._server, self._folder = server, folder
        self._count = sum((t.stop - t.start) // t.numpy_dtype.itemsize for t in layout.tensors if t.dtype in FLOATS)
        self._base = folder / "base"
        if not server.replaces:
            fetch_file(store, base, self._base)
        for slot in server.slots:
            if slot in state:
                fetch_file(store, state[slot], folder / f"old-{slot}")
        self._layouts = {slot: layout_of({slot: np.broadcast_to(0.0, self._count)}) for slot in server.slots}
        self._known = frozenset(state) & frozenset(server.slots)
        self._position = 0
        self._files: dict[str, Any] = {}

    def restart(self) -> None:
        """Begins a pass from the first coordinate."""
        self._position = 0
        self.close()
        for slot in self._server.slots:
            self._files[slot] = (self._folder / f"new-{slot}").open("wb")
            self._files[slot].write(head_bytes(self._layouts[slot]))

    def step(self, chunk: _Chunk, aggregate: Floats) -> Floats:
        """The next values of a chunk's coordinates."""
        if self._server.replaces:
            return aggregate
        base = np.fromfile(self._base, chunk.dtype, count=aggregate.size, offset=chunk.start).astype(np.float64)
        old = {slot: self._old(slot, aggregate.size) for slot in self._server.slots}
        result, new = self._server.step(base, aggregate, old)
        for slot, values in new.items():
            self._files[slot].write(values.tobytes())
        self._position += aggregate.size
        return result

    def _old(self, slot: str, count: int) -> Floats:
        if slot not in self._known:
            return np.zeros(count)
        offset = self._layouts[slot].data_start + 8 * self._position
        return np.fromfile(self._folder / f"old-{slot}", np.float64, count=count, offset=offset)

    def finish(self) -> dict[str, tuple[Path, str]]:
        """The new state's files and digests."""
        self.close()
        paths = {slot: self._folder / f"new-{slot}" for slot in self._server.slots}
        return {slot: (path, _file_digest(path)) for slot, path in paths.items()}

    def close(self) -> None:
        """Closes the files of the new state."""
        for file in self._files.values():
            file.close()
        self._files = {}


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
