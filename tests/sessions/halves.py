"""A cut network in NumPy: linear bottoms, a softmax on their sum, SGD with momentum. And sessions of its parties."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Mapping
from typing import Any

import numpy as np
from msgspec.structs import replace

from fedpipe.data.shards import split
from fedpipe.federation.federation import Federation
from fedpipe.learners.cut import Shape, held_by, joined
from fedpipe.learners.party import Held, Parts, own_ids
from fedpipe.rounds.beginning import begin
from fedpipe.rounds.cut import index_of
from fedpipe.rounds.manifests import Dropped
from fedpipe.rounds.plan import Plan
from fedpipe.sessions.attendance import Answering, Attendance
from fedpipe.sessions.board import Board
from fedpipe.sessions.parties import Round
from fedpipe.sessions.taking_part import clear, find_common, take_part
from fedpipe.store import Store
from fedpipe.store.objects import put_bytes
from fedpipe.weights import Array, digest_of
from tests.federations import make_federation, make_plan
from tests.simulation import Actor, World, coordinator

WIDTH, CLASSES, RATE, MOMENTUM = 3, 2, 0.3, 0.5


def softmax(values: Array) -> Array:
    raised = np.exp(values - values.max(axis=1, keepdims=True))
    return raised / raised.sum(axis=1, keepdims=True)


class NumpyPart:
    names: tuple[str, ...]

    def begin(self, start: Mapping[str, Array], optimizer: Any, *, seed: int, rate: float) -> None:
        self.current = {name: np.array(start[name]) for name in start}
        self.velocity = np.zeros_like(start["kernel"]) if optimizer is None else np.array(optimizer["velocity"])
        self.rate = rate or RATE

    def weights(self) -> dict[str, Array]:
        return dict(self.current)

    def optimizer_state(self) -> dict[str, Array]:
        return {"velocity": self.velocity}

    def move(self, gradient: Array) -> None:
        self.velocity = (MOMENTUM * self.velocity + gradient).astype(np.float32)
        self.current["kernel"] = (self.current["kernel"] - self.rate * self.velocity).astype(np.float32)


class NumpyBottom(NumpyPart):
    @property
    def output(self) -> Shape:
        return Shape("float32", (WIDTH,))

    def begin(self, start: Mapping[str, Array], optimizer: Any, *, seed: int, rate: float) -> None:
        super().begin(start, optimizer, seed=seed, rate=rate)
        self.open = deque[Array]()

    def forward(self, x: Array) -> Array:
        self.open.append(x)
        return self.infer(x)

    def backward(self, gradient: Array) -> None:
        self.move(self.open.popleft().T @ gradient)

    def infer(self, x: Array) -> Array:
        return (x @ self.current["kernel"]).astype(np.float32)

    def metrics(self) -> dict[str, float]:
        return {}


class NumpyTop(NumpyPart):
    def __init__(self, parties: int) -> None:
        self.parties, self.losses = parties, list[tuple[int, float]]()

    @property
    def inputs_in_order(self) -> tuple[Shape, ...]:
        return (Shape("float32", (WIDTH,)),) * self.parties

    def begin(self, start: Mapping[str, Array], optimizer: Any, *, seed: int, rate: float) -> None:
        super().begin(start, optimizer, seed=seed, rate=rate)
        self.losses = []

    def step(self, activations: Any, y: Array) -> list[Array]:
        hidden = np.concatenate(activations, axis=1)
        shares = softmax(hidden @ self.current["kernel"])
        self.losses.append((len(y), float(-np.log(shares[np.arange(len(y)), y]).mean())))
        error = (shares - np.eye(CLASSES, dtype=np.float32)[y]) / len(y)
        down = (error @ self.current["kernel"].T).astype(np.float32)
        self.move(hidden.T @ error)
        return np.split(down, self.parties, axis=1)

    def metrics(self) -> dict[str, float]:
        total = sum(count for count, _ in self.losses)
        return {"loss": sum(count * loss for count, loss in self.losses) / total}

    def test(self, start: Mapping[str, Array], activations: Any, y: Array) -> dict[str, float]:
        shares = softmax(np.concatenate(activations, axis=1) @ start["kernel"])
        return {"loss": float(-np.log(shares[np.arange(len(y)), y]).mean())}


def federation_of(names: tuple[str, ...] = ("alice", "carol", "labels"), **more: Any) -> Federation:
    algorithm = {"name": "split", "label_party": names[-1], **more.pop("algorithm", {})}
    return make_federation(
        learners=[{"name": name, "data": f"{name}.npz"} for name in names], algorithm=algorithm, data={},
        training={"rounds": 2, "batch_size": 8, **more.pop("training", {})}, **more,
    )  # fmt: skip


def first_weights(federation: Federation) -> dict[str, Array]:
    random = np.random.default_rng(5)
    parties = federation.feature_parties
    parts = {f"bottom-{name}": {"kernel": random.normal(size=(4, WIDTH)).astype(np.float32)} for name in parties}
    kernel = random.normal(size=(WIDTH * len(parties), CLASSES)).astype(np.float32)
    return joined({**parts, "top": {"kernel": kernel}})


def rows_of(federation: Federation, count: int = 50) -> dict[str, Held]:
    random, parts = np.random.default_rng(6), split(count, federation.data.parts, [0, 4])
    x = {name: random.normal(size=(count, 4)).astype(np.float32) for name in federation.feature_parties}
    y = (sum(array[:, 0] for array in x.values()) > 0).astype(np.int64)
    assert federation.split
    return {
        one.name: Held(x.get(one.name), y if one.name == federation.split.label_party else None, parts)
        for one in federation.learners
    }  # fmt: skip


def parts_of(federation: Federation, party: str) -> Parts:
    assert federation.split
    bottom = NumpyBottom() if party in federation.feature_parties else None
    return Parts(bottom, NumpyTop(len(federation.feature_parties)) if party == federation.split.label_party else None)


def begun(store: Store, federation: Federation, code: bytes = b"code") -> Plan:
    plan, first = replace(make_plan(federation), code=put_bytes(store, code)), first_weights(federation)
    digests = {one.name: digest_of(held_by(first, federation, one.name)) for one in federation.learners}
    begin(store, plan, lambda: index_of(digests))
    return plan


def attendance(
    world: World, plan: Plan, party: str, *, store: Store | None = None, held: Held | None = None,
    make: Callable[[], tuple[Held, Parts]] | None = None, session: str = "s",
) -> Actor:  # fmt: skip
    """Attends as a party, which removes its parcels when a round is over."""
    chosen, federation = store or world.store, plan.federation
    rows = held or rows_of(federation)[party]
    past: list[Board] = []

    def answer(board: Board) -> Generator[float, None, bool]:
        while past:
            clear(chosen, plan, party, past.pop())
        past.append(board)
        mine = make or (lambda: (rows, parts_of(federation, party)))
        done = yield from take_part(
            chosen, plan, party, board, mine, lambda: held_by(first_weights(federation), federation, party),
            clock=world.clock,
        )  # fmt: skip
        return not isinstance(done, Dropped)

    def align(board: Board) -> Generator[float, None, bool]:
        past.append(board)
        found = yield from find_common(
            chosen, plan, party, board, lambda: own_ids(chosen, plan, party), clock=world.clock
        )
        return not isinstance(found, Dropped)

    answers: dict[str, Answering] = {"exchange": answer, "align": align}
    counted = yield from Attendance(
        chosen, plan, party, session, answers, clock=world.clock, random=world.random
    ).run()  # fmt: skip
    while past:
        clear(chosen, plan, party, past.pop())
    return counted


def session(world: World, plan: Plan, **changed: Actor) -> None:
    world.spawn("coordinator", coordinator(world, plan))
    for one in plan.federation.learners:
        world.spawn(one.name, changed.get(one.name) or attendance(world, plan, one.name))
    world.run()


class Momentum:
    """The optimizer of all weights at once."""

    def __init__(self) -> None:
        self._velocity: dict[str, Array] = {}

    def begin(self, federation: Federation, number: int) -> None:
        """Begins a round; the state stays only if the federation says so."""
        training = federation.training
        self._velocity = self._velocity if training.optimizer == "keep" else {}
        self._rate = training.at(number).learning_rate or RATE

    def moved(self, current: dict[str, Array], gradients: Mapping[str, Array]) -> dict[str, Array]:
        self._velocity = {name: MOMENTUM * self._velocity.get(name, 0) + g for name, g in gradients.items()}
        return {name: (current[name] - self._rate * self._velocity[name]).astype(np.float32) for name in current}


def trained_uncut(federation: Federation, rows: Mapping[str, Held] | None = None) -> dict[str, Array]:
    """Trains the uncut network on the same batches, with gradients of its own."""
    current, rows, optimizer = first_weights(federation), rows or rows_of(federation), Momentum()
    assert federation.split
    y, parties = rows[federation.split.label_party].y, federation.feature_parties
    assert y is not None
    for number in range(1, federation.training.rounds + 1):
        optimizer.begin(federation, number)
        for _, places in Round(federation, number, {}).batches(rows[parties[0]].parts["train"]):
            x = {name: rows[name].x[places] for name in parties}  # type: ignore[index]
            hidden = np.concatenate([x[name] @ current[f"bottom-{name}/kernel"] for name in parties], axis=1)
            error = softmax(hidden @ current["top/kernel"]) - np.eye(CLASSES)[y[places]]
            down = np.split(error @ current["top/kernel"].T / len(places), len(parties), axis=1)
            moved = {"top/kernel": hidden.T @ error / len(places)}
            moved |= {f"bottom-{name}/kernel": x[name].T @ part for name, part in zip(parties, down, strict=True)}
            current = optimizer.moved(current, moved)
    return current


def trained_behind(federation: Federation, steps: int) -> dict[str, Array]:
    """Trains with bottoms that move by gradients which are so many steps old; all of them come before a round ends."""
    current, rows, optimizer = first_weights(federation), rows_of(federation), Momentum()
    assert federation.split
    y, parties = rows[federation.split.label_party].y, federation.feature_parties
    assert y is not None
    for number in range(1, federation.training.rounds + 1):
        optimizer.begin(federation, number)
        batches = [places for _, places in Round(federation, number, {}).batches(rows[parties[0]].parts["train"])]
        hidden: list[list[Array]] = []
        for step, places in enumerate(batches):
            while len(hidden) <= min(step + steps, len(batches) - 1):  # sent before the gradients of `places` came
                later = batches[len(hidden)]
                hidden.append([rows[name].x[later] @ current[f"bottom-{name}/kernel"] for name in parties])  # type: ignore[index]
            joint = np.concatenate(hidden[step], axis=1)
            error = (softmax(joint @ current["top/kernel"]) - np.eye(CLASSES)[y[places]]) / len(places)
            down = np.split(error @ current["top/kernel"].T, len(parties), axis=1)
            moved = {"top/kernel": joint.T @ error}
            for name, part in zip(parties, down, strict=True):
                moved[f"bottom-{name}/kernel"] = rows[name].x[places].T @ part  # type: ignore[index]
            current = optimizer.moved(current, moved)
    return current
