"""Sessions of real processes that are killed, on a folder, on MinIO and on VersityGW, servers killed as well.

A seed of tests/faults/seeds.py draws the faults: a few dozen sessions are disturbed by default, 1000 in `make faults`.
The processes are forked from one that has no threads: a fork of this one, while the proxy's threads run, could inherit
a lock that stays closed.
"""

from __future__ import annotations

import contextlib
import datetime
import faulthandler
import logging
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import pytest

from fedpipe.errors import FedpipeError, StoreError
from fedpipe.learners.learner import Arrays, Trained
from fedpipe.rounds.beginning import begin
from fedpipe.rounds.plan import Plan, RunPlace
from fedpipe.rounds.updates import find_update
from fedpipe.sessions.attendance import Attendance, at_once
from fedpipe.sessions.board import Board
from fedpipe.sessions.coordinator import Coordinator
from fedpipe.sessions.pacing import drive
from fedpipe.steps import learn
from fedpipe.store import Store, keys, open_store
from tests import servers
from tests.faults import seeds
from tests.faults.forks import Forks
from tests.faults.invariants import check
from tests.faults.proxy import disturbing
from tests.faults.stores import killing
from tests.federations import PlusOneLearner, fresh, make_federation, make_plan
from tests.servers import Killable

KINDS = ("folder", "minio", "folder", "versitygw")  # of seeds 0, 1, 2, 3, 4, ... in turn
ROUNDS, NAMES, DEADLINE = 3, ("a", "b", "c"), 4.0
PARTS = len(KINDS)  # so that a part needs one server
DAY = 86400.0
PATIENCE = 180.0  # of the test, with a session
pytestmark = [pytest.mark.heavy]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Killable]]:
    """Servers by name, started when the first test needs them."""
    started: dict[str, Killable] = {}

    def get(name: str) -> Killable:
        if name not in started:
            started[name] = Killable(name, tmp_path_factory.mktemp(name) / "server")
        return started[name]

    yield get
    for server in started.values():
        server.stop()


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    """The process from which those of the sessions are forked."""
    with Forks(live, AWS_ACCESS_KEY_ID=servers.ACCESS_KEY, AWS_SECRET_ACCESS_KEY=servers.SECRET_KEY) as started:
        yield started


class Counting(PlusOneLearner):
    """Leaves a mark for every training that it finishes, and dawdles in one round if asked to."""

    def __init__(self, number: float, marks: Path, late: int) -> None:
        super().__init__(number, int(number), wants=200.0)
        self._marks, self._late, self.round = marks, late, 0

    def propose_weights(self, *, seed: int, seconds: float, optimizer: Arrays | None) -> Trained:
        if self.round == self._late:
            time.sleep(DEADLINE + 1)
        trained = super().propose_weights(seed=seed, seconds=seconds, optimizer=optimizer)
        with self._marks.open("ab") as file:
            file.write(b".")
        return trained


class Life(NamedTuple):
    """A process of a session, and the faults that hit it."""

    name: str
    endpoint: str  # its road to the store may be a disturbed one
    plan: Plan
    folder: Path
    kill: tuple[int, str] | None = None
    skew: float = 0.0  # seconds
    full: bool = False
    late: int = 0  # the round in which it dawdles


