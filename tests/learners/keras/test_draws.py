"""Models that draw random numbers in ways of their own give the same bytes, whatever their process did before."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from fedpipe import weights
from fedpipe.data.examples import Examples
from fedpipe.federation.training import Training
from fedpipe.learners.framework import Measurement
from fedpipe.learners.keras.draws import is_stock
from fedpipe.learners.keras.model import KerasModel
from fedpipe.learners.parts import label_shape_of
from fedpipe.store.objects import digest_of

DRAWS = np.random.default_rng(0)
PART = Examples(DRAWS.normal(size=(21, 4)).astype(np.float32), DRAWS.integers(0, 3, 21))
SETTINGS = Training(rounds=1, batch_size=8, local_epochs=2)
FILE = """
import keras, tensorflow as tf

def noisy(x):
    return x + NOISE

class Noise(keras.layers.Layer):
    def call(self, x):
        return noisy(x)

class Optimizer(keras.optimizers.SGD):
    def update_step(self, gradient, variable, rate):
        super().update_step(noisy(gradient), variable, rate)

def penalty(kernel):
    return tf.reduce_mean(kernel * noisy(kernel))

def build():
    model = keras.Sequential([keras.Input((4,)), FIRST, keras.layers.Dense(3, activation="softmax")])
    model.compile(OPTIMIZER, "sparse_categorical_crossentropy", metrics=[METRIC], run_eagerly=EAGER)
    return model
"""
PLAIN = {"FIRST": "keras.layers.Dense(4)", "OPTIMIZER": "'sgd'", "METRIC": "'accuracy'", "EAGER": "False"}
PLACES = {
    "layer": {"FIRST": "Noise()"},
    "activation": {"FIRST": "keras.layers.Dense(4, activation=noisy)"},
    "regulariser": {"FIRST": "keras.layers.Dense(4, kernel_regularizer=penalty)"},
    "optimizer": {"OPTIMIZER": "Optimizer(0.1)"},
    "metric": {"METRIC": "keras.metrics.MeanMetricWrapper(lambda y, p: tf.reduce_mean(noisy(p), -1))"},
}
NOISES = {"TensorFlow": "tf.random.normal(tf.shape(x))", "Keras": "keras.random.normal(keras.ops.shape(x))"}


def built(noise: str, place: dict[str, str]) -> KerasModel:
    text = FILE.replace("NOISE", noise)
    for name, value in (PLAIN | place).items():
        text = text.replace(name, value)
    return KerasModel(text.encode(), digest_of(text.encode()), "build")


def measured(model: KerasModel, part: Examples = PART) -> Measurement:
    return model.evaluate(model.initial_weights(0), part, SETTINGS)


def trained(model: KerasModel, seed: int) -> tuple[bytes, object]:
    start = model.initial_weights(0)
    found = model.train(start, PART, SETTINGS, seed=seed, seconds=60.0, optimizer=None)
    return weights.dumps(found.weights), found.epochs


@pytest.mark.parametrize(("place", "noise"), [*((place, "TensorFlow") for place in PLACES), ("layer", "Keras")])
def test_the_same_numbers_whatever_was_trained_before(place: str, noise: str) -> None:
    first, other = built(NOISES[noise], PLACES[place]), built(NOISES[noise], PLACES[place])
    assert not is_stock(first.keras, keras)
    expected = trained(first, 1)
    tested = measured(first)
    assert trained(other, 2) != expected, "learners and rounds draw other numbers"
    for _ in range(2):
        assert trained(other, 1) == expected
        assert measured(other) == tested


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("before", ["check_examples", "metrics_of"])
def test_the_same_measurement_whatever_was_tried_before(noise: str, before: str) -> None:
    first, other = built(NOISES[noise], PLACES["metric"]), built(NOISES[noise], PLACES["metric"])
    part = Examples(PART.x, PART.y.astype(np.float32))  # the dtype of made-up labels, so that a trace is used again
    tested = measured(first, part)
    if before == "check_examples":
        other.check_examples(part.x, part.y)
    else:
        other.metrics_of([np.asarray(state) for state in tested.states], label_shape_of(part))
    assert measured(other, part) == tested


def test_the_same_measurement_in_batches_of_another_size() -> None:
    first, other = built(NOISES["Keras"], PLACES["metric"]), built(NOISES["Keras"], PLACES["metric"])
    start, few = first.initial_weights(0), PART.rows(list(range(8)))
    tested = first.evaluate(start, PART, SETTINGS)
    other.evaluate(start, few, SETTINGS)
    keras.backend.clear_session()  # as a model does that is built later
    assert other.evaluate(start, PART, SETTINGS) == tested


def test_the_same_numbers_of_a_model_that_runs_eagerly() -> None:
    first, other = (built(NOISES["TensorFlow"], PLACES["metric"] | {"EAGER": "True"}) for _ in range(2))
    expected, tested = trained(first, 1), measured(first)
    trained(other, 2)
    for _ in range(2):
        assert measured(other) == tested
        assert trained(other, 1) == expected


@pytest.mark.parametrize("activation", ["'relu'", "tf.nn.gelu", "keras.ops.relu6", "keras.activations.silu"])
def test_functions_of_the_frameworks_are_stock(activation: str) -> None:
    model = built("0.0", {"FIRST": f"keras.layers.Dense(4, activation={activation})"})
    assert is_stock(model.keras, keras)


def test_a_model_that_draws_nothing_is_traced_once() -> None:
    model = built("0.0", PLACES["layer"])
    trained(model, 1)
    function = model.keras.train_function
    trained(model, 2)
    assert model.keras.train_function is function


def test_a_function_of_a_user_that_trains_is_traced_again_too() -> None:
    """With a `make_train_function` of its own, a model has TensorFlow's function itself."""
    own = """
class Model(keras.Sequential):
    def make_train_function(self, force=False):
        if self.train_function is None:
            self.train_function = tf.function(lambda batches: self.train_step(next(batches)))
"""
    text = FILE.replace("def build", f"{own}\ndef build").replace("keras.Sequential([", "Model([")
    text = text.replace("NOISE", NOISES["TensorFlow"])
    for name, value in (PLAIN | PLACES["layer"]).items():
        text = text.replace(name, value)
    first, other = (KerasModel(text.encode(), digest_of(text.encode()), "build") for _ in range(2))
    expected = trained(first, 1)
    trained(other, 2)
    assert trained(other, 1) == expected
