"""The invariants themselves: each of them can fail."""

from __future__ import annotations

import msgspec
import pytest

from fedpipe.errors import CorruptError
from fedpipe.rounds.history import read_head, read_record
from fedpipe.rounds.manifests import Head
from fedpipe.store import MemoryStore, keys
from fedpipe.store.objects import encode
from tests.faults.invariants import check
from tests.federations import make_plan, play

PLAN = make_plan()


@pytest.fixture
def played(store: MemoryStore) -> MemoryStore:
    play(store, PLAN)
    check(store, PLAN, rounds=3)
    return store


def change(store: MemoryStore, number: int, **changes: object) -> None:
    record = read_record(store, PLAN.run, number)
    assert record is not None
    store.replace(keys.record(PLAN.run, number), encode(msgspec.structs.replace(record, **changes)))


def test_a_gap(played: MemoryStore) -> None:
    played.delete(keys.record(PLAN.run, 3))
    with pytest.raises(AssertionError, match="gap"):
        check(played, PLAN, rounds=3)


def test_a_head_that_fell_behind(played: MemoryStore) -> None:
    record, found = read_record(played, PLAN.run, 2), read_head(played)
    assert record is not None
    assert found is not None
    head = Head(run=record.run, round=2, record=record.ref.record, weights=record.weights)
    played.swap("HEAD", encode(head), found[1])
    with pytest.raises(AssertionError, match="HEAD is not the last"):
        check(played, PLAN, rounds=3)


def test_a_broken_chain(played: MemoryStore) -> None:
    change(played, 2, metrics={"loss": 0.0})
    with pytest.raises((AssertionError, CorruptError)):
        check(played, PLAN, rounds=3)


def test_an_update_that_counts_twice(played: MemoryStore) -> None:
    record = read_record(played, PLAN.run, 3)
    assert record is not None
    change(played, 3, updates=(*record.updates, record.updates[0]))
    _follow(played)
    with pytest.raises(AssertionError, match="twice"):
        check(played, PLAN, rounds=3)


def test_a_round_below_the_quorum(played: MemoryStore) -> None:
    record = read_record(played, PLAN.run, 3)
    assert record is not None
    change(played, 3, updates=record.updates[:1])
    _follow(played)
    with pytest.raises(AssertionError, match="below the quorum"):
        check(played, PLAN, rounds=3)


def test_weights_that_are_not_those_of_the_updates(played: MemoryStore) -> None:
    earlier = read_record(played, PLAN.run, 1)
    assert earlier is not None
    change(played, 3, weights=earlier.weights)
    _follow(played)
    assert played.size(keys.content(earlier.weights))
    with pytest.raises(AssertionError, match="replays otherwise"):
        check(played, PLAN, rounds=3)


def _follow(store: MemoryStore) -> None:
    """HEAD names the record of round 3 as it is now."""
    record, found = read_record(store, PLAN.run, 3), read_head(store)
    assert record is not None
    assert found is not None
    head = Head(run=record.run, round=3, record=record.ref.record, weights=record.weights)
    store.swap("HEAD", encode(head), found[1])
