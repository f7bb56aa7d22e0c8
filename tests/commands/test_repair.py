"""A record that cannot be read: the others' runs stay usable, and `repair` brings the run back to its last good round."""

from __future__ import annotations

import json

import pytest

from fedpipe.commands.repair import repair_store
from fedpipe.errors import CorruptError
from fedpipe.reports.comparison import list_runs
from fedpipe.reports.report import render
from fedpipe.reports.story import read_story, summarise
from fedpipe.rounds.beginning import begin
from fedpipe.rounds.closing import close_round
from fedpipe.rounds.history import history, read_head
from fedpipe.store import MemoryStore, Store, keys
from tests.federations import fresh, make_federation, make_plan, play

PLANS = {name: make_plan(make_federation(), name) for name in ("r1", "r2")}


def spoil(store: Store, number: int, run: str = "r1") -> None:
    """Writes what an earlier version wrote for an infinite mean."""
    key = keys.record(run, number)
    content = json.loads(store.read(key).data)
    content["metrics"] = {"loss": None}
    store.replace(key, json.dumps(content).encode())


def state(store: Store) -> dict[str, bytes]:
    return {key: store.read(key).data for key in store.keys() if key != keys.CATALOGUE}


@pytest.fixture
def played(store: MemoryStore) -> MemoryStore:
    play(store, PLANS["r1"])
    return store


def test_the_last_record(played: MemoryStore) -> None:
    good = state(played)
    spoil(played, 3)
    before = state(played)
    (damage,) = repair_store(played)
    assert (damage.key, damage.repair) == (keys.record("r1", 3), "remove it, and move HEAD to round 2 of run r1")
    assert "null" in damage.why
    assert state(played) == before, "it only looks"
    assert repair_store(played, yes=True) == [damage]
    assert repair_store(played) == []
    head, found = read_head(played), history(played, "r1")
    assert head is not None
    assert head[0].ref == found[-1].ref
    assert found[-1].round == 2
    close_round(played, PLANS["r1"], 3, found[-1].weights)
    assert state(played) == good, "the run resumes as if nothing had happened"


def test_a_record_in_the_middle(played: MemoryStore) -> None:
    spoil(played, 2)
    (damage,) = repair_store(played, yes=True)
    assert damage.repair == "remove it and 1 later rounds, and move HEAD to round 1 of run r1"
    assert [record.round for record in history(played, "r1")] == [0, 1]


@pytest.mark.parametrize("number", [0, 1])
def test_the_first_records(played: MemoryStore, number: int) -> None:
    good = state(played)
    spoil(played, number)
    (damage,) = repair_store(played, yes=True)
    assert damage.repair.endswith("and HEAD, because no trained round is left")
    assert read_head(played) is None
    play(played, PLANS["r1"])
    assert state(played) == good


def test_head_stays_when_it_is_elsewhere(played: MemoryStore) -> None:
    play(played, PLANS["r2"])
    head = read_head(played)
    store = MemoryStore()
    play(store, PLANS["r1"])
    begin(store, PLANS["r2"], fresh)
    spoil(store, 0, "r2")
    (damage,) = repair_store(store, yes=True)
    assert damage.repair == "remove it"
    assert read_head(store) is not None
    play(store, PLANS["r2"])
    assert read_head(store) == head or read_head(store)[0] == head[0]  # type: ignore[index]


def test_what_later_runs_continue_from_is_not_removed(played: MemoryStore) -> None:
    play(played, PLANS["r2"])
    spoil(played, 3)
    before = state(played)
    (damage,) = repair_store(played, yes=True)
    assert damage.repair == "restore it from a copy of the store: later runs continue from it"
    assert state(played) == before


@pytest.mark.parametrize("key", [keys.board("r1"), keys.plan("r1"), keys.evaluation("r1"), keys.candidate("r1", 2)])
def test_objects_next_to_the_records(played: MemoryStore, key: str) -> None:
    played.replace(key, b'{"x": null')
    (damage,) = repair_store(played, yes=True)
    assert damage.key == key
    assert played.size(key) is None
    assert len(history(played, "r1")) == 4


def test_a_head_needs_a_copy(played: MemoryStore) -> None:
    played.replace("HEAD", b"?")
    (damage,) = repair_store(played, yes=True)
    assert (damage.key, damage.repair) == ("HEAD", "restore it from a copy of the store")
    assert [line.name for line in list_runs(played)] == ["r1"]


def test_lists_survive_a_bad_run(played: MemoryStore) -> None:
    play(played, PLANS["r2"])
    spoil(played, 3)
    for _ in range(2):  # the second time, other runs come from the catalogue
        lines = {line.name: line for line in list_runs(played)}
        assert lines["r1"].state == "unreadable: see fedpipe repair"
        assert lines["r2"].rounds == 3


def test_the_report_shows_the_rounds_that_can_be_read(played: MemoryStore) -> None:
    spoil(played, 3)
    story = read_story(played, "r1")
    assert len(story.records) == 3
    assert "the record of round 3 is not a valid record" in summarise(story)["flaw"]
    assert "Incomplete:" in render(story)
    spoil(played, 0)
    with pytest.raises(CorruptError, match="fedpipe repair"):
        read_story(played, "r1")
