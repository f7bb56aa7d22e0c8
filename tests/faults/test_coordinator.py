"""A hostile coordinator, with all its rights: learners end with a clear error, and give it nothing that they keep."""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from typing import Any

import pytest
from msgspec.structs import replace

from fedpipe.errors import FedpipeError
from fedpipe.rounds.ballots import find_ballot
from fedpipe.rounds.beginning import begin
from fedpipe.rounds.history import history, read_record
from fedpipe.rounds.updates import find_update
from fedpipe.sessions.board import Board
from fedpipe.store import MemoryStore, keys
from fedpipe.store.objects import digest_of, encode
from tests.faults.junk import KINDS, made
from tests.faults.test_junk import plan_of, play, state
from tests.federations import PlusOneLearner, fresh
from tests.simulation import World, attendance

PLAN = plan_of("votes")


@pytest.fixture(scope="module")
def honest() -> dict[str, bytes]:
    """The objects of a run of which all parties are honest."""
    return state(play(PLAN, attends=True).store)


def board(store: MemoryStore, phase: str, **changes: Any) -> Board:
    first = read_record(store, PLAN.run, 0)
    assert first is not None
    asked = Board(federation="tiny", run=PLAN.run, session="s", round=1, phase=phase, base=first.weights, asked=("a",))
    return replace(asked, **changes)


def attended(hostile: Any) -> tuple[World, PlusOneLearner]:
    """Plays a learner, with a hostile coordinator in the place of the honest one."""
    world, learner = World(0), PlusOneLearner(1, 3, wants=100.0)
    begin(world.store, PLAN, fresh)
    world.spawn("hostile", hostile(world))
    world.spawn("a", attendance(world, PLAN, "a", learner))
    world.run()
    return world, learner


def ended_cleanly(world: World) -> None:
    error = world.results.get("a")
    if isinstance(error, Exception):
        assert isinstance(error, FedpipeError), repr(error)
        assert error.what.isprintable()


@pytest.mark.parametrize("kind", KINDS)
def test_junk_at_every_key_of_the_coordinator(honest: dict[str, bytes], kind: str) -> None:
    """A learner never crashes on it, and an answer that it leaves belongs to its own plan and round."""

    def hostile(world: World) -> Generator[float, None, None]:
        store = world.store
        asking = encode(board(store, "train"))
        own = {key: data for key, data in honest.items() if not key.startswith("learners/")}
        for key, data in own.items():
            if key != keys.board(PLAN.run):
                with contextlib.suppress(ValueError):
                    store.replace(key, made(KINDS[kind], data))
        for data in (made(KINDS[kind], asking), asking, made(KINDS[kind], encode(board(store, "vote")))):
            store.replace(keys.board(PLAN.run), data)
            yield 5.0

    def first_board(world: World) -> Generator[float, None, None]:
        begun = state(world.store)
        yield from hostile(world)
        for key, data in begun.items():
            world.store.replace(key, data)

    world, learner = attended(first_board)
    ended_cleanly(world)
    assert learner.trained <= 2
    for number in range(4):
        update = find_update(world.store, "a", PLAN.run, number)
        assert update is None or (update.run, update.learner, update.round) == (PLAN.run, "a", number)


@pytest.mark.parametrize("gone", ["plan", "weights", "record", "board", "all"])
def test_objects_that_disappear(gone: str) -> None:
    def hostile(world: World) -> Generator[float, None, None]:
        store = world.store
        first = read_record(store, PLAN.run, 0)
        assert first is not None
        store.replace(keys.board(PLAN.run), encode(board(store, "train")))
        lost = {
            "plan": [keys.content(first.plan)], "weights": [keys.content(first.weights)], "board": [],
            "record": [keys.record(PLAN.run, 0)], "all": [key for key in store.keys() if not key.endswith("board")],
        }  # fmt: skip
        for key in lost[gone]:
            store.delete(key)
        yield 10.0
        store.delete(keys.board(PLAN.run))

    world, _ = attended(hostile)
    ended_cleanly(world)
    assert isinstance(world.results["a"], FedpipeError), "the coordinator was silent"


@pytest.mark.parametrize("owner", ["../a", "a/../../HEAD", "x" * 2000, "\x00", "%2e%2e", "objects", "HEAD", "z", "*"])
def test_votes_on_a_candidate_of_anybody(owner: str) -> None:
    """The learner measures only weights of the model's form, and never reads outside proposals."""

    def hostile(world: World) -> Generator[float, None, None]:
        asking = board(world.store, "vote", candidate=digest_of(b"candidate"), owner=owner)
        world.store.replace(keys.board(PLAN.run), encode(asking))
        yield 30.0

    world, _ = attended(hostile)
    ended_cleanly(world)
    ballot = find_ballot(world.store, "a", PLAN.run, 1)
    assert ballot is None or not ballot.approve


def test_rounds_beyond_the_plan_end_the_learners_step() -> None:
    def hostile(world: World) -> Generator[float, None, None]:
        world.store.replace(keys.board(PLAN.run), encode(board(world.store, "vote", round=2**53)))
        yield 1.0

    world, learner = attended(hostile)
    assert not isinstance(world.results["a"], Exception)
    assert learner.trained == 0


def test_a_record_that_was_rewritten_breaks_the_chain(honest: dict[str, bytes]) -> None:
    """The next record has its digest."""
    store = MemoryStore()
    for key, data in honest.items():
        store.create(key, data)
    records = history(store, PLAN.run)
    forged = replace(records[1], weights=records[0].weights)
    store.replace(keys.record(PLAN.run, 1), encode(forged))
    with pytest.raises(FedpipeError, match=r"does not follow|chain is broken"):
        history(store, PLAN.run)
