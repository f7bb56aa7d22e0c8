"""Digits of ten learners: secure sums learn as well as plain averaging, under a simulated clock."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from fedpipe.data.examples import Examples
from fedpipe.data.shards import dealt
from fedpipe.federation.federation import Federation
from fedpipe.federation.file import parse_federation
from fedpipe.identity.signing import KEYS
from fedpipe.learners.framework import Arrays, Model
from fedpipe.learners.learner import ModelLearner
from fedpipe.learners.numpy import cached_model
from fedpipe.rounds.beginning import begin
from fedpipe.rounds.history import history
from fedpipe.rounds.plan import Plan
from fedpipe.store import Store
from fedpipe.store.objects import digest_of, get_bytes
from fedpipe.weights import loads
from tests.federations import make_plan
from tests.sessions.secure import SecureSession
from tests.simulation import World, attendance, coordinator

NAMES = tuple("abcdefghij")
ROUNDS = 30


class Digits:
    """The digits, dealt by a Dirichlet draw of 0.5, and the linear model of `fedpipe init`.

    Args:
        folder: of the federation.
    """

    def __init__(self, folder: Path) -> None:
        self._content = yaml.safe_load((folder / "federation.yaml").read_text())
        self._content["learners"] = [{"name": name} for name in NAMES]
        self._content["training"]["rounds"] = ROUNDS
        self._content["data"]["shards"] = {"by": "dirichlet", "alpha": 0.5, "minimum": 40, "seed": 7}
        code = (folder / "model.py").read_bytes()
        self.model: Model = cached_model(code, digest_of(code), "build")
        self.parts, self._central = dealt(self._federation(), str(folder / "digits.npz"))

    def _federation(self, **algorithm: Any) -> Federation:
        return parse_federation({**self._content, "algorithm": {"name": "averaging", **algorithm}})

    def plan(self, **algorithm: Any) -> Plan:
        plan = make_plan(self._federation(**algorithm))
        sizes = {name: {part: examples.count for part, examples in self.parts[name].items()} for name in NAMES}
        return Plan(**{f: getattr(plan, f) for f in Plan.__struct_fields__} | {"sizes": sizes})

    def initial(self) -> Arrays:
        return self.model.initial_weights(0)

    def learners(self, federation: Federation) -> dict[str, ModelLearner]:
        return {name: ModelLearner(self.model, federation, self.parts[name]) for name in NAMES}

    def accuracy(self, store: Store, plan: Plan) -> float:
        """The accuracy of the last model on the examples that no learner has."""
        last = history(store, plan.run)[-1]
        assert (last.round, last.contributors) == (ROUNDS, NAMES)
        assert isinstance(self._central, Examples)
        found = loads(get_bytes(store, last.weights))
        return self.model.evaluate(found, self._central, plan.federation.training).metrics["accuracy"]


@pytest.fixture
def digits(numpy_digits: Path) -> Digits:
    return Digits(numpy_digits)


def plain(digits: Digits) -> float:
    world, plan = World(), digits.plan()
    begin(world.store, plan, digits.initial)
    world.spawn("coordinator", coordinator(world, plan))
    for name, learner in digits.learners(plan.federation).items():
        world.spawn(name, attendance(world, plan, name, learner))
    world.run()
    return digits.accuracy(world.store, plan)


@pytest.mark.heavy
def test_thirty_rounds_lose_at_most_half_a_point(
    digits: Digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """16 bits, and a bound that follows a quantile: the accuracy of plain averaging."""
    monkeypatch.setenv(KEYS, str(tmp_path / "keys"))
    plan = digits.plan(secure={"bound": {"quantile": 0.999}, "most_clipped": 0.01})
    session = SecureSession(plan, tmp_path / "keys", initial=digits.initial)
    session.learners |= digits.learners(plan.federation)
    session.run()
    ours = digits.accuracy(session.world.store, plan)
    assert ours >= plain(digits) - 0.005
    assert ours > 0.85