class Disturbed:
    """A session of processes with the faults of a seed."""

    def __init__(self, seed: int, uri: str, endpoint: str, folder: Path, server: Killable | None, forks: Forks) -> None:
        self.random, self.folder, self.server, self.forks = Random(seed), folder, server, forks
        self.endpoint = endpoint
        algorithm = self.random.choice(["averaging", "averaging", "collective", {"name": "averaging", "vote": {}}])
        quorum = {"deadline": DEADLINE, "min_learners": 2, "retries": 5}
        training = {"rounds": ROUNDS, "batch_size": 1}
        self.plan = make_plan(make_federation(NAMES, training=training, quorum=quorum, algorithm=algorithm))
        self.store: Store = open_store(uri).below(self.plan.federation.name)
        begin(self.store, self.plan, fresh)
        self.faults: list[str] = []
        self.restarts = dict.fromkeys([*NAMES, "coordinator", "twin"], 0)
        self.actors: dict[str, int] = {}
        self.killed = {self.random.choice([*NAMES, "coordinator"]) for _ in range(self.random.randint(1, 3))}
        self.late = {self.random.choice(NAMES): self.random.randint(1, ROUNDS)} if self.random.random() < 0.05 else {}
        self.skewed = set(self.random.sample([*NAMES, "coordinator"], 2)) if self.random.random() < 0.25 else set()
        self.full = self.random.choice([*NAMES, "coordinator"]) if self.random.random() < 0.15 else ""
        self.faults += [f"{len(self.late)} late", f"skewed {sorted(self.skewed)}", f"full {self.full}"]

    def run(self) -> None:
        for name in (*NAMES, "coordinator", *(["twin"] if self.random.random() < 0.3 else [])):
            self._start(name, first=True)
        events = sorted(self._events(), key=lambda event: event[0])
        started = time.monotonic()
        try:
            while self.actors:
                if events and time.monotonic() - started > events[0][0]:
                    events.pop(0)[1]()
                self._reap()
                assert time.monotonic() - started < PATIENCE, self._stacks()
                time.sleep(0.005)
        finally:
            self.forks.kill(set(self.actors.values()))
        for _, event in events:  # a session that was faster than its faults
            event()
        self._restore()
        check(self.store, self.plan, rounds=ROUNDS)
        for name in NAMES:
            trained = (self.folder / name).stat().st_size if (self.folder / name).exists() else 0
            assert trained <= ROUNDS + self.restarts[name], f"{name} trained {trained} times"

    def _events(self) -> list[tuple[float, Callable[[], None]]]:
        events: list[tuple[float, Callable[[], None]]] = []
        self._spoiled: dict[str, bytes] = {}
        if self.server and self.random.random() < 0.4:
            moment = self.random.uniform(0.05, 0.6)
            self.faults.append(f"server killed at {moment:.2f} s")
            events += [(moment, self.server.stop), (moment + self.random.uniform(0, 0.5), self.server.start)]
        if self.random.random() < 0.2:
            victim, number = self.random.choice(NAMES), self.random.randint(1, ROUNDS)
            self.faults.append(f"spoiled update of {victim} in round {number}")
            events += [(moment, lambda: self._spoil(victim, number)) for moment in (0.1, 0.2, 0.3, 0.4)]
        return events

    def _spoil(self, victim: str, number: int) -> None:
        """Cuts the weights of an update, or turns a bit, if they are there by now."""
        if self.server and not self.server.up:
            return
        with contextlib.suppress(StoreError):
            update = find_update(self.store, victim, self.plan.run, number)
            kind = "proposals" if self.plan.federation.proposers else "objects"
            if update is None or self._spoiled:
                return
            key = keys.content(update.weights, victim, kind)  # type: ignore[arg-type]
            data = self.store.read(key).data
            self._spoiled[key] = data
            turned = bytes([*data[:-1], data[-1] ^ 4])
            self.store.replace(key, data[:-2] if self.random.random() < 0.5 else turned)

    def _restore(self) -> None:
        for key, data in self._spoiled.items():  # a replay needs what was counted before it was spoiled
            self.store.replace(key, data)

    def _start(self, name: str, *, first: bool) -> None:
        point, when = self.random.randint(0, 60), self.random.choice(["before", "during", "after"])
        skew = self.random.choice([-DAY, DAY]) if name in self.skewed else 0.0
        if kill := first and name in self.killed:
            self.faults.append(f"kill of {name} {when} call {point}")
        life = Life(
            name, self.endpoint, self.plan, self.folder, (point, when) if kill else None, skew,
            full=first and name == self.full, late=self.late.get(name, 0),
        )  # fmt: skip
        self.actors[name] = self.forks.start(life)

    def _stacks(self) -> str:
        """Where those are who do not end."""
        return "\n".join(f"{name}: {(self.folder / f'{name}.stack').read_text()}" for name in sorted(self.actors))

    def _reap(self) -> None:
        codes = self.forks.ended()
        for name, process in list(self.actors.items()):
            if process not in codes:
                continue
            del self.actors[name]
            if code := codes[process]:
                assert code != 9, (self.folder / f"{name}.error").read_text()
                self.restarts[name] += 1
                assert self.restarts[name] < 20
                self._start(name, first=False)


