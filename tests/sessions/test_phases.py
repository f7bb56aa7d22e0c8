"""A script that neither coordinator nor attendance knows runs as a session and as single steps."""

from __future__ import annotations

from fedpipe.rounds.beginning import begin
from fedpipe.rounds.history import history
from fedpipe.sessions.attendance import Attendance
from fedpipe.sessions.board import poll_board
from fedpipe.sessions.coordinator import Coordinator
from fedpipe.store import MemoryStore
from tests.federations import PlusOneLearner, fresh, make_federation, make_plan
from tests.sessions import toy
from tests.simulation import World

NAMES = ("a", "b", "c", "d")


def learners() -> dict[str, PlusOneLearner]:
    return {name: PlusOneLearner(k + 1) for k, name in enumerate(NAMES)}


def test_a_toy_script_gives_the_same_records_as_a_session_and_as_single_steps() -> None:
    plan, world, store = make_plan(make_federation(NAMES)), World(), MemoryStore()
    begin(world.store, plan, fresh)
    session = Coordinator(world.store, plan, "s", clock=world.clock, script=toy.toy(world.store, plan))
    world.spawn("coordinator", session.run())
    for name, learner in learners().items():
        answers = toy.answers(world, world.store, plan, name, learner, lambda _: 1.0)
        world.spawn(name, Attendance(world.store, plan, name, "s", answers, clock=world.clock).run())
    world.run()
    toy.play(store, plan, learners(), begin(store, plan, fresh))
    assert world.results["coordinator"].rule == "toy"
    assert history(world.store, plan.run) == history(store, plan.run)
    assert [[update.learner for update in record.updates] for record in history(store, plan.run)[1:]] == [
        ["a", "b", "c"]
    ] * 3
    assert world.results["a"] == {"estimate": 3, "confirm": 3}
    assert world.results["d"] == {"estimate": 3}, "its update makes an even number and is not kept"


def test_a_learner_that_does_not_know_a_phase_is_left_out() -> None:
    plan, world = make_plan(make_federation(NAMES, quorum={"deadline": 60})), World()
    begin(world.store, plan, fresh)
    session = Coordinator(world.store, plan, "s", clock=world.clock, script=toy.toy(world.store, plan))
    world.spawn("coordinator", session.run())
    for name, learner in learners().items():
        answers = toy.answers(world, world.store, plan, name, learner, lambda _: 1.0) if name != "a" else {}
        world.spawn(name, Attendance(world.store, plan, name, "s", answers, clock=world.clock).run())
    world.run()
    found = poll_board(world.store, plan.run)
    assert found
    assert found[0].ending == "done"
    assert {item.learner for item in history(world.store, plan.run)[1].dropped} == {"a"}
    assert world.now < 60, "nobody waits for the deadline"
