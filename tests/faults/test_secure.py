"""Secure sums whose learners and coordinator are killed anywhere: no round is lost or doubled, no update is opened.

A seed draws the faults, as in `test_simulated`: 24 sessions by default, more with FEDPIPE_FAULTS.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest

from fedpipe.errors import QuorumError, StoreUnavailableError
from fedpipe.federation.algorithms import MOST_SUMMED, least_threshold
from fedpipe.identity.signing import KEYS
from fedpipe.rounds.history import history
from fedpipe.rounds.masked import grid_of
from fedpipe.secure.messages import Masked, Occasion, Reveal
from fedpipe.secure.numbers import Grid
from fedpipe.store import Store
from fedpipe.store.objects import decode
from tests.faults import seeds
from tests.faults.stores import HookedStore, killing
from tests.secure.table import Table
from tests.sessions.secure import NAMES, SECURE, SecureSession, initial, plan_of
from tests.simulation import Actor

ROUNDS, PARTS = 3, 4
COUNT = max(24, seeds.COUNT)


class Disturbed(SecureSession):
    """A session in which up to three processes are killed once, at any call of the store, which may also be away.

    Args:
        seed: draws the faults.
        folder: of the keys.
    """

    def __init__(self, seed: int, folder: Path) -> None:
        super().__init__(plan_of(ROUNDS, quorum={"retries": 4}), folder, seed)
        self.random, self.faults = Random(seed), list[str]()
        self.revealed: list[Reveal] = []
        self.vectors: dict[tuple[Occasion, str], set[str]] = defaultdict(set)
        for victim in self.random.sample([*NAMES, "coordinator"], self.random.randint(1, 3)):
            point, when = self.random.randint(0, 90), self.random.choice(["before", "after"])
            self.faults.append(f"kill of {victim} {when} call {point}")
            self.stores[victim] = killing(self.world.store, point, when, real=False)
        if self.random.random() < 0.3:
            victim, point, length = self.random.choice(NAMES), self.random.randint(0, 90), self.random.randint(1, 10)
            self.faults.append(f"{length} calls of {victim} without an answer, from call {point}")
            self.stores[victim] = without_answer(self.stores.get(victim, self.world.store), point, length, self.random)
        for name in NAMES:
            self.stores[name] = self._watched(self.stores.get(name, self.world.store))

    def _watched(self, store: Store) -> Store:
        """Keeps what a learner reveals, and its statements about vectors, which a later try writes over."""

        def after(_number: int, name: str, key: str) -> None:
            if name != "replace" or not self.world.store.size(key):
                return
            if key.endswith("/revealed"):
                self.revealed.append(decode(self.world.store.read(key).data, Reveal, where=key))
            if key.endswith("/masked"):
                sent = decode(self.world.store.read(key).data, Masked, where=key)
                self.vectors[sent.occasion, sent.learner].add(sent.vector)

        return HookedStore(store, after=after)

    def second(self) -> Any:
        """Runs the pipeline again, undisturbed, in new processes and as a session of its own."""
        self.session = "s2"
        self.stores = {name: self._watched(self.world.store) for name in NAMES}
        self.world.results.clear()
        self.world.spawn("coordinator", self.coordinator())
        for name in NAMES:
            self.start(name)
        self.world.run()
        return self.world.results["coordinator"]

    def again(self, make: Callable[[], Actor], name: str) -> Callable[[], Actor]:
        def restarted() -> Actor:
            self.stores[name] = self._watched(self.world.store) if name in NAMES else self.world.store
            return make()

        return restarted

    def play(self) -> Any:
        self.world.spawn("coordinator", self.coordinator(), again=self.again(self.coordinator, "coordinator"))
        for name in NAMES:
            make = lambda name=name: self.actor(name)  # noqa: E731
            self.start(name, after=self.random.uniform(0, 3), again=self.again(make, name))
        self.world.run()
        return self.world.results["coordinator"]

    def check(self) -> None:
        """Each committed round is the mean of its members, and no vector lies open."""
        grid, expected = grid_of(self.plan, SECURE["bound"]), initial()["w"].astype(np.float64)
        for record in history(self.world.store, self.plan.run)[1:]:
            chosen = [NAMES.index(name) + 1 for name in record.contributors]
            expected = expected + sum(k * k for k in chosen) / sum(chosen)
            slack = 2 * record.round * len(NAMES) * grid.step
            assert np.abs(self.weights(record.round)["w"] - expected).max() <= slack
            assert len(chosen) >= self.plan.federation.threshold
        lists = defaultdict(set)
        for reveal in self.revealed:
            lists[reveal.occasion].add(reveal.members)
            gone = {*reveal.seeds, *(name for shares in reveal.pairs.values() for name in shares)}
            assert not {*reveal.shares, *reveal.pairs} & gone, "one kind of secret for each peer"
        assert all(len(found) == 1 for found in lists.values()), "secrets of one list in each try"
        assert all(len(found) == 1 for found in self.vectors.values()), "one vector under one mask"


def without_answer(store: Store, point: int, length: int, random: Random) -> Store:
    """A store that does not answer some calls, before they are done or afterwards."""
    moments = [random.choice(["before", "after"]) for _ in range(length)]

    def at(when: str) -> Callable[[int, str, str], None]:
        def hook(number: int, _name: str, _key: str) -> None:
            if point <= number < point + length and moments[number - point] == when:
                raise StoreUnavailableError("503")

        return hook

    return HookedStore(store, at("before"), at("after"))


@pytest.mark.parametrize("part", range(PARTS))
def test_no_round_is_lost_and_no_update_is_opened(part: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in seeds.drawn(part, PARTS, COUNT):
        folder = tmp_path / str(seed)
        monkeypatch.setenv(KEYS, str(folder))
        disturbed = Disturbed(seed, folder)
        try:
            last = disturbed.play()
            disturbed.check()
            if isinstance(last, QuorumError):  # too few were left to open a sum; the same command runs again
                last = disturbed.second()
                disturbed.check()
            assert getattr(last, "round", last) == ROUNDS
        except Exception as error:
            raise AssertionError(f"{seeds.how_to_repeat(seed)}: {'; '.join(disturbed.faults)}") from error


@pytest.mark.parametrize("part", range(2))
def test_any_pattern_of_dropouts_of_many_learners_gives_the_plain_sum(part: int) -> None:
    """Of 17 to 64 learners, any may drop out before each phase; at least the threshold stays."""
    for seed in seeds.drawn(part, 2, max(2, seeds.COUNT // 20)):
        random = Random(seed)
        count = random.randint(17, MOST_SUMMED)
        table = Table(count, seed=count, grid=Grid(random.randint(8, 32), 1.0, count), length=8)
        left, stages = table.names, []
        for _ in range(4):
            left = sorted(random.sample(left, random.randint(least_threshold(count), len(left))))
            stages.append(left)
        found = table.play(*stages)
        assert (found == table.plain(stages[1])).all(), f"{seeds.how_to_repeat(seed)}: {stages}"
