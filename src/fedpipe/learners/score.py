"""Evaluate the final model: each learner's sums, and the metrics of all together."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fedpipe.data.disclosure import names_of_classes
from fedpipe.data.examples import first_labels
from fedpipe.learners.assembly import plan_model
from fedpipe.learners.contribute import fetched
from fedpipe.learners.framework import Arrays, Model, Predict
from fedpipe.learners.parts import Part, batches_of, label_shape_of, size_of
from fedpipe.learners.reading import central_test, learner_parts
from fedpipe.rounds.evaluation import Evaluation, Matrix, Measured, Score, add_matrices
from fedpipe.rounds.plan import Plan
from fedpipe.store import Store
from fedpipe.weights import Array


def score_learner(store: Store, plan: Plan, name: str, digest: str) -> Score:
    """Test weights on a learner's test part.

    Args:
        store: the federation's store.
        plan: the run's plan.
        name: the learner.
        digest: of the weights.

    Raises:
        DataError, ModelError, CorruptError: the reason why the weights cannot be tested.
    """
    model = plan_model(store, plan)
    part = learner_parts(store, plan, name, model.module).get("test")
    if part is None or not size_of(part):
        return Score(learner=name, weights=digest, why="the test part is empty")
    return _score(model, plan, fetch_global(store, digest), name, digest, part)


def _score(model: Model, plan: Plan, arrays: Arrays, name: str, digest: str, part: Part) -> Score:
    training = plan.federation.training
    measured = model.evaluate(arrays, part, training)
    return Score(
        learner=name,
        weights=digest,
        examples=size_of(part),
        metrics=measured.metrics,
        states=measured.states,
        confusion=_confusion(model.predictor(arrays), part, training.batch_size),
        label_shape=label_shape_of(part),
    )


def fetch_global(store: Store, digest: str) -> Arrays:
    """Fetch global weights from the store, verified."""
    with tempfile.TemporaryDirectory() as folder:
        return fetched(store, digest, Path(folder) / "weights")


def _confusion(predict: Predict, part: Part, batch: int) -> Matrix:
    """Count examples by their class and the predicted class; empty when the model is not a classifier."""
    matrix = np.zeros((0, 0), np.int64)
    for examples in batches_of(part, batch):
        outputs = predict(examples.x)
        if len(outputs) != 1 or outputs[0].ndim != 2:
            return ()
        classes = max(2, outputs[0].shape[1])
        if not matrix.size:
            matrix = np.zeros((classes, classes), np.int64)
        true, taken = _classes(first_labels(examples.y)), _classes(outputs[0])
        if true is None or taken is None or true.min() < 0 or true.max() >= classes:
            return ()
        np.add.at(matrix, (true, taken), 1)
    return tuple(tuple(int(count) for count in row) for row in matrix)


def _classes(values: Array) -> Array | None:
    """Return class numbers from labels, one-hot rows, probabilities or a sigmoid; None for other values."""
    if values.ndim == 2 and values.shape[1] > 1:
        return np.asarray(np.argmax(values, axis=1))
    column = values.reshape(len(values), -1)[:, 0]
    if column.dtype.kind == "f" and not np.array_equal(column, np.floor(column)):
        return (column > 0.5).astype(np.int64) if column.min() >= 0 and column.max() <= 1 else None
    return column.astype(np.int64)


def evaluate(store: Store, plan: Plan, digest: str, scores: Sequence[Score]) -> Evaluation:
    """Evaluate the final model.

    Federated metrics come from the learners' metric states: sums first, then divided.

    Args:
        store: the federation's store.
        plan: the run's plan.
        digest: of the weights.
        scores: the learners' scores of these weights.
    """
    model = plan_model(store, plan)
    central: Measured | None = None
    confusion: Matrix = ()
    if plan.test is not None:
        examples = central_test(store, plan)
        assert examples is not None
        score = _score(model, plan, fetch_global(store, digest), "", digest, examples)
        central, confusion = Measured(examples=score.examples, metrics=score.metrics), score.confusion
    names = names_of_classes(store, plan)
    valid = sorted((s for s in scores if not s.why and s.weights == digest), key=lambda s: s.learner)
    confusion = confusion or add_matrices([s.confusion for s in valid])
    return Evaluation(
        weights=digest,
        central=central,
        federated=_federated(model, valid) if valid else None,
        learners={s.learner: Measured(examples=s.examples, metrics=s.metrics) for s in valid},
        left_out={s.learner: s.why or "the score belongs to other weights" for s in scores if s not in valid},
        confusion=confusion,
        classes=names if len(names) == len(confusion) else tuple(str(k) for k in range(len(confusion))),
    )


def _federated(model: Model, scores: Sequence[Score]) -> Measured:
    states = [np.sum(state, axis=0) for state in zip(*(s.states for s in scores), strict=True)]
    metrics = model.metrics_of(states, scores[0].label_shape)
    return Measured(examples=sum(s.examples for s in scores), metrics=metrics)
