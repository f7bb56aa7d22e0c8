"""Trains on one device and on two, in a process whose TensorFlow has not begun: devices cannot be added later."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from fedpipe.data.examples import Examples
from fedpipe.frameworks import frameworks
from fedpipe.learners.keras import model as keras_model
from fedpipe.learners.learner import Arrays, ModelLearner
from fedpipe.store.objects import digest_of
from tests.federations import make_federation
from tests.models import DENSE

X = np.random.default_rng(0).normal(size=(64, 4)).astype("float32")
PART = Examples(X, np.argmax(X[:, :3], axis=1))
TRAINING = {"rounds": 1, "batch_size": 16, "local_epochs": 2, "fit": {"shuffle": False}}
Result = tuple[Arrays, float]
"""Weights after a training, and their loss."""


def on_one_and_on_two() -> tuple[Result, Result]:
    """The results of the same training."""
    tensorflow, _ = frameworks()
    cpu = tensorflow.config.list_physical_devices("CPU")[0]
    tensorflow.config.set_logical_device_configuration(cpu, [tensorflow.config.LogicalDeviceConfiguration()] * 2)
    one = trained(lambda tensorflow: tensorflow.device(None))
    return one, trained(lambda tensorflow: tensorflow.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope())


def trained(scope: Callable[[Any], Any]) -> Result:
    keras_model._scope = scope
    model = keras_model.KerasModel(DENSE.encode(), digest_of(DENSE.encode()), "build")
    learner = ModelLearner(model, make_federation(training=TRAINING), {"train": PART, "test": PART})
    model.reset(0)
    learner.accept_weights(model.weights())
    result = learner.propose_weights(seed=1, seconds=100, optimizer=None)
    test = learner.accept_weights(result.weights).test
    assert test is not None
    return result.weights, test.metrics["loss"]
