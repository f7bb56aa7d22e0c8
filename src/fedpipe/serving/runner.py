"""Runs requests of one version in threads: what an input costs is known only afterwards. Or several as one batch."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fedpipe.registry.prediction import runtime
from fedpipe.serving.protocol import RefusedError
from fedpipe.serving.runtime import Loaded

Array = npt.NDArray[Any]
Feed = Mapping[str, Array]


class Batching(NamedTuple):
    """Most examples of a batch, and the seconds that the first of them waits for others; off when size is 1."""

    size: int = 1
    delay: float = 0.0


class _Waiting(NamedTuple):
    feed: Feed
    rows: int
    done: asyncio.Future[dict[str, Array]]


class Runner:
    """One version's requests.

    Args:
        loaded: the version.
        pool: threads, one for each run at a time.
        batching: whether requests wait for each other.
        seconds: that a run may take.
        told: hears how many examples each run had.
    """

    def __init__(
        self, loaded: Loaded, pool: ThreadPoolExecutor, *, batching: Batching, seconds: float,
        told: Callable[[int], None] = lambda _: None,
    ) -> None:  # fmt: skip
        self.loaded = loaded
        self._pool, self._batching, self._seconds, self._told = pool, batching, seconds, told
        self._waiting: dict[Any, list[_Waiting]] = {}
        self._runs: set[asyncio.Task[None]] = set()

    async def run(self, feed: Feed) -> dict[str, Array]:
        """All outputs by name.

        Raises:
            RefusedError: the model fails on this input, or takes too long.
        """
        rows = len(next(iter(feed.values()))) if self.loaded.trial.batches else 1
        if any(len(array) != rows for array in feed.values()) and self.loaded.trial.batches:
            raise RefusedError(400, "the inputs differ in their number of examples")
        if not self.loaded.trial.batches or rows >= self._batching.size:
            return await self._run(feed, rows)
        return await self._together(feed, rows)

    async def _run(self, feed: Feed, rows: int) -> dict[str, Array]:
        self._told(rows)
        try:
            return await self._in_a_thread(feed)
        except RefusedError:
            raise
        except Exception as error:  # onnxruntime has no class of its own for a run that fails
            raise RefusedError(400, f"the model fails on this input: {' '.join(str(error).split())[:300]}") from error

    async def _in_a_thread(self, feed: Feed) -> dict[str, Array]:
        options = runtime().RunOptions()
        run = asyncio.get_running_loop().run_in_executor(self._pool, self.loaded.run, feed, options)
        try:
            return await asyncio.wait_for(asyncio.shield(run), self._seconds)
        except TimeoutError:
            options.terminate = True  # frees the thread
            run.add_done_callback(lambda done: done.cancelled() or done.exception())
            raise RefusedError(504, f"the model did not answer within {self._seconds:g} s") from None

    async def _together(self, feed: Feed, rows: int) -> dict[str, Array]:
        """Waits for others of the same shapes, until the batch is full or the first has waited long enough."""
        loop = asyncio.get_running_loop()
        key = tuple(array.shape[1:] for array in feed.values())
        batch = self._waiting.get(key, [])
        if batch and sum(one.rows for one in batch) + rows > self._batching.size:
            self._start(key)
            batch = []
        if not batch:
            self._waiting[key] = batch
            loop.call_later(self._batching.delay, self._start, key, batch)
        one = _Waiting(feed, rows, loop.create_future())
        batch.append(one)
        if sum(other.rows for other in batch) >= self._batching.size:
            self._start(key)
        return await one.done

    def _start(self, key: Any, batch: list[_Waiting] | None = None) -> None:
        if batch is not None and self._waiting.get(key) is not batch:
            return  # it was full before its time
        task = asyncio.ensure_future(self._run_batch(self._waiting.pop(key)))
        self._runs.add(task)
        task.add_done_callback(self._runs.discard)

    async def _run_batch(self, batch: list[_Waiting]) -> None:
        rows = sum(one.rows for one in batch)
        feed = {name: np.concatenate([one.feed[name] for one in batch]) for name in batch[0].feed}
        try:
            found = await self._run(feed, rows)
        except BaseException as error:
            for one in batch:
                if not one.done.done():
                    one.done.set_exception(error)
            return
        start = 0
        for one in batch:
            part = slice(start, start + one.rows)
            start += one.rows
            if not one.done.done():  # whoever asked may have gone
                one.done.set_result({name: array[part] for name, array in found.items()})
