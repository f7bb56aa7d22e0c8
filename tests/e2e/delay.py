"""A TCP relay with the delay of a long line: where the kernel has no `tc netem`, bytes are late all the same."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from random import Random

PIECE = 65_536
EACH, STALL, SHARE = 0.025, 1.0, 0.01
"""Seconds by which each piece is late, each way; seconds of a stall, as of a packet that is sent again; the share of
pieces that stall."""


class Delay:
    """Passes bytes on between all addresses of this machine and one of its ports, late.

    Args:
        port: where it listens.
        target: to which it passes on; while nothing listens there, connections are cut.
    """

    def __init__(self, port: int, target: int) -> None:
        self.stalls = self.pieces = 0
        self._port, self._target, self._random = port, target, Random(0)
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)

    async def _serve(self) -> None:
        self._loop, self._over = asyncio.get_running_loop(), asyncio.Event()
        async with await asyncio.start_server(self._accept, "0.0.0.0", self._port):
            self._ready.set()
            await self._over.wait()
            for task in asyncio.all_tasks() - {asyncio.current_task()}:
                task.cancel()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError), contextlib.closing(writer):
            theirs, ours = await asyncio.open_connection("127.0.0.1", self._target)
            with contextlib.closing(ours):
                await asyncio.gather(self._carry(reader, ours), self._carry(theirs, writer))

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(PIECE):
            stalls = self._random.random() < SHARE
            self.pieces, self.stalls = self.pieces + 1, self.stalls + stalls
            await asyncio.sleep(STALL if stalls else EACH)
            writer.write(data)
            await writer.drain()
        writer.close()


@contextlib.contextmanager
def delaying(port: int, target: int) -> Iterator[Delay]:
    """A relay that is ended afterwards."""
    relay = Delay(port, target)
    relay._thread.start()
    assert relay._ready.wait(30)
    try:
        yield relay
    finally:
        relay._loop.call_soon_threadsafe(relay._over.set)
        relay._thread.join()
