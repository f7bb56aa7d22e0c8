"""The list of runs: the same with and without its catalogue, which keeps it fast however many runs there are."""

from __future__ import annotations

import pytest

from fedpipe.errors import StoreError
from fedpipe.reports.catalogue import add_line, drop_line, list_runs
from fedpipe.store import MemoryStore, keys
from tests.faults.stores import HookedStore
from tests.federations import make_plan, play
from tests.rounds.test_pruning import Clock


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(clock: Clock) -> MemoryStore:
    """Three ended runs, an hour apart, and one in progress."""
    made = MemoryStore(clock=clock)
    for name in ("one", "two", "three"):
        play(made, make_plan(run=name))
        made.create(keys.summary(name), b"{}")
        clock.now += 3600
    play(made, make_plan(run="four"))
    made.create("runs/five/shards", b"{}")
    return made


def lines(store: MemoryStore | HookedStore) -> list[tuple[object, ...]]:
    return [(*line[:5], round(line.age / 10), line.at_head) for line in list_runs(store)]


def test_the_lines(store: MemoryStore) -> None:
    loss = {"loss": pytest.approx(14 / 6)}
    expected = [
        ("four", 3, 3, "running", loss, 0, True),
        ("three", 3, 3, "ended", loss, 360, False),
        ("two", 3, 3, "ended", loss, 720, False),
        ("one", 3, 3, "ended", loss, 1080, False),
    ]
    assert lines(store) == expected
    assert store.size(keys.CATALOGUE) is not None
    assert lines(store) == expected


def test_ended_runs_cost_no_request(store: MemoryStore, clock: Clock) -> None:
    for number in range(60):
        play(store, make_plan(run=f"run-{number}"))
        add_line(store, f"run-{number}") if number % 2 else None
        store.create(keys.summary(f"run-{number}"), b"{}")
    first = HookedStore(store)
    found = list_runs(first)
    assert len(found) == 64
    again = HookedStore(store)
    assert [line.name for line in list_runs(again)] == [line.name for line in found]
    assert again.count[0] <= 10  # HEAD, folders, catalogue; and the one run in progress
    assert first.count[0] <= 10 + 3 * 64


def test_a_run_that_begins_again(store: MemoryStore) -> None:
    before = lines(store)
    store.delete(keys.summary("two"))
    assert lines(store) == before
    drop_line(store, "two")
    assert [line[3] for line in lines(store) if line[0] == "two"] == ["running"]
    store.create(keys.summary("two"), b"{}")
    add_line(store, "two")
    assert lines(store) == before
    drop_line(store, "nothing")
    add_line(store, "nothing")
    assert lines(store) == before


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"runs":{"one":{}}}', b'{"runs":{"one":3}}'])
def test_a_malformed_one_is_only_a_copy(store: MemoryStore, data: bytes) -> None:
    before = lines(store)
    store.replace(keys.CATALOGUE, data)
    assert lines(store) == before
    assert lines(store) == before


def test_runs_that_are_gone(store: MemoryStore) -> None:
    before = lines(store)
    for key in list(store.keys("runs/one/")):
        store.delete(key)
    assert lines(store) == before[:-1]
    assert b'"one"' not in store.read(keys.CATALOGUE).data


def test_a_reader_that_may_not_write(store: MemoryStore) -> None:
    def refuse(_number: int, name: str, _key: str) -> None:
        if name in ("create", "swap", "replace"):
            raise StoreError("the store refuses")

    assert lines(HookedStore(store, refuse)) == lines(store)


def test_a_plan_that_is_missing(store: MemoryStore) -> None:
    plan = make_plan(run="two")
    store.delete(keys.content(plan.digest))
    assert [line.planned for line in list_runs(store) if line.name == "two"] == [None]


def test_two_writers(store: MemoryStore) -> None:
    """Each adds its line to that of the other one."""
    raced = []

    def race(_number: int, name: str, key: str) -> None:
        if name in ("create", "swap") and key == keys.CATALOGUE and not raced:
            raced.append(1)
            add_line(store, "one")

    add_line(HookedStore(store, race), "two")
    data = store.read(keys.CATALOGUE).data
    assert b'"one"' in data
    assert b'"two"' in data
