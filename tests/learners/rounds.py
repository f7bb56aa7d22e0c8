"""Rounds of learners in NumPy with uneven shards, by the functions that the steps call."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from fedpipe import weights
from fedpipe.data.examples import Examples
from fedpipe.data.parts import put_shard
from fedpipe.federation.training import Training
from fedpipe.learners.assembly import make_learner, plan_model
from fedpipe.learners.contribute import contribute
from fedpipe.learners.framework import Arrays, seed_of
from fedpipe.learners.numpy import _orders
from fedpipe.rounds.beginning import begin
from fedpipe.rounds.closing import close_round
from fedpipe.rounds.history import history
from fedpipe.rounds.manifests import Record, Update
from fedpipe.rounds.plan import Plan
from fedpipe.store import Store
from fedpipe.store.objects import get_bytes
from tests.federations import make_federation
from tests.learners.contract import X, Y
from tests.models import LINEAR, make_plan

SIZES = {"a": slice(0, 8), "b": slice(8, 20), "c": slice(20, 60)}
"""Shards of 8, 12 and 40 examples: 2, 3 and 10 steps of 4 an epoch."""


def planned(store: Store, run: str = "r1", code: str = LINEAR, **more: Any) -> Plan:
    """A plan whose learners hold the shards of SIZES, as train, vote and test parts."""
    shards = {
        name: put_shard(store, name, {part: Examples(X[s], Y[s]) for part in ("train", "vote", "test")})[1]
        for name, s in SIZES.items()
    }
    training = {"rounds": 3, "batch_size": 4, "learning_rate": 0.25, **more.pop("training", {})}
    chosen = make_federation(tuple(SIZES), framework="numpy", training=training, **more)
    plan = make_plan(store, chosen, code, shards=shards)
    return Plan(**{field: getattr(plan, field) for field in plan.__struct_fields__} | {"run": run})


def began(store: Store, plan: Plan) -> Record:
    return begin(store, plan, lambda: plan_model(store, plan).initial_weights(plan.federation.training.seed))


def trained(store: Store, plan: Plan, name: str, number: int, base: str) -> Update:
    found = contribute(store, plan, name, number, base, partial(make_learner, store, plan, name, number))
    assert isinstance(found, Update), found
    return found


def played(store: Store, plan: Plan, asked: Any = lambda number: tuple(SIZES)) -> list[Record]:
    """Plays a run whose rounds have the learners that `asked` names; the others do not answer."""
    record = began(store, plan)
    for number in range(1, plan.federation.training.rounds + 1):
        for name in asked(number):
            trained(store, plan, name, number, record.weights)
        record = close_round(store, plan, number, record.weights)
    return history(store, plan.run)


def arrays(store: Store, digest: str, owner: str | None = None) -> Arrays:
    return weights.loads(get_bytes(store, digest, owner))


def gradient(w: Arrays, x: np.ndarray, y: np.ndarray) -> Arrays:
    """The gradient of the softmax regression's mean loss, in float64."""
    z = x.astype(np.float64) @ w["kernel"] + w["bias"]
    shares = np.exp(z - z.max(axis=1, keepdims=True))
    error = (shares / shares.sum(axis=1, keepdims=True) - np.eye(3)[y]) / len(y)
    return {"kernel": x.T.astype(np.float64) @ error, "bias": error.sum(axis=0)}


def descended(
    start: Arrays, name: str, training: Training, seed: int, change: Any = lambda _w: {}
) -> tuple[Arrays, int]:
    """Plain gradient descent in the order of the learner's batches, with a change of each gradient; and its steps."""
    x, y = X[SIZES[name]], Y[SIZES[name]]
    w, steps = {k: v.astype(np.float64) for k, v in start.items()}, 0
    for order in _orders(len(y), training, seed):
        for first in range(0, len(order), training.batch_size):
            batch = order[first : first + training.batch_size]
            slopes, added = gradient(w, x[batch], y[batch]), change(w)
            w = {k: w[k] - training.learning_rate * (slopes[k] + added.get(k, 0.0)) for k in w}
            steps += 1
    return w, steps


def seeded(training: Training, name: str, number: int) -> int:
    return seed_of(training.seed, name, number)


def close(found: Arrays, expected: Arrays, within: float = 2e-6) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, atol=within, err_msg=name)
