"""Agents of sites as processes that are killed: no round is lost, and nothing has left that is not in the journal.

Each agent has its own folder, with policy, decisions and journal, which outlives it. A seed draws when it is killed: at a
call of the store, or at any moment. A dozen agents are killed by default, 300 in `make faults`.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Generator, Iterator
from pathlib import Path
from random import Random
from typing import NamedTuple

import pytest

from fedpipe.rounds.beginning import begin
from fedpipe.rounds.plan import Plan
from fedpipe.sessions.attendance import Attendance, at_once
from fedpipe.sessions.board import Board
from fedpipe.sessions.coordinator import Coordinator
from fedpipe.sessions.current import Opened, announced
from fedpipe.sessions.pacing import drive
from fedpipe.sites.account import accounted
from fedpipe.sites.agent import Agent, Decision
from fedpipe.sites.audit import find_flaw
from fedpipe.sites.decisions import Decisions, journal_folder, journal_of, signer_in
from fedpipe.sites.journal import entries_of
from fedpipe.sites.site import Site, parse_site
from fedpipe.steps import learn
from fedpipe.store import Store, keys, open_store
from fedpipe.store.objects import put_bytes
from tests import servers
from tests.faults import seeds
from tests.faults.forks import Forks
from tests.faults.invariants import check
from tests.faults.stores import killing
from tests.faults.test_processes import Counting, act
from tests.federations import fresh, make_federation, make_plan
from tests.simulation import World, attendance, coordinator

KILLS = max(12, seeds.COUNT * 3 // 10)
NAMES, ROUNDS, JOB = ("a", "b", "c"), 3, "job"
ALGORITHMS = ("averaging", "averaging", {"name": "averaging", "vote": {"threshold": 0.4}})
PATIENCE = 120.0
"""Seconds of the test with one session."""
pytestmark = [pytest.mark.heavy]


class Life(NamedTuple):
    """A process: the agent of a site, or the coordinator; and the call of the store at which it is killed."""

    name: str
    uri: str
    plan: Plan
    folder: Path
    kill: tuple[int, str] | None = None


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    """The process from which all others are forked."""
    with Forks(live, AWS_ACCESS_KEY_ID=servers.ACCESS_KEY, AWS_SECRET_ACCESS_KEY=servers.SECRET_KEY) as started:
        yield started


def live(life: Life) -> None:
    """Runs a process of the session."""
    logging.disable(logging.CRITICAL)
    try:
        store = open_store(life.uri).below("tiny")
        if life.name == "coordinator":
            _coordinate(store, life.plan)
        else:
            _attend(store, life)
    except BaseException:
        (life.folder / f"{life.name}.error").write_text(traceback.format_exc())
        sys.exit(1)


def _coordinate(store: Store, plan: Plan) -> None:
    opened = Opened(run=plan.run, plan=plan.digest, job=JOB, since=time.time())
    with announced(store, opened):
        drive(Coordinator(store, plan, opened.session).run(), time.sleep)


def _attend(store: Store, life: Life) -> None:
    """Runs an agent as `fedpipe site run` does, but for the process that trains."""
    site = site_of(life.folder, life.name)
    journal = journal_of(site)
    store = accounted(killing(store, *life.kill, real=True) if life.kill else store, journal.note, site.name)
    decisions = Decisions(site, journal)
    learner = Counting(NAMES.index(life.name) + 1, life.folder / f"{life.name}.trained", late=-1)

    def decide(plan: Plan, _: Opened) -> Decision:
        made = decisions.decide(store, plan)
        return Decision(made.verdict, made.why)

    def attend(plan: Plan, opened: Opened) -> Generator[float, None, Counter[str]]:
        def answer(board: Board) -> bool:
            return act(store, plan, site.name, board, learner)

        answers = dict.fromkeys(learn.ANSWERS, at_once(answer))
        return (yield from Attendance(store, plan, site.name, opened.session, answers, last=opened.last).run())

    agent = Agent(
        site, store, attend, decide=decide, note=journal.note, read=decisions.read,
        stops=lambda: (life.folder / "over").exists(),
    )  # fmt: skip
    drive(agent.run(), lambda seconds: time.sleep(min(seconds, 0.02)))


def site_of(folder: Path, name: str) -> Site:
    place = folder / f"at-{name}"
    place.mkdir(exist_ok=True)
    content = {"store": "store", "federation": "tiny", "name": name, "approve": "any", "policy": {"data": "rows.npz"}}
    return parse_site(content, place, where="site.yaml")


class Session:
    """A session whose agents are killed once each, as a seed draws."""

    def __init__(self, seed: int, uri: str, folder: Path, forks: Forks) -> None:
        self.random, self.uri, self.folder, self.forks = Random(seed), uri, folder, forks
        self.plan = plan_of(self.random.choice(ALGORITHMS))
        self.store = open_store(uri).below("tiny")
        put_bytes(self.store, b"code")
        begin(self.store, self.plan, fresh)
        self.plan.put(self.store)
        self.actors: dict[str, int] = {}
        self.kills = dict.fromkeys(NAMES, 0)
        self.faults: list[str] = []
        self.moments: dict[str, float] = {}

    def run(self) -> int:
        """Plays the session, checks what must hold, and returns how many agents were killed."""
        for name in ("coordinator", *NAMES):
            self._start(name, first=name != "coordinator")
        started = time.monotonic()
        try:
            while self.actors:
                passed = time.monotonic() - started
                assert passed < PATIENCE, sorted(self.actors)
                for name in [name for name, moment in self.moments.items() if moment < passed]:
                    del self.moments[name]
                    os.kill(self.actors[name], signal.SIGKILL)
                self._reap()
                time.sleep(0.005)
        finally:
            self.forks.kill(set(self.actors.values()))
        self._check()
        return sum(self.kills.values())

    def _start(self, name: str, *, first: bool) -> None:
        kill = None
        if first and self.random.random() < 0.3:
            self.moments[name] = self.random.uniform(0.0, 0.6)
            self.faults.append(f"{name} at {self.moments[name]:.3f} s")
        elif first:
            kill = self.random.randint(0, 40), self.random.choice(["before", "during", "after"])
            self.faults.append(f"{name} {kill[1]} call {kill[0]}")
        self.actors[name] = self.forks.start(Life(name, self.uri, self.plan, self.folder, kill))

    def _reap(self) -> None:
        codes = self.forks.ended()
        for name in [name for name, process in self.actors.items() if process in codes]:
            code = codes[self.actors.pop(name)]
            assert code in (0, -signal.SIGKILL), (self.folder / f"{name}.error").read_text()
            self.moments.pop(name, None)
            if name == "coordinator":
                (self.folder / "over").touch()
            elif code:
                self.kills[name] += 1
                self._start(name, first=False)

    def _check(self) -> None:
        records = check(self.store, self.plan, rounds=ROUNDS)
        assert [record.contributors for record in records[1:]] == [NAMES] * ROUNDS
        assert records[-1].weights == undisturbed(self.plan)
        for name in NAMES:
            trained = (self.folder / f"{name}.trained").stat().st_size
            assert trained <= ROUNDS + self.kills[name], f"{name} trained {trained} times"
            site = site_of(self.folder, name)
            journal_of(site)  # an agent that was killed at its end has nobody who repairs its journal
            assert find_flaw(journal_folder(Path(site.state)), signer_in(Path(site.state)).public) is None
            noted = [entry.fields for entry in entries_of(journal_folder(Path(site.state))) if entry.event == "sent"]
            left = {entry.key: entry.size for entry in self.store.entries(f"learners/{name}/")}
            del left[keys.presence(name)]
            assert left.items() <= {(fields["object"], fields["bytes"]) for fields in noted}


def plan_of(algorithm: object) -> Plan:
    learners = [{"name": name, "at": "site"} for name in NAMES]
    quorum = {"deadline": PATIENCE, "min_learners": len(NAMES), "retries": 5}
    training = {"rounds": ROUNDS, "batch_size": 1}
    return make_plan(make_federation(learners=learners, training=training, quorum=quorum, algorithm=algorithm))


def undisturbed(plan: Plan) -> str:
    """The final weights of the same session under a simulated clock, without faults."""
    world = World()
    begin(world.store, plan, fresh)
    world.spawn("coordinator", coordinator(world, plan))
    for number, name in enumerate(NAMES, 1):
        world.spawn(name, attendance(world, plan, name, Counting(number, Path(os.devnull), late=-1)))
    world.run()
    return check(world.store, plan, rounds=ROUNDS)[-1].weights


@pytest.mark.usefixtures("s3_keys")
def test_agents_that_are_killed_lose_no_round(minio_server: servers.Server, forks: Forks) -> None:
    killed, seed = 0, seeds.FIRST
    while killed < KILLS:
        with tempfile.TemporaryDirectory() as name:
            minio = minio_server.uri.replace("s3://tests", f"s3://tests/agents-{seed}")
            session = Session(seed, minio if seed % 2 else f"file://{name}/store", Path(name), forks)
            try:
                killed += session.run()
            except Exception as error:
                raise AssertionError(f"{seeds.how_to_repeat(seed)}: {'; '.join(session.faults)}") from error
        seed += 1
