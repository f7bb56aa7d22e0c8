"""Counts the memory of all requests together, and refuses what does not fit.

A request reserves what it holds: its body as it arrives, its arrays before they are parsed, its answer until it is
sent. A small request always fits, so large ones cannot keep it out.
"""

from __future__ import annotations

import threading

from fedpipe.serving.tensors import RequestError

SMALL = 2**16
"""Bytes of a request that always fit."""


class Memory:
    """Counts the bytes that requests hold.

    Args:
        most: bytes of all requests together.
    """

    def __init__(self, most: int) -> None:
        self._most, self._held, self._lock = most, 0, threading.Lock()

    def share(self) -> Share:
        """Returns the share of a new request, which holds nothing yet."""
        return Share(self)

    def change(self, before: int, after: int) -> None:
        """Replaces a share of `before` bytes by one of `after` bytes. Raises RequestError."""
        with self._lock:
            held = self._held - before + after
            if after > before and after > SMALL and held > self._most:
                raise RequestError(503, "other requests use the memory; retry later")
            self._held = held


class Share:
    """Holds the bytes of one request until it is released."""

    def __init__(self, memory: Memory) -> None:
        self._memory, self._held = memory, 0

    def grow(self, size: int) -> None:
        """Reserves more bytes. Raises RequestError when there are none."""
        self._memory.change(self._held, self._held + size)
        self._held += size

    def release(self) -> None:
        """Returns all bytes."""
        self._memory.change(self._held, 0)
        self._held = 0
