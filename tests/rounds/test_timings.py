"""Timings of steps: the first counts, and what is not one is left out."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from fedpipe.rounds.timings import Timing, find_timing, note, read_timings
from fedpipe.store import MemoryStore, keys
from fedpipe.store.objects import encode
from tests.faults.stores import HookedStore

START = Timing(step="initialise", started=1.0, seconds=2.0)
TRAIN = Timing(step="train", learner="a", round=3, started=4.0, seconds=5.0)


def test_each_is_found_again(store: MemoryStore) -> None:
    note(store, "r1", START)
    note(store, "r1", TRAIN)
    assert find_timing(store, "r1", 0, "initialise") == START
    assert find_timing(store, "r1", 3, "train", "a") == TRAIN
    assert find_timing(store, "r1", 3, "train") is None
    assert set(read_timings(store, "r1", ("a", "b"))) == {START, TRAIN}
    assert set(read_timings(store, "r2", ("a",))) == set()


def test_the_first_counts(store: MemoryStore) -> None:
    note(store, "r1", TRAIN)
    note(store, "r1", Timing(step="train", learner="a", round=3, started=9.0, seconds=0.1))
    assert list(read_timings(store, "r1", ("a",))) == [TRAIN]


def test_what_is_not_one_is_left_out(store: MemoryStore) -> None:
    note(store, "r1", TRAIN)
    store.create("runs/r1/0/initialise.time", b"?")
    store.create("runs/r1/1/record", b"?")
    second = Timing(step="train", learner="a", round=2, started=4.0, seconds=5.0)
    store.create(keys.timing("r1", 2, "train", "a"), encode(second).ljust(2**16))
    store.create(keys.timing("r1", 4, "train", "a"), encode(replace(second, round=4)).ljust(2**16 + 1))
    store.create(keys.timing("r1", 5, "train", "a"), encode(second))
    assert find_timing(store, "r1", 0, "initialise") is None
    assert find_timing(store, "r1", 2, "train", "a") == second
    assert find_timing(store, "r1", 5, "train", "a") is None, "it is of another round"
    assert find_timing(store, "r1", 4, "train", "a") is None
    assert list(read_timings(store, "r1", ("a",))) == [second, TRAIN]


def test_a_learner_cannot_make_a_reader_list_forever(monkeypatch: pytest.MonkeyPatch, store: MemoryStore) -> None:
    monkeypatch.setattr(keys, "MOST_LEFT", 5)
    for number in range(10):
        store.create(f"learners/a/runs/r1/junk/{number}", b"")
        note(store, "r1", Timing(step="train", learner="a", round=number, started=1.0, seconds=1.0))
    note(store, "r1", START)
    assert len(list(read_timings(store, "r1", ("a",)))) == 1 + 5


def test_a_learner_does_not_keep_the_report_from_ending(store: MemoryStore) -> None:
    """However many timings it leaves, few are read: those of rounds that there were, and some of each."""
    note(store, "r1", START)
    for number in range(300):
        for step in ("train", "vote") if number > 3 else [f"step-{k}" for k in range(100)]:
            note(store, "r1", Timing(step=step, learner="a", round=number, started=START.started, seconds=1.0))
    reads = []
    counted = HookedStore(store, lambda _number, name, key: reads.append(key) if name == "poll" else None)
    found = list(read_timings(counted, "r1", ("a",), last_round=5))
    assert len(found) == 1 + 4 * 20 + 2 * 2
    assert len(reads) == len(found)
