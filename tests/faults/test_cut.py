"""Kills a party of a cut network, or its coordinator, at any store call: HEAD has the bytes of an undisturbed run.

`make faults` takes every call; by default, every ninth or seventeenth.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fedpipe.rounds.plan import Plan
from fedpipe.store import Store, keys
from tests.faults.seeds import COUNT
from tests.faults.stores import HookedStore, killing
from tests.sessions import halves
from tests.sessions import test_alignment as aligning
from tests.sessions.test_split import weights_in
from tests.simulation import Actor, World, coordinator

EVERY = 1 if COUNT >= 1000 else 0
"""The step between calls; 0: that of the test."""
Attend = Callable[[World, Plan, str, Store], Actor]


def played(world: World, plan: Plan, victim: str, store: Store, attend: Attend) -> None:
    """Plays a session whose victim has a store of its own until it is killed."""

    def actor(name: str, own: Store) -> Actor:
        return coordinator(world, plan, store=own) if name == "coordinator" else attend(world, plan, name, own)

    for name in ("coordinator", *(one.name for one in plan.federation.learners)):
        again = lambda name=name: actor(name, world.store)  # noqa: E731
        world.spawn(name, actor(name, store if name == victim else world.store), again=again)
    world.run()


def calls_of(world: World, plan: Plan, victim: str, attend: Attend) -> int:
    counting = HookedStore(world.store)
    played(world, plan, victim, counting, attend)
    return counting.count[0]


def attend(world: World, plan: Plan, party: str, store: Store) -> Actor:
    return halves.attendance(world, plan, party, store=store)


@pytest.mark.parametrize("victim", ["alice", "labels", "coordinator"])
def test_a_session_resumes_at_the_round(victim: str) -> None:
    undisturbed = World()
    calls = calls_of(undisturbed, halves.begun(undisturbed.store, halves.federation_of()), victim, attend)
    expected = undisturbed.store.read(keys.HEAD).data
    for point in range(0, calls, EVERY or 9):
        for when in ("before", "after"):
            world = World(point)
            plan = halves.begun(world.store, halves.federation_of())
            played(world, plan, victim, killing(world.store, point, when, real=False), attend)
            assert world.kills == 1, (point, when)
            assert world.store.read(keys.HEAD).data == expected, (point, when)


@pytest.mark.parametrize("victim", ["alice", "labels", "coordinator"])
@pytest.mark.parametrize("with_keys", [True, False])
def test_the_search_for_common_rows_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, victim: str, with_keys: bool
) -> None:
    """With a signing key the messages of a party are the same again. Without one, all begin another attempt."""

    def begun(seed: int) -> tuple[World, Plan]:
        world = World(seed)
        if with_keys:
            aligning.enrolled(world, tmp_path, monkeypatch)
        return world, aligning.begun(world, federation)

    def attend(world: World, plan: Plan, party: str, store: Store) -> Actor:
        return aligning.attend(world, plan, party, store=store)

    federation = aligning.written(tmp_path, training={"rounds": 1})
    world, plan = begun(0)
    calls = calls_of(world, plan, victim, attend)
    expected = weights_in(world.store)
    for point in range(2, calls * 3 // 4, EVERY or 17):
        world, plan = begun(point)
        played(world, plan, victim, killing(world.store, point, "after", real=False), attend)
        assert world.kills == 1, point
        found = weights_in(world.store)
        assert all(np.array_equal(found[name], expected[name]) for name in expected), point
