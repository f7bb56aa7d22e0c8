"""Evaluation with Keras: a learner's sums, and what they make together."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fedpipe import weights
from fedpipe.data.examples import Examples
from fedpipe.data.parts import get_parts
from fedpipe.learners.keras.learner import KerasLearner, learner_parts, plan_model
from fedpipe.learners.keras.model import KerasModel
from fedpipe.rounds.evaluation import Evaluation, Matrix, Measured, Score, add_matrices
from fedpipe.rounds.plan import Plan
from fedpipe.store import Store
from fedpipe.store.objects import fetch_file

Array = npt.NDArray[Any]


def score_learner(store: Store, plan: Plan, name: str, digest: str) -> Score:
    """Tests weights on a learner's test part.

    Raises:
        DataError, ModelError, CorruptError: why it cannot.
    """
    model = plan_model(store, plan)
    parts = learner_parts(store, plan, name, model.module)
    part = parts.get("test")
    count = 0 if part is None else len(part.y) if isinstance(part, Examples) else int(part.cardinality().numpy())
    if not count:
        return Score(learner=name, weights=digest, why="the test part is empty")
    return _score(model, plan, fetch_global(store, digest), name, digest, part, count)


def _score(
    model: KerasModel, plan: Plan, arrays: dict[str, Array], name: str, digest: str, part: Any, count: int
) -> Score:
    metrics = KerasLearner(model, plan.federation, {"test": part}).evaluate(arrays, "test")
    return Score(
        learner=name,
        weights=digest,
        examples=count,
        metrics={k: float(v) for k, v in metrics.items()},
        states=tuple(tuple(np.asarray(v, np.float64).reshape(-1).tolist()) for v in _states(model)),
        confusion=_confusion(model, part, plan.federation.training.batch_size),
        label_shape=part.y.shape[1:] if isinstance(part, Examples) else tuple(part.element_spec[1].shape),
    )


def _states(model: KerasModel) -> list[Any]:
    return [variable for metric in model.keras.metrics for variable in metric.variables]


def fetch_global(store: Store, digest: str) -> dict[str, Array]:
    """Global weights from the store, verified."""
    with tempfile.TemporaryDirectory() as folder:
        fetch_file(store, digest, Path(folder) / "weights")
        return weights.load(Path(folder) / "weights")


def _confusion(model: KerasModel, part: Any, batch: int) -> Matrix:
    """Counts of true class by predicted class; empty when the model is no classifier."""
    shape = model.keras.output_shape
    if not isinstance(shape, tuple) or len(shape) != 2:
        return ()
    classes = max(2, shape[-1])
    matrix = np.zeros((classes, classes), np.int64)
    for x, y in _batches(part, batch):
        true, taken = _classes(y), _classes(np.asarray(model.keras.predict_on_batch(x)))
        if true is None or taken is None or true.min() < 0 or true.max() >= classes:
            return ()
        np.add.at(matrix, (true, taken), 1)
    return tuple(tuple(int(c) for c in row) for row in matrix)


def _batches(part: Any, size: int) -> Any:
    if not isinstance(part, Examples):
        return part.batch(size).as_numpy_iterator()
    return ((part.x[i : i + size], part.y[i : i + size]) for i in range(0, len(part.y), size))


def _classes(values: Array) -> Array | None:
    """Class numbers from labels, one-hot rows, probabilities or one sigmoid; None when these are no classes."""
    if values.ndim == 2 and values.shape[1] > 1:
        return np.asarray(np.argmax(values, axis=1))
    column = values.reshape(len(values), -1)[:, 0]
    if column.dtype.kind == "f" and not np.array_equal(column, np.floor(column)):
        return (column > 0.5).astype(np.int64) if column.min() >= 0 and column.max() <= 1 else None
    return column.astype(np.int64)


def evaluate(store: Store, plan: Plan, digest: str, scores: Sequence[Score]) -> Evaluation:
    """The evaluation of the final model.

    Federated metrics come from the sums of the learners' metric states: first added, then divided.

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
        examples = get_parts(store, plan.test)["test"]
        score = _score(model, plan, fetch_global(store, digest), "", digest, examples, len(examples.y))
        central, confusion = Measured(examples=score.examples, metrics=score.metrics), score.confusion
    valid = sorted((s for s in scores if not s.why and s.weights == digest), key=lambda s: s.learner)
    confusion = confusion or add_matrices([s.confusion for s in valid])
    return Evaluation(
        weights=digest,
        central=central,
        federated=_federated(model, valid) if valid else None,
        learners={s.learner: Measured(examples=s.examples, metrics=s.metrics) for s in valid},
        left_out={s.learner: s.why or "the score is of other weights" for s in scores if s not in valid},
        confusion=confusion,
        classes=tuple(str(k) for k in range(len(confusion))),
    )


def _federated(model: KerasModel, scores: list[Score]) -> Measured:
    if len(_states(model)) != len(scores[0].states):  # Keras makes metric variables at their first use
        shape = [size or 1 for size in model.keras.input_shape[1:]]
        model.keras.evaluate(np.zeros((1, *shape)), np.zeros((1, *scores[0].label_shape)), verbose=0)
    for position, variable in enumerate(_states(model)):
        total = np.sum([s.states[position] for s in scores], axis=0)
        variable.assign(total.reshape(variable.shape).astype(variable.dtype))
    metrics = {k: float(v) for k, v in model.keras.get_metrics_result().items()}
    return Measured(examples=sum(s.examples for s in scores), metrics=metrics)
