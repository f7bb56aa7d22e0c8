"""Waits for at most some seconds, without a timer when there is nothing to wait for."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Generator
from typing import Any, TypeVar

T = TypeVar("T")


async def within(seconds: float, work: Awaitable[T]) -> T:
    """Awaits work with a deadline. Work that is done at once needs no timer, which would take longer than the work.

    Args:
        seconds: the deadline.
        work: such as a call of ASGI.

    Raises:
        TimeoutError: it took longer, and was cancelled.
    """
    steps = work.__await__()
    try:
        first = next(steps)
    except StopIteration as end:
        done: T = end.value
        return done
    async with asyncio.timeout(seconds):
        return await _Resumed(first, steps)


class _Resumed(Awaitable[T]):
    """Work that has begun already, and waits for its first future."""

    def __init__(self, first: Any, steps: Generator[Any, Any, T]) -> None:
        self._first, self._steps = first, steps

    def __await__(self) -> Generator[Any, Any, T]:
        waiting = self._first
        while True:
            try:
                sent = yield waiting
            except BaseException as error:
                step = self._steps.throw, error
            else:
                step = self._steps.send, sent
            try:
                waiting = step[0](step[1])
            except StopIteration as end:
                done: T = end.value
                return done
