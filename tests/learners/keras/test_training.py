"""Training and measuring with Keras: what the contract of all frameworks does not say."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fedpipe import weights
from fedpipe.data.examples import Examples
from fedpipe.data.parts import put_shard
from fedpipe.errors import DroppedError, ModelError
from fedpipe.federation.training import Training
from fedpipe.learners.assembly import plan_model
from fedpipe.learners.framework import Arrays, Fitted
from fedpipe.learners.keras.model import KerasModel
from fedpipe.learners.score import evaluate, score_learner
from fedpipe.store import MemoryStore
from fedpipe.store.objects import digest_of, put_bytes
from tests.federations import make_federation
from tests.learners.contract import PART, GradientContract, X, Y
from tests.models import DENSE, RICH, make_plan


def built(code: str = DENSE) -> KerasModel:
    return KerasModel(code.encode(), digest_of(code.encode()), "build")


class TestContract(GradientContract):
    framework = "keras"
    plain = DENSE
    code = DENSE.replace("SGD(0.5)", "SGD(0.5, momentum=0.9)")
    squared = DENSE.replace('"sparse_categorical_crossentropy", metrics=["accuracy"]', '"mse"').replace(
        'Dense(3, activation="softmax")', "Dense(1)"
    )

    def another(self) -> KerasModel:
        return built(self.code)


def train(model: KerasModel, start: Arrays, part: Any = PART, **training: Any) -> Fitted:
    wanted = Training(**{"rounds": 1, "batch_size": 8, **training})
    return model.train(start, part, wanted, seed=1, seconds=60.0, optimizer=None)


def test_one_step_against_the_formula() -> None:
    """Softmax regression, one batch: w - rate * gradient, computed with NumPy."""
    model = built()
    start = model.initial_weights(0)
    found = train(model, start, Examples(X[:8], Y[:8]), local_steps=1)
    kernel, bias = start["sequential/dense/kernel"], start["sequential/dense/bias"]
    scores = X[:8] @ kernel + bias
    soft = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    error = (soft - np.eye(3)[Y[:8]]) / 8
    np.testing.assert_allclose(found.weights["sequential/dense/kernel"], kernel - 0.5 * X[:8].T @ error, atol=1e-6)
    np.testing.assert_allclose(found.weights["sequential/dense/bias"], bias - 0.5 * error.sum(axis=0), atol=1e-6)


def test_class_weights_and_callbacks_reach_keras() -> None:
    model = built()
    start = model.initial_weights(0)
    plain = train(model, start)
    weighted = train(model, start, fit={"class_weight": {"0": 10.0, "1": 1.0, "2": 1.0}})
    assert weights.digest_of(plain.weights) != weights.digest_of(weighted.weights)
    numbers = train(model, start, fit={"class_weight": {0: 10.0, 1: 1.0, 2: 1.0}})
    assert weights.digest_of(numbers.weights) == weights.digest_of(weighted.weights)
    one = train(model, start, fit={"class_weight": {0: 10.0}})  # the other labels weigh 1
    assert weights.digest_of(one.weights) == weights.digest_of(weighted.weights)
    nothing = train(model, start, fit={"class_weight": {0: 0.0, 1: 0.0, 2: 0.0}})
    assert weights.digest_of(nothing.weights) == weights.digest_of(start)
    stopping = {"EarlyStopping": {"monitor": "loss", "min_delta": 100.0, "patience": 0}}
    assert train(model, start, local_epochs=50, callbacks=stopping).steps == 16  # two epochs of eight batches


def test_data_that_keras_refuses() -> None:
    model = built()
    with pytest.raises(ModelError, match=r"the features have shape \(3,\), but the model takes \(4,\)"):
        train(model, model.initial_weights(0), Examples(X[:40, :3], Y[:40]))
    with pytest.raises(DroppedError, match="training failed: "):
        train(model, model.initial_weights(0), Examples(X[:40], X[:40]))


def test_federated_metrics_of_a_curve_are_those_of_all_data_together(store: MemoryStore) -> None:
    """Sums first, then divided: exact even for an AUC over uneven learners, and a matrix for a single sigmoid."""
    labels = (X[:, 0] > 0).astype(np.float32)
    sizes = {"a": slice(0, 7), "b": slice(7, 60)}
    shards = {
        k: put_shard(store, k, {"train": Examples(X, labels), "test": Examples(X[s], labels[s])})[1]
        for k, s in sizes.items()
    }
    chosen = make_federation(("a", "b"), training={"rounds": 1, "batch_size": 8})
    plan = make_plan(store, chosen, RICH, shards=shards)
    model = plan_model(store, plan)
    start = model.initial_weights(0)
    digest = put_bytes(store, weights.dumps(start))
    scores = [score_learner(store, plan, name, digest) for name in sizes]
    found = evaluate(store, plan, digest, scores)
    assert found.federated is not None
    expected = model.evaluate(start, Examples(X, labels), plan.federation.training).metrics
    assert found.federated.metrics == pytest.approx(expected, rel=1e-5)
    mean_of_means = np.mean([s.metrics["auc"] for s in scores])
    assert found.federated.metrics["auc"] != pytest.approx(mean_of_means, rel=1e-3)
    assert sum(sum(row) for row in found.confusion) == 60
