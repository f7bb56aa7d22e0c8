"""Functions for tests in the tff environment, which has no pytest: a worker runs them. Plain numbers go in and out."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np

from fedpipe.data.examples import Examples
from fedpipe.data.parts import load_examples
from fedpipe.data.schema import Schema
from fedpipe.federation.file import parse_federation
from fedpipe.federation.training import Privacy, Training
from fedpipe.learners.keras.private import PrivateModel
from fedpipe.learners.learner import ModelLearner
from fedpipe.rounds.manifests import Scores
from fedpipe.store.objects import digest_of
from fedpipe.weights import loads

PREFIX = "sequential/"
"""Prefix that Keras 3 gives to the names of a sequential model's layers."""


def build(code: str, privacy: dict[str, Any]) -> list[str]:
    """Names of the variables of a private model."""
    model = PrivateModel(code.encode(), digest_of(code.encode()), "build", Privacy(**privacy))
    return sorted(model._variables)


def train(
    code: str, privacy: dict[str, Any], training: dict[str, Any], x: list[Any], y: list[int], weights: dict[str, Any],
    times: int = 1, kept: bool = False,
) -> list[dict[str, Any]]:  # fmt: skip
    """Proposals of a private learner, each from the same weights; with `kept`, each with the optimizer of the last."""
    content = {"name": "p", "learners": [{"name": "a", "privacy": privacy}], "training": {"rounds": 1, **training}}
    federation = parse_federation({**content, "data": {"uri": "x.npz"}, "algorithm": {"name": "collective"}})
    model = PrivateModel(code.encode(), digest_of(code.encode()), "build", Privacy(**privacy))
    parts = {"train": Examples(np.array(x, np.float32), np.array(y))}
    learner = ModelLearner(model, federation, parts, privacy=federation.privacy_of("a"))
    learner.accept_weights({k: np.array(v, np.float32) for k, v in weights.items()}, Scores())
    logged: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: logged.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("fedpipe").addHandler(handler)
    found: list[dict[str, Any]] = []
    state = None
    for _ in range(times):
        made = learner.propose_weights(seed=1, seconds=60, optimizer=state)
        state = made.optimizer if kept else None
        assert made.event is not None
        assert learner.planned == made.event
        found.append(
            {
                "weights": {k: v.tolist() for k, v in made.weights.items()},
                "event": [made.event.steps, made.event.passes, made.event.examples],
                "metrics": dict(made.metrics),
                "logged": list(logged),
                "steps": int(model.keras.optimizer.iterations.numpy()),
                "current": {k: v.tolist() for k, v in learner.current_model().items()},  # type: ignore[union-attr]
            }
        )
    return found


def predict(code: str, privacy: dict[str, Any], schema: Schema, examples: bytes, given: bytes) -> list[float]:
    """The first output of a private model of a table, for each example, after a step has been trained."""
    model = PrivateModel(code.encode(), digest_of(code.encode()), "build", Privacy(**privacy), schema)
    held, start = load_examples(examples), dict(loads(given))
    step = Training(rounds=1, batch_size=held.count, local_steps=1, local_epochs=0)
    fitted = model.train(start, held, step, seed=0, seconds=60, optimizer=None)
    assert all((fitted.weights[name] != value).any() for name, value in start.items())
    found: list[float] = model.predictor(start)(held.x)[0][:, 0].tolist()
    return found


def score(code: str, privacy: dict[str, Any], x: list[Any], y: list[int], weights: dict[str, Any]) -> dict[str, Any]:
    """Scores of weights on a vote part, as a private learner publishes them, by the accuracy."""
    content = {"name": "p", "learners": [{"name": "a", "privacy": privacy}], "training": {"rounds": 1, "batch_size": 8}}
    vote = {"name": "collective", "vote": {"criterion": "accuracy", "minimise": False}}
    federation = parse_federation({**content, "data": {"uri": "x.npz"}, "algorithm": vote})
    model = PrivateModel(code.encode(), digest_of(code.encode()), "build", Privacy(**privacy))
    learner = ModelLearner(model, federation, {"vote": Examples(np.array(x, np.float32), np.array(y))})
    scores = learner.accept_weights({k: np.array(v, np.float32) for k, v in weights.items()})
    assert scores.vote is not None
    return dict(scores.vote.metrics)


def train_large(code: str, privacy: dict[str, Any], training: dict[str, Any], *rest: Any) -> dict[str, Any]:
    """As `train`, with every train part taken for a large one; and whether TensorFlow has a seed then."""
    from tensorflow.python.eager import context

    from fedpipe.learners.keras import loop as keras_loop

    kept, keras_loop.LARGE = keras_loop.LARGE, 0
    try:
        (found,) = train(code, privacy, training, *rest)
    finally:
        keras_loop.LARGE = kept
    return {"steps": found["steps"], "event": found["event"], "seeded": context.global_seed() is not None}
