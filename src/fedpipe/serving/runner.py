"""Runs the requests of one version in threads, since their cost is unknown in advance; optionally in batches.

A small request of a model whose last small runs were quick is answered at once, in the thread of the requests. If it is
not quick after all, it ends and runs in a thread of its own. The model has to be quick there before the next such run.
"""

from __future__ import annotations

import asyncio
import functools
import math
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fedpipe.errors import one_line
from fedpipe.registry.prediction import runtime
from fedpipe.serving.runtime import Loaded
from fedpipe.serving.tensors import RequestError
from fedpipe.serving.watch import WATCH

Array = npt.NDArray[Any]
Batch = Mapping[str, Array]


_QUICK = 0.0005
"""Seconds of a run from which on a change of thread costs little."""
_AT_MOST = 0.02
"""Seconds after which a run that was to be quick ends, and begins again in a thread of its own."""
_SMALL = 2**14
"""Bytes of the inputs of a small request."""


class Batching(NamedTuple):
    """Limits a batch: its most examples, and the seconds that the first waits for others; size 1 turns batching off."""

    size: int = 1
    delay: float = 0.0


class _PendingRequest(NamedTuple):
    feed: Batch
    rows: int
    outputs: asyncio.Future[dict[str, Array]]


class Runner:
    """Runs the requests of one version.

    Args:
        loaded: the version.
        pool: threads, one for each concurrent run.
        batching: how requests are combined.
        seconds: time limit of a run.
        most: bytes that the outputs of a run may have.
        on_run: receives the number of examples of each run.
    """

    def __init__(
        self, loaded: Loaded, pool: ThreadPoolExecutor, *, batching: Batching, seconds: float,
        most: int = 2**62, on_run: Callable[[int], None] = lambda _: None,
    ) -> None:  # fmt: skip
        self.loaded = loaded
        self._pool, self._batching, self._seconds, self._on_run = pool, batching, seconds, on_run
        self._most = most
        self._pending: dict[Any, list[_PendingRequest]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._usual = math.inf  # seconds of a small run, of late
        self._options: Any = None  # of runs in the thread of the requests, of which there is one at a time

    def _is_quick(self, feed: Batch) -> bool:
        """Return whether a request is small, and such requests are quick; whole numbers may count loops of a model."""
        return self._usual < _QUICK and _is_small(feed) and all(array.dtype.kind == "f" for array in feed.values())

    async def run(self, feed: Batch) -> dict[str, Array]:
        """Returns all outputs by name.

        Args:
            feed: inputs by name; the first axis counts examples if the model takes batches.

        Raises:
            RefusedError: the model fails on this input, or takes too long.
        """
        rows = len(next(iter(feed.values()))) if self.loaded.trial.batches else 1
        if any(len(array) != rows for array in feed.values()) and self.loaded.trial.batches:
            raise RequestError(400, "the inputs differ in their number of examples")
        if not self.loaded.trial.batches or rows >= self._batching.size:
            return await self._run(feed, rows)
        return await self._run_in_batch(feed, rows)

    async def _run(self, feed: Batch, rows: int) -> dict[str, Array]:
        self._on_run(rows)
        try:
            found = self._run_at_once(feed) if self._is_quick(feed) else None
            return await self._run_in_thread(feed) if found is None else found
        except RequestError:
            raise
        except Exception as error:  # onnxruntime has no exception class for a failed run
            raise RequestError(400, f"the model fails on this input: {one_line(error, 300)}") from error

    def _run_at_once(self, feed: Batch) -> dict[str, Array] | None:
        """Run in the thread of the requests; None when the run was ended, because it took too long for that."""
        options = self._options = self._options or runtime().RunOptions()
        try:
            with WATCH.over(options, _AT_MOST):
                return self.loaded.run(feed, options, most=self._most)
        except RequestError:
            raise
        except Exception:
            if not options.terminate:
                raise
            self._usual, self._options = math.inf, None
            return None

    def _timed(self, feed: Batch, options: Any) -> dict[str, Array]:
        started = time.perf_counter()
        found = self.loaded.run(feed, options, most=self._most)
        if _is_small(feed):
            seconds = time.perf_counter() - started
            self._usual = seconds if math.isinf(self._usual) else max(seconds, 0.9 * self._usual)
        return found

    async def _run_in_thread(self, feed: Batch) -> dict[str, Array]:
        options = runtime().RunOptions()
        work = functools.partial(self._timed, feed, options)
        run = asyncio.get_running_loop().run_in_executor(self._pool, work)
        try:
            return await asyncio.wait_for(asyncio.shield(run), self._seconds)
        except TimeoutError:
            options.terminate = True  # frees the thread
            run.add_done_callback(lambda done: done.cancelled() or done.exception())
            raise RequestError(504, f"the model did not answer within {self._seconds:g} s") from None

    async def _run_in_batch(self, feed: Batch, rows: int) -> dict[str, Array]:
        """Waits for requests of the same shapes, until the batch is full or the first has waited long enough."""
        loop = asyncio.get_running_loop()
        key = tuple(array.shape[1:] for array in feed.values())
        batch = self._pending.get(key, [])
        if batch and sum(request.rows for request in batch) + rows > self._batching.size:
            self._start(key)
            batch = []
        if not batch:
            self._pending[key] = batch
            loop.call_later(self._batching.delay, self._start, key, batch)
        own = _PendingRequest(feed, rows, loop.create_future())
        batch.append(own)
        if sum(request.rows for request in batch) >= self._batching.size:
            self._start(key)
        return await own.outputs

    def _start(self, key: Any, batch: list[_PendingRequest] | None = None) -> None:
        if batch is not None and self._pending.get(key) is not batch:
            return  # it was full, and started, before its delay was over
        task = asyncio.ensure_future(self._run_batch(self._pending.pop(key)))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run_batch(self, batch: list[_PendingRequest]) -> None:
        rows = sum(request.rows for request in batch)
        feed = {name: np.concatenate([request.feed[name] for request in batch]) for name in batch[0].feed}
        try:
            outputs = await self._run(feed, rows)
        except BaseException as error:
            for request in batch:
                if not request.outputs.done():
                    request.outputs.set_exception(error)
            return
        start = 0
        for request in batch:
            part = slice(start, start + request.rows)
            start += request.rows
            if not request.outputs.done():  # the client may have hung up
                request.outputs.set_result({name: array[part] for name, array in outputs.items()})


def _is_small(feed: Batch) -> bool:
    return sum(array.nbytes for array in feed.values()) <= _SMALL
