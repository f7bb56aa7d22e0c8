"""Kills runs at any store call and repeats them: HEAD has the same bytes as after an undisturbed run.

tests/faults/seeds.py draws the calls; `make faults` tries all of them.
"""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedpipe.rounds.history import history
from fedpipe.store import LocalStore, MemoryStore, Store
from tests.faults import seeds
from tests.faults.stores import HookedStore, killing
from tests.federations import PlusOneLearner, make_federation, make_plan, play, play_collective
from tests.simulation import Killed

MOMENTUM = {"name": "averaging", "server_optimizer": {"momentum": 0.9, "learning_rate": 0.5}}


def averaging(store: Store) -> None:
    training = {"rounds": 3, "batch_size": 1, "optimizer": "keep"}
    play(store, make_plan(make_federation(algorithm=MOMENTUM, training=training)))


def collective(store: Store) -> None:
    """Plays rounds that are accepted, rejected, and without a proposal."""
    training = {"rounds": 4, "batch_size": 1, "optimizer": "keep"}
    plan = make_plan(make_federation(algorithm={"name": "collective"}, training=training))
    learners = {name: PlusOneLearner(number, wants=99.0) for name, number in (("a", 1.0), ("b", -1.0))}
    play_collective(store, plan, {**learners, "c": PlusOneLearner(1.0, fails="no power", wants=99.0)})


RUNS: dict[str, Callable[[Store], None]] = {"averaging": averaging, "collective": collective}


def undisturbed(run: str) -> tuple[dict[str, bytes], int]:
    """Returns all objects of an undisturbed run, and the number of its store calls."""
    store = MemoryStore()
    counting = HookedStore(store)
    RUNS[run](counting)
    return {key: store.read(key).data for key in store.keys()}, counting.count[0]


OBJECTS, CALLS = {}, {}
for _name in RUNS:
    OBJECTS[_name], CALLS[_name] = undisturbed(_name)
POINTS = st.sampled_from(sorted(RUNS)).flatmap(
    lambda run: st.tuples(
        st.just(run), st.lists(st.tuples(st.integers(0, CALLS[run] - 1), st.booleans()), min_size=1, max_size=3)
    )
)


def check_same(run: str, store: Store, where: str = "") -> None:
    assert store.read("HEAD").data == OBJECTS[run]["HEAD"], where
    assert {key: store.read(key).data for key in store.keys()} == OBJECTS[run], where
    assert len(history(store, "r1")) == {"averaging": 4, "collective": 5}[run]


def test_there_are_enough_points() -> None:
    assert all(2 * calls >= 200 for calls in CALLS.values())


@settings(max_examples=4 * seeds.COUNT)
@given(POINTS)
def test_in_memory_wherever_it_is_killed(case: tuple[str, list[tuple[int, bool]]]) -> None:
    """Kills one to three times, at seeded points of the run and of its repetitions."""
    run, kills = case
    store = MemoryStore()
    for point, after in kills:
        try:
            RUNS[run](killing(store, point, "after" if after else "before", real=False))
        except Killed:
            continue
    RUNS[run](store)
    check_same(run, store)


@pytest.mark.parametrize("run", RUNS)
def test_on_disk_wherever_the_process_is_killed(run: str) -> None:
    """Sends a real SIGKILL to a real process before and after store calls of the run."""
    points = Random(seeds.FIRST).sample(range(CALLS[run]), min(seeds.COUNT, CALLS[run]))
    for point in points:
        for after in (False, True):
            with tempfile.TemporaryDirectory() as folder:
                assert _run_killed(run, Path(folder), point, after)
                store = LocalStore(Path(folder))
                RUNS[run](store)
                check_same(run, store, f"killed {'after' if after else 'before'} call {point}")


def _run_killed(run: str, folder: Path, point: int, after: bool) -> bool:
    child = os.fork()
    if not child:
        try:
            RUNS[run](killing(LocalStore(folder), point, "after" if after else "before", real=True))
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
