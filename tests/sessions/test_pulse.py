"""Tests how learners see that nobody coordinates their session, by the store's clock."""

from __future__ import annotations

import re
import time
from collections.abc import Generator
from pathlib import Path

import pytest

from fedpipe.errors import RoundError
from fedpipe.rounds.beginning import begin
from fedpipe.rounds.plan import Plan
from fedpipe.sessions.board import Board, Keeper
from fedpipe.sessions.pulse import BEAT, GONE, GRACE, Pulse, beating, continues, silence
from fedpipe.store import MemoryStore, keys, open_store
from fedpipe.store.objects import encode
from tests.federations import PlusOneLearner, fresh, make_federation, make_plan
from tests.simulation import Actor, World, attendance, coordinator


def plan_of(deadline: float = 60) -> Plan:
    return make_plan(
        make_federation(("a", "b"), training={"rounds": 2, "batch_size": 1}, quorum={"deadline": deadline})
    )


def beat(world: World, plan: Plan, until: float, session: str = "s") -> Generator[float, None, None]:
    while world.now <= until:
        world.store.replace(keys.pulse(plan.run), encode(Pulse(session=session)))
        yield BEAT


def opened(world: World, plan: Plan) -> Actor:
    """A coordinator that opens the first phase, and is killed."""
    begin(world.store, plan, fresh)
    return coordinator(world, plan)


def test_learners_leave_soon_when_the_coordinator_was_killed() -> None:
    world, plan = World(), plan_of()
    working = opened(world, plan)
    next(working)
    world.spawn("pulse", beat(world, plan, until=100))
    world.spawn("a", attendance(world, plan, "a", PlusOneLearner(1, 1)))
    world.run()
    working.close()
    error = world.results["a"]
    assert isinstance(error, RoundError)
    assert str(error).endswith(f"Check its log, and continue the run: fedpipe resume {plan.run}")
    heard = re.search(r"nobody coordinates the session: its coordinator was last heard of (\d+) s ago", str(error))
    assert heard
    assert GONE < float(heard[1]) < GONE + BEAT + 2
    assert 90 + GONE < world.now < 105 + GONE + BEAT + 2


def test_learners_stay_while_the_coordinator_waits_for_others() -> None:
    """Also for longer than a learner is patient with a coordinator that it has not heard of."""
    world, plan = World(), plan_of(deadline=3000)
    world.spawn("coordinator", opened(world, plan))
    world.spawn("pulse", beat(world, plan, until=6000))
    learners = {name: PlusOneLearner(1, 1) for name in ("a", "b")}
    slow = {"a": 1.0, "b": 2500.0}
    for name, learner in learners.items():
        world.spawn(name, attendance(world, plan, name, learner, seconds=lambda _, name=name: slow[name]))
    world.run()
    assert {name: world.results[name] for name in learners} == {"a": {"train": 2}, "b": {"train": 2}}


def test_the_pulse_of_an_earlier_session_does_not_count() -> None:
    """The learners of a job that begins wait for its coordinator, whose pod may need a while."""
    world, plan = World(), plan_of()
    begin(world.store, plan, fresh)
    world.store.replace(keys.pulse(plan.run), encode(Pulse(session="earlier")))
    world.spawn("a", attendance(world, plan, "a", PlusOneLearner(1, 1)))
    world.run()
    assert "the coordinator has been silent for 90" in str(world.results["a"])


@pytest.mark.parametrize("junk", [b"", b"{", b'{"session": 3}'])
def test_a_malformed_pulse_is_ignored(junk: bytes) -> None:
    store = MemoryStore()
    store.replace(keys.pulse("r"), junk)
    assert silence(store, "r", "s") is None


def test_the_pulse_beats_while_the_coordinator_computes(tmp_path: Path) -> None:
    store = open_store(f"file://{tmp_path}").below("f")
    assert silence(store, "r", "s") is None

    file = tmp_path / "f" / keys.pulse("r")

    def renewed() -> int:
        return file.stat().st_mtime_ns if file.exists() else 0

    with beating(lambda: open_store(f"file://{tmp_path}").below("f"), "r", "s", every=0.01):
        for _ in range(3):
            seen, end = renewed(), time.monotonic() + 60
            while renewed() == seen:
                assert time.monotonic() < end
                time.sleep(0.001)
    last, heard = renewed(), silence(store, "r", "s")
    time.sleep(0.3)
    assert renewed() == last
    assert heard is not None
    assert (silence(store, "r", "s") or 0) >= heard + 0.25
    assert silence(store, "r", "another") is None


@pytest.mark.parametrize(
    ("ending", "does"), [("done", True), ("stopped", True), ("below_quorum", False), ("failed", False)]
)
def test_whether_a_session_did_without_a_learner(ending: str, does: bool) -> None:
    now = [0.0]
    store = MemoryStore(clock=lambda: now[0])
    assert not continues(store, "r", "s", 2)
    store.replace(keys.pulse("r"), encode(Pulse(session="s")))
    assert continues(store, "r", "s", 2)
    now[0] = GONE + GRACE
    assert not continues(store, "r", "s", 2)
    keeper = Keeper(store, "r", "s")
    base = f"sha256:{'0' * 64}"
    keeper.move(Board(federation="f", run="r", session="s", round=2, phase="ended", base=base, ending=ending))  # type: ignore[arg-type]
    assert continues(store, "r", "s", 2) is does
