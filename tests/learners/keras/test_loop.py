"""The loop inside TensorFlow gives the same bytes as Keras's `fit` and `evaluate`, and counts and ends as they do."""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import numpy as np
import pytest

from fedpipe import weights
from fedpipe.data.examples import Examples
from fedpipe.errors import DroppedError
from fedpipe.federation.training import Training
from fedpipe.frameworks import frameworks
from fedpipe.learners.framework import Correction
from fedpipe.learners.keras.gradients import PLAIN, Gradients
from fedpipe.learners.keras.loop import shuffled
from fedpipe.learners.keras.model import KerasModel
from fedpipe.store.objects import digest_of
from tests.models import DENSE

DRAWS = np.random.default_rng(0)
COUNT = 53
"""No multiple of a batch, so that the last batch of an epoch is smaller."""

PICTURES = """
import keras
L = keras.layers

def build():
    model = keras.Sequential([
        keras.Input((6, 6, 1)), L.Conv2D(4, 3, padding="same", activation="relu"), L.BatchNormalization(),
        L.MaxPooling2D(), L.Flatten(), L.Dropout(0.25), L.Dense(1, activation="sigmoid"),
    ])
    model.compile(keras.optimizers.Adam(2e-3), "binary_crossentropy", metrics=["accuracy", keras.metrics.AUC()])
    return model
"""
SENTENCES = """
import keras
L = keras.layers

def build():
    model = keras.Sequential([
        keras.Input((5,), dtype="int32"), L.Embedding(9, 4, mask_zero=True), L.LSTM(6, dropout=0.2), L.Dense(3),
    ])
    rate = keras.optimizers.schedules.ExponentialDecay(0.01, 3, 0.9)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(rate, momentum=0.9), loss, metrics=["accuracy"])
    return model
"""
SEVERAL = """
import keras
L = keras.layers

def build():
    a, b = keras.Input((3,), name="a"), keras.Input((2,), name="b")
    h = L.Concatenate()([L.Dense(5, activation="gelu", kernel_regularizer="l2")(a), L.GaussianNoise(0.1)(b)])
    model = keras.Model({"a": a, "b": b}, {"c": L.Dense(3, activation="softmax", name="c")(h), "d": L.Dense(1, name="d")(h)})
    model.compile(
        "rmsprop", {"c": "sparse_categorical_crossentropy", "d": "huber"},
        metrics={"c": ["accuracy"], "d": ["mae"]},
    )
    return model
"""
NORMALISED = """
import keras
L = keras.layers

def build():
    model = keras.Sequential([
        keras.Input((4,)), L.BatchNormalization(), L.Dropout(0.3), L.AlphaDropout(0.1), L.GaussianDropout(0.1), L.Dense(5),
        L.BatchNormalization(momentum=0.5), L.Dense(1, activation="sigmoid"),
    ])
    model.compile("adam", "binary_crossentropy", metrics=["AUC", "Precision", "Recall"])
    return model
"""
AVERAGED = """
import keras

def build():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, activation="softmax")])
    optimizer = keras.optimizers.SGD(0.05, momentum=0.9, use_ema=True, ema_momentum=0.9, ema_overwrite_frequency=EVERY)
    model.compile(optimizer, "sparse_categorical_crossentropy")
    return model
"""


def numbers(*shape: int) -> np.ndarray:
    return DRAWS.normal(size=(COUNT, *shape)).astype(np.float32)


def classes(most: int, *shape: int) -> np.ndarray:
    return DRAWS.integers(0, most, (COUNT, *shape))


class Case(NamedTuple):
    code: str
    part: Examples
    training: dict[str, Any]
    gradients: Gradients = PLAIN


CASES = {
    "pictures": Case(PICTURES, Examples(numbers(6, 6, 1), classes(2)), {"local_epochs": 3}),
    "sentences, steps": Case(SENTENCES, Examples(classes(9, 5), classes(3)), {"local_steps": 11}),
    "several ports": Case(
        SEVERAL, Examples({"a": numbers(3), "b": numbers(2)}, {"c": classes(3), "d": numbers()}), {"local_epochs": 2}
    ),
    "weights of examples": Case(
        DENSE, Examples(numbers(4), classes(3), np.abs(numbers())), {"local_epochs": 2, "learning_rate": 0.1}
    ),
    "moving averages": Case(AVERAGED.replace("EVERY", "None"), Examples(numbers(4), classes(3)), {"local_epochs": 2}),
    "moving averages, often": Case(
        AVERAGED.replace("EVERY", "5"), Examples(numbers(4), classes(3)), {"local_epochs": 2}
    ),
    "corrected and normalised": Case(
        NORMALISED,
        Examples(numbers(4), classes(2, 1).astype(np.float32)),
        {"local_epochs": 2},
        Gradients(corrected=True),
    ),
    "corrected and accumulated": Case(
        DENSE, Examples(numbers(4), classes(3)), {"local_epochs": 2, "accumulate": 2}, Gradients(1.0, 2, True)
    ),
}


