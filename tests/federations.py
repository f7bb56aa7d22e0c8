"""Small federations, plans and learners that need no framework."""

from __future__ import annotations

from typing import Any

import numpy as np

from fedpipe.errors import DroppedError
from fedpipe.federation import Federation
from fedpipe.federation_file import parse_federation
from fedpipe.learner import Arrays, Trained, contribute
from fedpipe.objects import digest_of
from fedpipe.plan import Plan
from fedpipe.rounds import Dropped, Record, Tested, Update
from fedpipe.steps.aggregate import close_round
from fedpipe.steps.initialise import begin
from fedpipe.store import Store


def make_federation(names: tuple[str, ...] = ("a", "b", "c"), **more: Any) -> Federation:
    content = {
        "name": "tiny",
        "learners": [{"name": name} for name in names],
        "training": {"rounds": 3, "batch_size": 1},
        "data": {"uri": "x.npz"},
        **more,
    }
    return parse_federation(content)


def make_plan(federation: Federation | None = None, run: str = "r1") -> Plan:
    return Plan(
        run=run, federation=federation or make_federation(), code=digest_of(b"code"), function="build", shards={}
    )


def fresh() -> Arrays:
    return {"w": np.arange(5, dtype=np.float32), "b": np.zeros((), np.float64), "steps": np.int64(0)}


class PlusOneLearner:
    """Adds its own number to each weight: its effect shows in the mean."""

    def __init__(self, number: float, examples: int = 1, fails: str = "") -> None:
        self._number, self._examples, self._fails = number, examples, fails

    def train(self, weights: Arrays, *, seed: int, seconds: float, optimizer: Arrays | None) -> Trained:
        if self._fails:
            raise DroppedError(self._fails)
        new = {k: (v + self._number).astype(v.dtype) if v.dtype.kind == "f" else v + 1 for k, v in weights.items()}
        kept = {"seen": (optimizer or {"seen": np.float32(0)})["seen"] + np.float32(1)}
        return Trained(new, self._examples, {"loss": float(self._number)}, kept)

    def test(self, weights: Arrays) -> Tested | None:
        return Tested(examples=2, metrics={"loss": float(np.sum(weights["w"]))})


def play_round(store: Store, plan: Plan, number: int, base: str, learners: dict[str, Any]) -> list[Update | Dropped]:
    return [contribute(store, plan, name, number, base, lambda k=k: k) for name, k in learners.items()]


def play(store: Store, plan: Plan, learners: dict[str, Any] | None = None) -> Record:
    """A whole run by the functions that the steps call."""
    chosen = learners or {item.name: PlusOneLearner(k + 1, k + 1) for k, item in enumerate(plan.federation.learners)}
    record = begin(store, plan, fresh)
    for number in range(1, plan.federation.training.rounds + 1):
        play_round(store, plan, number, record.weights, chosen)
        record = close_round(store, plan, number, record.weights)
    return record
