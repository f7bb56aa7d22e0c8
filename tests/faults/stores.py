"""A store that fails on purpose: before, during or after a call with a given number."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

from fedpipe.store import Blob, Entry, MemoryStore, Reader, Store
from tests.simulation import Killed

Hook = Callable[[int, str, str], None]
"""Hears the number, the name and the key of a call; may end the process or raise."""


def silent(_number: int, _name: str, _key: str) -> None:
    """Does nothing."""


class HookedStore:
    """Passes calls on, with a hook before and a hook after each.

    Args:
        inner: the store.
        before: called first.
        after: called when the call is done, whatever it gave.
    """

    def __init__(
        self, inner: Store, before: Hook = silent, after: Hook = silent, *, _count: list[int] | None = None
    ) -> None:
        self._inner, self._before, self._after = inner, before, after
        self.count = _count if _count is not None else [0]
        self.uri = inner.uri

    def below(self, prefix: str) -> Self:
        return type(self)(self._inner.below(prefix), self._before, self._after, _count=self.count)

    def _passed(self, name: str, key: str, *arguments: Any, **more: Any) -> Any:
        number = self.count[0]
        self.count[0] += 1
        self._before(number, name, key)
        try:
            given = () if name == "folders" else (key, *arguments)
            return getattr(self._inner, name)(*given, **more)
        finally:
            self._after(number, name, key)

    def read(self, key: str, **more: Any) -> Blob:
        return self._passed("read", key, **more)

    def poll(self, key: str, version: str = "", **more: Any) -> Blob | None:
        return self._passed("poll", key, version, **more)

    def age(self, key: str) -> float | None:
        return self._passed("age", key)

    def open(self, key: str) -> Reader:
        return self._passed("open", key)

    def read_range(self, key: str, start: int, length: int) -> bytes:
        return self._passed("read_range", key, start, length)

    def size(self, key: str) -> int | None:
        return self._passed("size", key)

    def create(self, key: str, data: bytes) -> bool:
        return self._passed("create", key, data)

    def swap(self, key: str, data: bytes, version: str) -> bool:
        return self._passed("swap", key, data, version)

    def replace(self, key: str, data: bytes) -> None:
        self._passed("replace", key, data)

    def upload(self, key: str, path: Path) -> None:
        self._passed("upload", key, path)

    def download(self, key: str, path: Path) -> None:
        self._passed("download", key, path)

    def keys(self, prefix: str = "", **more: Any) -> Iterator[str]:
        return self._passed("keys", prefix, **more)

    def entries(self, prefix: str = "") -> Iterator[Entry]:
        return self._passed("entries", prefix)

    def folders(self) -> list[str]:
        return self._passed("folders", "")

    def delete(self, key: str) -> None:
        self._passed("delete", key)

    def probe(self) -> None:
        self._passed("probe", "")


class Counting(MemoryStore):
    """Keeps the keys that were opened."""

    def __init__(self) -> None:
        super().__init__()
        self.opened: list[str] = []

    def open(self, key: str) -> Any:
        self.opened.append(key)
        return super().open(key)


def killing(inner: Store, point: int, when: str, *, real: bool) -> HookedStore:
    """Ends the process at a call: `before` it, `during` it (a little later, from another thread) or `after` it."""

    def end() -> None:
        if real:
            os.kill(os.getpid(), signal.SIGKILL)
        raise Killed

    def soon() -> None:
        time.sleep((point % 7) * 3e-4)
        end()

    def before(number: int, _name: str, _key: str) -> None:
        if number != point:
            return
        if when == "before":
            end()
        if when == "during":
            threading.Thread(target=soon).start()

    def after(number: int, _name: str, _key: str) -> None:
        if number == point and when == "after":
            end()

    return HookedStore(inner, before, after)
