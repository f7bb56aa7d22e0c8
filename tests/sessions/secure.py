"""Secure sums under a simulated clock: federations with a roster, and learners that answer the four phases."""

from __future__ import annotations

from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import numpy as np

from fedpipe.identity.enrolment import Enrolled, Enrolment
from fedpipe.identity.roster import put_roster
from fedpipe.identity.signing import ADMINISTRATOR, make_key, public_key
from fedpipe.learners.learner import Arrays
from fedpipe.learners.masking import MaskedFile, contribute_masked
from fedpipe.rounds.beginning import begin
from fedpipe.rounds.history import history
from fedpipe.rounds.manifests import Dropped, Record
from fedpipe.rounds.plan import Plan
from fedpipe.rounds.releases import Leaving
from fedpipe.rounds.roll import Roll
from fedpipe.secure.party import Orders
from fedpipe.sessions.attendance import Answering
from fedpipe.sessions.board import Board
from fedpipe.sessions.scripts import script_of
from fedpipe.sessions.secure import PHASES, Participant
from fedpipe.store import Store, keys
from fedpipe.store.objects import get_bytes
from fedpipe.weights import loads
from tests.federations import PlusOneLearner, make_federation, make_plan
from tests.simulation import Actor, World, attendance, coordinator

NAMES = ("a", "b", "c", "d", "e")
SECURE = {"bits": 20, "bound": 8.0}


def enrol(store: Store, federation: str, names: tuple[str, ...], folder: Path) -> None:
    """Writes keys of all, and the administrator's, and the roster."""
    folder.mkdir(exist_ok=True)
    enrolled = {}
    for name in names:
        private = make_key()
        (folder / f"{name}.key").write_text(private)
        enrolled[name] = Enrolment(key=public_key(private), since=0.0)
    private = make_key()
    (folder / f"{ADMINISTRATOR}.pub").write_text(public_key(private))
    put_roster(store, federation, Enrolled(learners=enrolled), private)


def plan_of(rounds: int = 2, names: tuple[str, ...] = NAMES, *, secure: Any = None, **more: Any) -> Plan:
    algorithm = {"name": "averaging", "secure": {**SECURE, **(secure or {})}, **more.pop("algorithm", {})}
    training = {"rounds": rounds, "batch_size": 1, "rounds_per_step": "all", **more.pop("training", {})}
    quorum = {"deadline": 60, **more.pop("quorum", {})}
    plan = make_plan(make_federation(names, algorithm=algorithm, training=training, quorum=quorum, **more))
    sizes = {name: {"train": place + 1} for place, name in enumerate(names)}
    return Plan(**{f: getattr(plan, f) for f in Plan.__struct_fields__} | {"sizes": sizes})


def initial() -> Arrays:
    return {"w": np.linspace(-1, 1, 40, dtype=np.float32), "b": np.zeros((), np.float64), "steps": np.int64(7)}


class SecureSession:
    """A session of secure sums.

    Args:
        plan: its plan.
        folder: of the keys.
        seed: of chance.
        initial: makes the first weights.
    """

    def __init__(
        self, plan: Plan, folder: Path, seed: int = 0, initial: Callable[[], Arrays] = initial
    ) -> None:  # fmt: skip
        self.plan, self.world, self.session = plan, World(seed), "s"
        self.names = tuple(learner.name for learner in plan.federation.learners)
        self.learners: dict[str, Any] = {n: PlusOneLearner(k + 1, k + 1) for k, n in enumerate(self.names)}
        self.seconds: dict[str, Callable[[Board], float]] = {}
        self.stores: dict[str, Store] = {}
        self.leaves: dict[str, Leaving] = {}
        self.sent: dict[str, Callable[[Store, MaskedFile], MaskedFile]] = {}
        self.participants: dict[str, Participant] = {}
        enrol(self.world.store, plan.federation.name, self.names, folder)
        begin(self.world.store, plan, initial)

    def answering(
        self, world: World, store: Store, plan: Plan, name: str, learner: Any, seconds: Callable[[Board], float]
    ) -> dict[str, Answering]:
        def train(board: Board, orders: Orders) -> MaskedFile | Dropped:
            left = plan.federation.quorum.deadline - (store.age(keys.board(plan.run)) or 0.0)
            roll = Roll((), attempt=board.attempt)
            made = contribute_masked(
                store, plan, name, board.round, board.base, lambda: learner, orders, roll=roll, seconds=left
            )
            change = self.sent.get(name)
            return change(store, made) if change and isinstance(made, MaskedFile) else made

        participant = self.participants[name] = Participant(
            store, plan, name, self.session, train, self.leaves.get(name)
        )
        steps = participant.answers()

        def answer(board: Board) -> Generator[float, None, bool]:
            yield seconds(board)
            return steps[board.phase](board)

        return dict.fromkeys(PHASES, answer)

    def start(self, name: str, after: float = 0.0, again: Callable[[], Actor] | None = None) -> None:
        self.world.spawn(name, self.actor(name), after=after, again=again)

    def actor(self, name: str) -> Actor:
        return attendance(
            self.world, self.plan, name, self.learners[name], store=self.stores.get(name), session=self.session,
            answering=self.answering,
            seconds=self.seconds.get(name, lambda _: 1.0),
        )  # fmt: skip

    def coordinator(self) -> Actor:
        def scripts(store: Store, plan: Plan) -> Any:
            return script_of(store, plan, session=self.session)

        return coordinator(
            self.world, self.plan, store=self.stores.get("coordinator"), session=self.session, scripts=scripts
        )

    def run(self, *, absent: str = "") -> Any:
        self.world.spawn("coordinator", self.coordinator())
        for name in self.names:
            if name not in absent:
                self.start(name)
        self.world.run()
        return self.world.results["coordinator"]

    @property
    def records(self) -> list[Record]:
        return history(self.world.store, self.plan.run)

    def weights(self, number: int) -> Arrays:
        return loads(get_bytes(self.world.store, self.records[number].weights))

    def dropped(self, number: int) -> dict[str, str]:
        return {item.learner: item.why for item in self.records[number].dropped}


def mean_of(numbers: str | tuple[str, ...], names: tuple[str, ...] = NAMES) -> float:
    """Returns the mean that these learners add to a weight in a round: k, with k examples."""
    chosen = [names.index(name) + 1 for name in numbers]
    return sum(k * k for k in chosen) / sum(chosen)
