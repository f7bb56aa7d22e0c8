"""Several devices at once: two processors stand in for two GPUs, with the same MirroredStrategy."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPT = """
import numpy as np
import tensorflow as tf

cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)

from fedpipe.learners.keras import model as keras_model
from fedpipe.data.examples import Examples
from fedpipe.learners.learner import ModelLearner
from fedpipe.store.objects import digest_of
from tests.federations import make_federation
from tests.models import DENSE

X = np.random.default_rng(0).normal(size=(64, 4)).astype("float32")
PART = Examples(X, np.argmax(X[:, :3], axis=1))
TRAINING = {"rounds": 1, "batch_size": 16, "local_epochs": 2, "fit": {"shuffle": False}}


def trained(scope):
    keras_model._scope = scope
    model = keras_model.KerasModel(DENSE.encode(), digest_of(DENSE.encode()), "build")
    learner = ModelLearner(model, make_federation(training=TRAINING), {"train": PART, "test": PART})
    model.reset(0)
    learner.accept_weights(model.weights())
    result = learner.propose_weights(seed=1, seconds=100, optimizer=None)
    return result.weights, learner.accept_weights(result.weights).test


one, tested_by_one = trained(lambda tensorflow: tensorflow.device(None))
two, tested_by_two = trained(lambda tensorflow: tensorflow.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope())
for name, value in one.items():
    np.testing.assert_allclose(two[name], value, atol=1e-6)
np.testing.assert_allclose(tested_by_two.metrics["loss"], tested_by_one.metrics["loss"], rtol=1e-5)
print("equal")
"""


def test_two_replicas_train_like_one() -> None:
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", SCRIPT], cwd=root, capture_output=True, text=True, check=False)
    assert done.stdout.strip().endswith("equal"), done.stderr[-2000:]