def live(life: Life) -> None:
    """Runs a process of the session."""
    with (life.folder / f"{life.name}.stack").open("w") as stack:
        faulthandler.dump_traceback_later(PATIENCE - 10, file=stack)
        try:
            _take_part(life)
        except (FedpipeError, OSError):  # `contract.execute` makes a StepError of the latter
            sys.exit(3)
        except BaseException as error:
            (life.folder / f"{life.name}.error").write_text(repr(error))
            sys.exit(9)


def _take_part(life: Life) -> None:
    """Each process has a disk of its own, which is empty after a restart."""
    logging.disable(logging.CRITICAL)
    scratch = life.folder / f"disk-{life.name}"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    tempfile.tempdir = str(scratch)
    if life.skew:
        _skew(life.skew)
    if life.full:  # files cannot grow beyond a few bytes: the disk is full
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))
    store: Store = open_store(life.endpoint).below(life.plan.federation.name)
    if life.kill:
        store = killing(store, *life.kill, real=True)
    if life.name in ("coordinator", "twin"):
        drive(Coordinator(store, life.plan, "s").run(), time.sleep)
        return
    learner = Counting(NAMES.index(life.name) + 1, life.folder / life.name, life.late)

    def answer(board: Board) -> bool:
        learner.round = board.round
        return act(store, life.plan, life.name, board, learner)

    drive(Attendance(store, life.plan, life.name, "s", dict.fromkeys(learn.ANSWERS, at_once(answer))).run(), time.sleep)


def act(store: Store, plan: Plan, name: str, board: Board, learner: Any) -> bool:
    """The very body of the step `learn`, with a learner that needs no framework."""
    place = RunPlace(store="memory://unused", federation=plan.federation.name, run=plan.run)
    learn.opened = lambda _: (store, plan)  # type: ignore[assignment]  (this process is ours alone)
    learn.make_learner = lambda *_, **__: learner  # type: ignore[assignment]
    return learn.act(learn.Inputs(place=place, learner=name), board)


def _skew(seconds: float) -> None:
    """This process's clock is a day off; its monotonic one is right."""
    import minio.time

    now, signing = time.time, minio.time.utcnow
    time.time = lambda: now() + seconds
    minio.time.utcnow = lambda: signing() + datetime.timedelta(seconds=seconds)


@pytest.mark.usefixtures("s3_keys")
@pytest.mark.parametrize("part", range(PARTS))
def test_invariants_hold_wherever_processes_die(part: int, running: Callable[[str], Killable], forks: Forks) -> None:
    for seed in seeds.drawn(part, PARTS, seeds.COUNT):
        kind = KINDS[seed % len(KINDS)]
        with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
            folder = Path(name)
            if kind == "folder":
                uri = through = f"file://{folder}/store"
                server = None
            else:
                server = running(kind)
                uri = f"s3://tests/seed-{seed}?endpoint=http://127.0.0.1:{server.port}"
                through = (
                    f"s3://tests/seed-{seed}?endpoint={stack.enter_context(disturbing(server.port, seed)).endpoint}"
                )
            disturbed = Disturbed(seed, uri, through, folder, server, forks)
            try:
                disturbed.run()
            except Exception as error:
                raise AssertionError(f"{seeds.how_to_repeat(seed)} on {kind}: {'; '.join(disturbed.faults)}") from error
