"""Kill -9 at any store call, then a re-run: the same HEAD bytes as an undisturbed run."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedpipe.plan import Plan
from fedpipe.rounds import history
from fedpipe.store import Blob, LocalStore, MemoryStore, Reader, Store
from tests.federations import make_federation, make_plan, play

MOMENTUM = {"name": "averaging", "server_optimizer": {"momentum": 0.9, "learning_rate": 0.5}}


class Killed(BaseException):
    """Stands for the end of the process, where the store lives in it."""


class KillingStore:
    """Passes calls on, and ends the process before or after the one with a given number."""

    def __init__(self, inner: Store, point: int, *, after: bool, real: bool, _count: list[int] | None = None) -> None:
        self._inner, self._point, self._after, self._real = inner, point, after, real
        self.count = _count if _count is not None else [0]
        self.uri = inner.uri

    def below(self, prefix: str) -> Self:
        inner = self._inner.below(prefix)
        return type(self)(inner, self._point, after=self._after, real=self._real, _count=self.count)

    def _end(self) -> None:
        if self._real:
            os.kill(os.getpid(), signal.SIGKILL)
        raise Killed

    def _passed(self, name: str, *arguments: Any, **more: Any) -> Any:
        number = self.count[0]
        self.count[0] += 1
        if number == self._point and not self._after:
            self._end()
        try:
            return getattr(self._inner, name)(*arguments, **more)
        finally:
            if number == self._point:
                self._end()

    def read(self, key: str, **more: Any) -> Blob:
        return self._passed("read", key, **more)

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

    def keys(self, prefix: str = "") -> Iterator[str]:
        return self._passed("keys", prefix)

    def delete(self, key: str) -> None:
        self._passed("delete", key)

    def probe(self) -> None:
        self._passed("probe")


def make_crash_plan() -> Plan:
    return make_plan(make_federation(algorithm=MOMENTUM, training={"rounds": 3, "batch_size": 1, "optimizer": "keep"}))


def undisturbed() -> tuple[dict[str, bytes], int]:
    """All objects of a run that nothing disturbed, and how many store calls it made."""
    store = MemoryStore()
    counting = KillingStore(store, -1, after=False, real=False)
    play(counting, make_crash_plan())
    return {key: store.read(key).data for key in store.keys()}, counting.count[0]


OBJECTS, CALLS = undisturbed()


def check_same(store: Store) -> None:
    assert store.read("HEAD").data == OBJECTS["HEAD"]
    assert {key: store.read(key).data for key in store.keys()} == OBJECTS
    assert len(history(store, "r1")) == 4


def test_there_are_enough_points() -> None:
    assert 2 * CALLS >= 200


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(0, CALLS - 1), st.booleans()), min_size=1, max_size=3))
def test_in_memory_wherever_it_is_killed(kills: list[tuple[int, bool]]) -> None:
    """One to three kills, at seeded points of the run and of its repetitions."""
    store = MemoryStore()
    for point, after in kills:
        try:
            play(KillingStore(store, point, after=after, real=False), make_crash_plan())
        except Killed:
            continue
    play(store, make_crash_plan())
    check_same(store)


@pytest.mark.parametrize("part", range(4))
def test_on_disk_wherever_the_process_is_killed(part: int) -> None:
    """A real SIGKILL of a real process before and after every store call of the run."""
    killed = 0
    for point in range(part, CALLS, 4):
        for after in (False, True):
            with tempfile.TemporaryDirectory() as folder:
                killed += _run_killed(Path(folder), point, after)
                store = LocalStore(Path(folder))
                play(store, make_crash_plan())
                check_same(store)
    assert killed == 2 * len(range(part, CALLS, 4))


def _run_killed(folder: Path, point: int, after: bool) -> bool:
    child = os.fork()
    if not child:
        try:
            play(KillingStore(LocalStore(folder), point, after=after, real=True), make_crash_plan())
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