def built(case: Case) -> KerasModel:
    return KerasModel(case.code.encode(), digest_of(case.code.encode()), "build", gradients=case.gradients)


@pytest.mark.parametrize("name", CASES)
def test_the_same_bytes_as_keras(name: str) -> None:
    case = CASES[name]
    looped, plain = built(case), built(case)
    assert looped._loop is not None
    plain._loop = None
    start, settings = looped.initial_weights(0), Training(rounds=1, batch_size=8, optimizer="keep", **case.training)
    correction = None
    if case.gradients.corrected:
        correction = Correction(0.3, start, {name: np.ones_like(start[name]) for name in looped.trainable})
    for seed in range(2):  # the second training follows an evaluation, and works with what the first one traced
        found, expected = (
            model.train(start, case.part, settings, seed=seed, seconds=60.0, optimizer=None, correction=correction)
            for model in (looped, plain)
        )
        assert weights.dumps(found.weights) == weights.dumps(expected.weights)
        assert weights.dumps(found.optimizer or {}) == weights.dumps(expected.optimizer or {})
        assert (found.steps, found.epochs) == (expected.steps, expected.epochs)
        for batches in (0, 3):
            measured, reference = (m.evaluate(found.weights, case.part, settings, batches) for m in (looped, plain))
            assert measured == reference
    assert len(looped._loop._traced) == 2, "the model is traced once for training, and once for tests"


@pytest.mark.parametrize("name", ["pictures", "sentences, steps", "several ports"])
def test_a_model_that_was_prepared_gives_the_same_bytes(name: str) -> None:
    """Its loops have run on no examples: they have changed no variable, and drawn no number."""
    case = CASES[name]
    prepared, other = built(case), built(case)
    settings = Training(rounds=1, batch_size=8, optimizer="keep", **case.training)
    prepared.prepare({"train": case.part, "test": case.part}, settings)
    assert prepared._loop is not None
    assert len(prepared._loop._traced) == 2
    start = prepared.initial_weights(0)
    found, expected = (
        model.train(start, case.part, settings, seed=3, seconds=60.0, optimizer=None) for model in (prepared, other)
    )
    assert weights.dumps(found.weights) == weights.dumps(expected.weights)
    assert weights.dumps(found.optimizer or {}) == weights.dumps(expected.optimizer or {})
    assert prepared.evaluate(start, case.part, settings) == other.evaluate(start, case.part, settings)
    assert len(prepared._loop._traced) == 2, "a concrete function is traced once"


def test_every_size_of_a_part_shares_a_trace() -> None:
    model = built(CASES["weights of examples"])
    assert model._loop is not None
    for count in (8, 9, 31):
        part = CASES["weights of examples"].part.rows(slice(count))
        model.train(
            model.initial_weights(0), part, Training(rounds=1, batch_size=8), seed=0, seconds=60.0, optimizer=None
        )
    assert len(model._loop._traced) == 1


@pytest.mark.parametrize(("seed", "own"), [(0, 0), (0, 5), (7, 0), (7, 2**31 - 2)])
def test_the_order_is_that_of_a_shuffled_dataset(seed: int, own: int) -> None:
    tensorflow, _ = frameworks()
    tensorflow.random.set_seed(seed)
    dataset = tensorflow.data.Dataset.range(COUNT).shuffle(COUNT, seed=own).batch(8).repeat(3)
    expected = np.concatenate(list(dataset.as_numpy_iterator()))
    assert shuffled(tensorflow)(seed, own, COUNT, 3 * COUNT).numpy().tolist() == expected.tolist()


def test_the_seed_of_another_model_changes_nothing() -> None:
    case = CASES["weights of examples"]
    model, settings = built(case), Training(rounds=1, batch_size=8)
    start = model.initial_weights(0)
    first = model.train(start, case.part, settings, seed=1, seconds=60.0, optimizer=None)
    frameworks()[0].random.set_seed(99)  # as a model does that draws by itself
    again = model.train(start, case.part, settings, seed=1, seconds=60.0, optimizer=None)
    assert weights.dumps(first.weights) == weights.dumps(again.weights)


def test_a_late_training_ends_between_two_calls() -> None:
    case = CASES["weights of examples"]
    model, started = built(case), time.monotonic()
    endless = Training(rounds=1, batch_size=1, local_epochs=10_000)
    with pytest.raises(DroppedError, match="late: training took longer than the deadline"):
        model.train(model.initial_weights(0), case.part, endless, seed=0, seconds=0.5, optimizer=None)
    assert time.monotonic() - started < 30


def test_a_loss_that_is_not_finite_drops_the_learner() -> None:
    case = CASES["weights of examples"]
    model, settings = built(case), Training(rounds=1, batch_size=8, local_epochs=3, learning_rate=1e38)
    with pytest.raises(DroppedError, match=r"the loss is .* in epoch \d: lower the learning rate"):
        model.train(model.initial_weights(0), case.part, settings, seed=0, seconds=60.0, optimizer=None)
