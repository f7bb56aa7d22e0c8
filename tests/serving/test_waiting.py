"""Work with a deadline, which needs no timer when it is done at once."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from fedpipe.serving.waiting import within


async def work(*seconds: float, result: Any = 7) -> Any:
    for pause in seconds:
        await asyncio.sleep(pause)
    if isinstance(result, Exception):
        raise result
    return result


@pytest.mark.parametrize("pauses", [(), (0.0,), (0.001, 0.001)], ids=["at once", "a step", "two timers"])
def test_the_result_is_that_of_the_work(pauses: tuple[float, ...]) -> None:
    assert asyncio.run(within(60.0, work(*pauses))) == 7
    with pytest.raises(KeyError, match="why"):
        asyncio.run(within(60.0, work(*pauses, result=KeyError("why"))))


def test_work_that_takes_too_long_is_cancelled() -> None:
    ended = []

    async def endless() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(True)

    with pytest.raises(TimeoutError):
        asyncio.run(within(0.01, endless()))
    assert ended == [True]


def test_work_that_is_done_at_once_sets_no_timer() -> None:
    async def timers() -> int:
        loop, count = asyncio.get_running_loop(), 0
        call_at = loop.call_at

        def counted(*arguments: Any, **named: Any) -> Any:
            nonlocal count
            count += 1
            return call_at(*arguments, **named)

        loop.call_at = counted  # type: ignore[method-assign]
        await within(60.0, work())
        found = count
        await within(60.0, work(0.0))
        assert count == found + 1
        return found

    assert asyncio.run(timers()) == 0


def test_a_cancelled_waiter_cancels_the_work() -> None:
    """And work that goes on in spite of it ends with its result."""

    async def stubborn() -> str:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await asyncio.sleep(0)
            return "done"
        raise AssertionError

    async def main() -> str:
        task = asyncio.ensure_future(within(60.0, stubborn()))
        await asyncio.sleep(0)
        task.cancel()
        return await task

    assert asyncio.run(main()) == "done"
