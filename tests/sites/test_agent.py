"""The agent of a site: it finds sessions, attends them, and survives whatever happens to it and to the store."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from fedpipe.errors import StoreError, StoreUnavailableError
from fedpipe.federation.federation import Federation
from fedpipe.rounds.beginning import begin
from fedpipe.rounds.history import history, read_record
from fedpipe.rounds.plan import Plan
from fedpipe.sessions.current import Current, Opened, announced, poll_current
from fedpipe.sessions.presence import RENEWED, read_presence, waiting_sites
from fedpipe.sites.agent import Decision
from fedpipe.store import Store, keys
from fedpipe.store.objects import encode
from tests.faults.stores import HookedStore, killing
from tests.federations import PlusOneLearner, fresh, make_federation, make_plan
from tests.simulation import Actor, World, attendance, coordinator
from tests.sites.world import agent, announcing

NAMES = ("a", "b", "c", "d", "e")
SITES = ("c", "d", "e")
ALGORITHMS: list[Any] = ["averaging", {"name": "averaging", "vote": {"threshold": 0.4}}, "collective"]


def federation_of(algorithm: Any = "averaging", sites: tuple[str, ...] = SITES, **more: Any) -> Federation:
    learners = [{"name": name, **({"at": "site"} if name in sites else {})} for name in NAMES]
    return make_federation(
        learners=learners, algorithm=algorithm, quorum={"deadline": 600, "retries": 2, "min_learners": 5}, **more
    )


def learners() -> dict[str, PlusOneLearner]:
    return {name: PlusOneLearner(k + 1, k + 1, wants=200.0) for k, name in enumerate(NAMES)}


def final_of(world: World, plan: Plan) -> str:
    found = read_record(world.store, plan.run, plan.federation.training.rounds)
    assert found is not None, world.results
    return found.weights


def played(algorithm: Any, seed: int = 0) -> tuple[World, Plan, str]:
    """A session with two learners in pods and three at sites."""
    world = World(seed)
    plan = make_plan(federation_of(algorithm))
    begin(world.store, plan, fresh)
    plan.put(world.store)
    world.spawn("coordinator", announcing(world, plan))
    for name, learner in learners().items():
        if name in SITES:
            world.spawn(name, agent(world, name, learner), after=world.random.uniform(0, 30))
        else:
            world.spawn(name, attendance(world, plan, name, learner, session="job-1"))
    world.run()
    return world, plan, final_of(world, plan)


def expected(algorithm: Any) -> str:
    """The final weights of the same learners, all of them in pods."""
    world = World()
    plan = make_plan(federation_of(algorithm, sites=()))
    begin(world.store, plan, fresh)
    world.spawn("coordinator", coordinator(world, plan))
    for name, learner in learners().items():
        world.spawn(name, attendance(world, plan, name, learner))
    world.run()
    return final_of(world, plan)


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=["averaging", "votes", "collective"])
def test_pods_and_sites_do_the_same_work(algorithm: Any) -> None:
    world, plan, final = played(algorithm)
    assert final == expected(algorithm)
    for name in SITES:
        attended = world.results[name]
        assert attended.why == ""
        assert attended.took_part.total() >= plan.federation.training.rounds or algorithm == "collective"
    assert poll_current(world.store) is not None
    sessions, _ = poll_current(world.store)  # type: ignore[misc]
    assert sessions == ()


class TestCurrent:
    """The list of current sessions: one for each run, without those that are gone."""

    def test_of_several_runs(self) -> None:
        world = World()
        first, second = (Opened(run=name, plan="sha256:" + "0" * 64) for name in ("r1", "r2"))
        with announced(world.store, first):
            with announced(world.store, second):
                assert self.now(world) == (first, second)
            assert self.now(world) == (first,)
        assert self.now(world) == ()

    def test_a_new_session_of_a_run_replaces_the_last_one(self) -> None:
        world = World()
        first, second = (Opened(run="r1", plan="sha256:" + "0" * 64, job=job) for job in ("x", "y"))
        with announced(world.store, first):
            with announced(world.store, second):
                assert self.now(world) == (second,)
            assert self.now(world) == ()

    def test_one_whose_coordinator_is_gone_is_dropped(self) -> None:
        world = World()
        lost = Opened(run="r1", plan="sha256:" + "0" * 64, job="x")
        world.store.replace(keys.CURRENT, encode(Current(sessions=(lost,))))
        world.store.replace(keys.pulse("r1"), b'{"session": "x-1"}')
        world.now += 301
        second = Opened(run="r2", plan="sha256:" + "0" * 64)
        with announced(world.store, second):
            assert self.now(world) == (second,)

    def test_a_malformed_list_is_written_again(self) -> None:
        world = World()
        world.store.replace(keys.CURRENT, b"<html>")
        with announced(world.store, Opened(run="r1", plan="sha256:" + "0" * 64)):
            assert [one.run for one in self.now(world)] == ["r1"]

    @staticmethod
    def now(world: World) -> tuple[Opened, ...]:
        found = poll_current(world.store)
        assert found is not None
        return found[0]


def counting(store: Store, counts: Counter[str]) -> Store:
    return HookedStore(store, lambda _, name, __: counts.update([name]))


def test_an_idle_site_makes_one_request_a_look() -> None:
    world, counts = World(), Counter[str]()
    begin(world.store, make_plan(federation_of()), fresh)
    world.spawn("c", agent(world, "c", PlusOneLearner(1), store=counting(world.store, counts), once=False))
    world.run(limit=3600.0)
    assert counts.total() <= 3600 / 15 + 2
    assert counts["poll"] > 200
    assert 3600 / RENEWED - 2 <= counts["replace"] <= 3600 / RENEWED + 2


def test_a_site_attends_each_run_of_a_schedule() -> None:
    world = World()
    runs = [make_plan(federation_of(sites=("c",), training={"rounds": 1, "batch_size": 1}), f"r{k}") for k in range(3)]
    known = learners()
    world.spawn("c", agent(world, "c", known["c"], once=False))

    def scheduled() -> Actor:
        for plan in runs:
            begin(world.store, plan, fresh)
            plan.put(world.store)
            for name in NAMES:
                if name != "c":
                    world.spawn(name, attendance(world, plan, name, known[name], session="job-1"))
            yield from announcing(world, plan)
            yield 86_400.0

    world.spawn("coordinator", scheduled())
    world.run(limit=4 * 86_400.0)
    assert known["c"].trained == 3
    for plan in runs:
        assert [update.learner for update in history(world.store, plan.run)[1].updates] == list(NAMES)


class TestDecisions:
    """A plan that waits for its owner or is refused is not run, and the site says so."""

    def test_a_plan_that_waits(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level("INFO")
        world = World()
        plan, known = make_plan(federation_of(sites=("c",))), learners()
        begin(world.store, plan, fresh)
        plan.put(world.store)
        asked = []

        def decide(plan: Plan, opened: Opened) -> Decision:
            asked.append(world.now)
            return Decision("waits" if world.now < 200 else "approved", "code sha256:1 is new")

        world.spawn("coordinator", announcing(world, plan))
        for name in NAMES:
            if name != "c":
                world.spawn(name, attendance(world, plan, name, known[name], session="job-1"))
        world.spawn("c", agent(world, "c", known["c"], decide=decide))
        world.run(limit=150.0)
        assert known["c"].trained == 0
        assert [line.partition(", for")[0] for line in waiting_sites(world.store, ["c"])] == [
            "c is a site that waits for approval of the plan of run r1: code sha256:1 is new"
        ]
        world.run()
        assert known["c"].trained == 3
        assert final_of(world, plan)
        assert len(asked) >= 10
        said = [record.getMessage() for record in caplog.records if record.getMessage().startswith("c ")]
        waits = (
            "c waits for approval of the plan of run r1: code sha256:1 is new. Look at it with `fedpipe site pending`"
        )
        assert said == ["c awaits a session", waits, "c attends run r1", "c awaits a session", "c has ended"]

    def test_a_plan_that_is_refused(self) -> None:
        world = World()
        plan = make_plan(federation_of(sites=("c",)))
        begin(world.store, plan, fresh)
        plan.put(world.store)
        learner = PlusOneLearner(1)
        refuse = lambda *_: Decision("refused", "5 epochs, the most are 2")  # noqa: E731
        with announced(world.store, Opened(run="r1", plan=plan.digest)):
            world.spawn("c", agent(world, "c", learner, decide=refuse, once=False))
            world.run(limit=100.0)
        found = read_presence(world.store, "c")
        assert found is not None
        assert found.state == "refuses"
        assert found.text == "refuses the plan of run r1: 5 epochs, the most are 2"
        assert learner.trained == 0

    def test_a_plan_of_others_is_no_decision(self) -> None:
        world = World()
        plan = make_plan(federation_of(sites=("d",)))
        begin(world.store, plan, fresh)
        plan.put(world.store)
        asked: list[str] = []

        def decide(plan: Plan, opened: Opened) -> Decision:
            asked.append(opened.run)
            return Decision("approved")

        with announced(world.store, Opened(run="r1", plan=plan.digest)):
            world.spawn("c", agent(world, "c", PlusOneLearner(1), decide=decide, once=False))
            world.run(limit=100.0)
        assert asked == []

    def test_a_session_that_cannot_be_read_does_not_hide_others(self) -> None:
        world = World()
        plan, known = make_plan(federation_of(sites=("c",))), learners()
        begin(world.store, plan, fresh)
        plan.put(world.store)
        lost = Opened(run="lost", plan="sha256:" + "0" * 64)
        with announced(world.store, lost):
            world.spawn("coordinator", announcing(world, plan))
            for name in NAMES:
                if name != "c":
                    world.spawn(name, attendance(world, plan, name, known[name], session="job-1"))
            world.spawn("c", agent(world, "c", known["c"]))
            world.run(limit=5000)
        assert known["c"].trained == 3


@pytest.fixture
def disturbed() -> Any:
    """Plays a run whose site `c` has a store that fails, and returns the world, the plan and the learners."""

    def play(store: Any, **more: Any) -> tuple[World, Plan, dict[str, PlusOneLearner]]:
        world = World()
        plan, known = make_plan(federation_of(sites=("c",), **more)), learners()
        begin(world.store, plan, fresh)
        plan.put(world.store)
        world.spawn("coordinator", announcing(world, plan))
        for name in NAMES:
            if name != "c":
                world.spawn(name, attendance(world, plan, name, known[name], session="job-1"))

        def start() -> Actor:
            return agent(world, "c", known["c"])

        world.spawn("c", agent(world, "c", known["c"], store=store(world)), again=start)
        world.run(limit=500_000)
        return world, plan, known

    return play


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("point", range(0, 60))
def test_killed_at_any_call_of_the_store(disturbed: Any, point: int, when: str) -> None:
    """No round is lost, and none is trained again after its update is published."""
    world, plan, known = disturbed(lambda world: killing(world.store, point, when, real=False))
    assert final_of(world, plan) == expected("averaging")
    assert known["c"].trained <= plan.federation.training.rounds + world.kills
    published = [n for n in (1, 2, 3) if world.store.size(keys.update("c", "r1", n)) is not None]
    assert published == [1, 2, 3]


def test_a_store_that_is_away_for_a_day(disturbed: Any) -> None:
    """For this site alone: it is missed, comes back, and attends the next run."""
    away = (20.0, 20.0 + 86_400)

    def failing(world: World) -> Store:
        def before(number: int, name: str, key: str) -> None:
            if away[0] <= world.now < away[1]:
                raise StoreUnavailableError("no answer")

        return HookedStore(world.store, before)

    world, _, known = disturbed(failing, training={"rounds": 3, "batch_size": 1})
    world.results.pop("coordinator")
    second = make_plan(federation_of(sites=("c",)), "r2")
    world.now = max(world.now, away[1])
    begin(world.store, second, fresh)
    second.put(world.store)
    trained = known["c"].trained
    world.spawn("coordinator", announcing(world, second, job="next"))
    for name in NAMES:
        if name != "c":
            world.spawn(name, attendance(world, second, name, known[name], session="next-1"))
    world.spawn("c", agent(world, "c", known["c"], store=failing(world)))
    world.run()
    assert known["c"].trained == trained + 3
    assert final_of(world, second)


@pytest.mark.parametrize("begins", [0.0, 0.7, 1.2, 2.1, 3.05])
def test_a_store_that_is_away_for_everybody_for_a_day(begins: float, caplog: pytest.LogCaptureFixture) -> None:
    """The steps of the run end, and are tried again on the next day. The agent was there all the time."""
    caplog.set_level("CRITICAL", "fedpipe")  # thousands of looks
    world, day = World(), 86_400.0
    plan, known = make_plan(federation_of(sites=("c",))), learners()
    begin(world.store, plan, fresh)
    plan.put(world.store)

    def before(number: int, name: str, key: str) -> None:
        if begins <= world.now < begins + day:
            raise StoreUnavailableError("no answer")

    store = HookedStore(world.store, before)

    def start() -> None:
        world.spawn("coordinator", announcing(world, plan, store=store))
        for name in NAMES:
            if name != "c":
                world.spawn(name, attendance(world, plan, name, known[name], store=store, session="job-1"))

    start()
    world.spawn("c", agent(world, "c", known["c"], store=store, once=False))
    world.run(limit=begins + day)
    assert isinstance(world.results["coordinator"], StoreUnavailableError)
    assert "c" not in world.results, "the agent has not ended"
    world.now = begins + day
    start()
    world.run(limit=begins + day + 7200)
    assert final_of(world, plan) == expected("averaging")
    assert [len(record.contributors) for record in history(world.store, "r1")[1:]] == [len(NAMES)] * 3
    assert known["c"].trained <= 3 + (begins > 0), "only an update that could not be published is made again"


def test_a_store_that_refuses_for_a_while(disturbed: Any) -> None:
    """Keys that are rotated, or a full disk of the store: the agent says so, and returns to the session."""

    def refusing(world: World) -> Store:
        def before(number: int, name: str, key: str) -> None:
            if 10 <= number < 14:
                raise StoreError("the store refuses the credentials (AccessDenied)")

        return HookedStore(world.store, before)

    world, plan, known = disturbed(refusing)
    assert known["c"].trained == 4  # the update of one was refused
    assert final_of(world, plan) == expected("averaging")


def test_an_agent_that_is_asked_to_end_finishes_its_answer() -> None:
    world = World()
    plan, known = make_plan(federation_of(sites=("c",))), learners()
    begin(world.store, plan, fresh)
    plan.put(world.store)
    asked: list[bool] = []
    world.spawn("coordinator", announcing(world, plan))
    for name in NAMES:
        if name != "c":
            world.spawn(name, attendance(world, plan, name, known[name], session="job-1"))
    world.spawn("c", agent(world, "c", known["c"], once=False, stops=lambda: bool(asked)))
    world.run(limit=3.0)
    asked.append(True)
    world.run(limit=60.0)
    attended = world.results["c"]
    assert attended.why == "the agent was asked to end"
    found = read_presence(world.store, "c")
    assert found is not None
    assert found.state == "ended"
    assert waiting_sites(world.store, ["c"]) == ["c is a site whose agent has ended"]
    world.spawn("c", agent(world, "c", known["c"]))
    world.run()
    assert final_of(world, plan) == expected("averaging")


def test_an_agent_ends_at_once_while_the_store_is_away() -> None:
    """Each request would take a minute, with its retries."""
    world, calls, asked = World(), list[str](), list[bool]()

    def before(number: int, name: str, key: str) -> None:
        calls.append(name)
        raise StoreUnavailableError("no answer")

    world.spawn("c", agent(world, "c", PlusOneLearner(1), store=HookedStore(world.store, before), once=False,
                           stops=lambda: bool(asked)))  # fmt: skip
    world.run(limit=100.0)
    assert len(calls) > 5
    asked.append(True)
    calls.clear()
    world.run(limit=200.0)
    assert (world.results["c"], calls) == (None, [])


def test_sites_that_never_started_or_are_gone() -> None:
    world = World()
    assert waiting_sites(world.store, ["c"]) == ["c is a site whose agent has not started yet (fedpipe site run)"]
    world.spawn("c", agent(world, "c", PlusOneLearner(1), once=False))
    world.run(limit=1000.0)
    assert waiting_sites(world.store, ["c"]) == []
    world.now += 7200
    assert waiting_sites(world.store, ["c"]) == ["c is a site whose agent was last heard of 2 h ago"]
    world.store.replace(keys.presence("c"), b"<html>")
    assert waiting_sites(world.store, ["c"]) == ["c is a site whose agent has not started yet (fedpipe site run)"]


def test_an_account_that_cannot_be_kept_keeps_the_site_from_training() -> None:
    world = World()
    plan = make_plan(federation_of(sites=("c",)))
    begin(world.store, plan, fresh)
    plan.put(world.store)
    learner = PlusOneLearner(1)

    def full(event: str, **fields: Any) -> None:
        raise OSError(28, "No space left on device", "/srv/site/state/journal")

    with announced(world.store, Opened(run="r1", plan=plan.digest)):
        world.spawn("c", agent(world, "c", learner, note=full, once=False))
        world.run(limit=100.0)
    found = read_presence(world.store, "c")
    assert found is not None
    assert (found.state, learner.trained) == ("fails", 0)
    assert found.text == "left run r1: No space left on device"  # without paths of the site
