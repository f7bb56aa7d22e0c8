"""Small federations, plans and learners that need no framework."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from fedpipe.errors import DroppedError
from fedpipe.federation.algorithms import Vote
from fedpipe.federation.federation import Federation
from fedpipe.federation.file import parse_federation
from fedpipe.learners.contribute import contribute
from fedpipe.learners.learner import Arrays, Trained, Verdict
from fedpipe.learners.vote import vote
from fedpipe.rounds.accounting import TrainingEvent
from fedpipe.rounds.beginning import begin
from fedpipe.rounds.closing import close_round
from fedpipe.rounds.manifests import Dropped, Record, Scores, Tested, Update
from fedpipe.rounds.plan import Plan
from fedpipe.rounds.voting import approves, proposer_of
from fedpipe.sessions.scripts import tally_round
from fedpipe.store import Store
from fedpipe.store.objects import digest_of
from fedpipe.weights import dumps


def make_federation(names: tuple[str, ...] = ("a", "b", "c"), **more: Any) -> Federation:
    content = {
        "name": "tiny",
        "learners": [{"name": name} for name in names],
        "training": {"rounds": 3, "batch_size": 1},
        "data": {"uri": "x.npz"},
        **more,
    }
    return parse_federation(content)


def change(folder: Path, **changes: str) -> Path:
    """Replaces text of a folder's federation.yaml, which must be there."""
    path = folder / "federation.yaml"
    text = path.read_text()
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    path.write_text(text)
    return path


def make_plan(federation: Federation | None = None, run: str = "r1") -> Plan:
    return Plan(
        run=run, federation=federation or make_federation(), code=digest_of(b"code"), function="build", shards={}
    )


def fresh() -> Arrays:
    return {"w": np.arange(5, dtype=np.float32), "b": np.zeros((), np.float64), "steps": np.int64(0)}


class PlusOneLearner:
    """Adds its own number to each weight, and likes weights whose sum is near what it wants: its effect shows.

    Args:
        number: what a proposal adds.
        examples: of its train part.
        fails: why it drops out of every training.
        wants: the sum of `w` at which its loss is 0.
        absent: why it never scores anything.
        event: what a proposal of it spends.
    """

    def __init__(
        self,
        number: float,
        examples: int = 1,
        fails: str = "",
        wants: float = 0.0,
        absent: str = "",
        event: TrainingEvent | None = None,
    ) -> None:
        self._number, self._examples, self._fails = number, examples, fails
        self._wants, self._absent, self.planned = wants, absent, event
        self._current: Arrays = {}
        self._scores = Scores()
        self.trained = self.tested = 0

    def accept_weights(self, weights: Arrays, scores: Scores | None = None) -> Scores:
        self._scores = self._score(weights) if scores is None else scores
        self._current = weights
        return self._scores

    def propose_weights(self, *, seed: int, seconds: float, optimizer: Arrays | None) -> Trained:
        if self._fails:
            raise DroppedError(self._fails)
        self.trained += 1
        new = {
            k: (v + self._number).astype(v.dtype) if v.dtype.kind == "f" else v + 1 for k, v in self._current.items()
        }
        kept = {"seen": (optimizer or {"seen": np.float32(0)})["seen"] + np.float32(1)}
        return Trained(new, self._examples, {"loss": float(self._number)}, kept, self.planned)

    def test_weights(self, weights: Arrays) -> Verdict:
        scores = self._score(weights)
        return Verdict(scores, approves(Vote(), self._scores, scores))

    def current_model(self, form: str = "weights") -> Arrays | bytes:
        return self._current if form == "weights" else dumps(self._current)

    def _score(self, weights: Arrays) -> Scores:
        if self._absent:
            raise DroppedError(self._absent)
        self.tested += 1
        found = Tested(examples=2, metrics={"loss": abs(self._wants - float(np.sum(weights["w"])))})
        return Scores(vote=found, test=found)


def play_round(store: Store, plan: Plan, number: int, base: str, learners: dict[str, Any]) -> list[Update | Dropped]:
    return [contribute(store, plan, name, number, base, lambda k=k: k) for name, k in learners.items()]


def play_vote(store: Store, plan: Plan, number: int, base: str, learners: dict[str, Any]) -> Record:
    """A round of collective learning by the functions that the steps call."""
    proposer = proposer_of(plan.federation.proposers, number)
    offered = contribute(store, plan, proposer, number, base, lambda: learners[proposer])
    if isinstance(offered, Update):
        for name, learner in learners.items():
            vote(store, plan, name, number, base, offered.weights, proposer, lambda k=learner: k)
    return close_vote(store, plan, number, base)


def close_vote(store: Store, plan: Plan, number: int, base: str) -> Record:
    """Does the work of the tally step."""
    return tally_round(store, plan, number, base)


def play_collective(store: Store, plan: Plan, learners: dict[str, Any]) -> Record:
    """A whole run of collective learning."""
    record = begin(store, plan, fresh)
    for name, learner in learners.items():
        vote(store, plan, name, 0, record.weights, record.weights, "", lambda k=learner: k)
    for number in range(1, plan.federation.training.rounds + 1):
        record = play_vote(store, plan, number, record.weights, learners)
    return record


def play(store: Store, plan: Plan, learners: dict[str, Any] | None = None) -> Record:
    """A whole run by the functions that the steps call."""
    chosen = learners or {item.name: PlusOneLearner(k + 1, k + 1) for k, item in enumerate(plan.federation.learners)}
    record = begin(store, plan, fresh)
    for number in range(1, plan.federation.training.rounds + 1):
        play_round(store, plan, number, record.weights, chosen)
        record = close_round(store, plan, number, record.weights)
    return record
