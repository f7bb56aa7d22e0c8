"""Disturbed agents of sites under a simulated clock: no round is lost, and none is trained again once it is published."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest

from fedpipe.errors import StoreError, StoreUnavailableError
from fedpipe.rounds.beginning import begin
from fedpipe.rounds.history import history
from fedpipe.rounds.updates import own_update
from fedpipe.store import Store
from tests.faults import seeds
from tests.faults.invariants import check
from tests.faults.stores import HookedStore, killing
from tests.federations import PlusOneLearner, fresh, make_federation, make_plan
from tests.simulation import Actor, World, attendance
from tests.sites.world import agent, announcing

COUNT = max(60, seeds.COUNT)
PARTS = 6
ROUNDS = 4
NAMES, SITES = ("a", "b", "c", "d", "e"), ("c", "d", "e")
ALGORITHMS: list[Any] = ["averaging", {"name": "averaging", "vote": {"threshold": 0.4}}, "collective"]


class Disturbed:
    """A session with three sites, one to four of whose calls of the store go wrong."""

    def __init__(self, seed: int) -> None:
        self.random, self.world = Random(seed), World(seed)
        learners = [{"name": name, **({"at": "site"} if name in SITES else {})} for name in NAMES]
        self.plan = make_plan(
            make_federation(
                learners=learners, algorithm=self.random.choice(ALGORITHMS),
                training={"rounds": ROUNDS, "batch_size": 1, "optimizer": self.random.choice(["reset", "keep"])},
                quorum={"deadline": 3600, "retries": 3, "min_learners": 2},
            )
        )  # fmt: skip
        self.learners = {name: PlusOneLearner(k + 1, k + 1, wants=200.0) for k, name in enumerate(NAMES)}
        self.faults: list[str] = []
        self.allowed = dict.fromkeys(SITES, ROUNDS)
        begin(self.world.store, self.plan, fresh)
        self.plan.put(self.world.store)

    def run(self) -> None:
        for name in NAMES:
            if name not in SITES:
                actor = attendance(self.world, self.plan, name, self.learners[name], session="job-1")
                self.world.spawn(name, actor)
        self.world.spawn("coordinator", announcing(self.world, self.plan))
        for name in SITES:
            self._start(name, self._spoiled(name), after=self.random.uniform(0, 60))
        self.world.run(limit=1e6)
        check(self.world.store, self.plan, rounds=ROUNDS)
        for name in SITES:
            assert self.learners[name].trained <= self.allowed[name], name
        for record in history(self.world.store, self.plan.run):
            for update in record.updates:
                assert own_update(self.world.store, update.learner, self.plan.run, record.round) == update

    def _start(self, name: str, store: Store, after: float = 0.0) -> None:
        def again() -> Actor:
            self.allowed[name] += 1
            return agent(self.world, name, self.learners[name])

        self.world.spawn(name, agent(self.world, name, self.learners[name], store=store), after=after, again=again)

    def _spoiled(self, name: str) -> Store:
        kind, point = self.random.choice(["kill", "kill", "away", "refused", "lost"]), self.random.randint(0, 80)
        self.faults.append(f"{kind} of {name} at call {point}")
        if kind == "kill":
            return killing(self.world.store, point, self.random.choice(["before", "after"]), real=False)
        length = self.random.randint(1, 10)

        def before(number: int, _: str, __: str) -> None:
            if point <= number < point + length and kind != "lost":
                self.allowed[name] += 1
                raise StoreUnavailableError("503") if kind == "away" else StoreError("AccessDenied")

        def after(number: int, call: str, _: str) -> None:
            if point <= number < point + length and kind == "lost" and call in ("create", "replace", "upload"):
                self.allowed[name] += 1
                raise StoreUnavailableError("the answer was lost")

        return HookedStore(self.world.store, before, after)


@pytest.mark.parametrize("part", range(PARTS))
def test_disturbed_agents(part: int) -> None:
    for seed in seeds.drawn(part, PARTS, COUNT):
        session = Disturbed(seed)
        try:
            session.run()
        except BaseException as error:
            raise AssertionError(f"{session.faults}; repeat it: {seeds.how_to_repeat(seed)}") from error
