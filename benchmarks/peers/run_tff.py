"""TFF's simulation of the same."""

import collections
import json
import os
import time

STARTED = time.time()
import tensorflow as tf  # noqa: E402
import tensorflow_federated as tff  # noqa: E402
from softmax import BATCH, EPOCHS, EXAMPLES, LEARNERS, RATE, ROUNDS, data  # noqa: E402

x, y = data()
SPEC = collections.OrderedDict(x=tf.TensorSpec((None, 784), tf.float32), y=tf.TensorSpec((None,), tf.int64))


def model_fn():
    model = tf.keras.Sequential([tf.keras.layers.InputLayer((784,)), tf.keras.layers.Dense(10, activation="softmax")])
    return tff.learning.models.from_keras_model(
        model, loss=tf.keras.losses.SparseCategoricalCrossentropy(), input_spec=SPEC,
        metrics=[tf.keras.metrics.SparseCategoricalAccuracy()],
    )  # fmt: skip


def client(k):
    part = slice(k * EXAMPLES, (k + 1) * EXAMPLES)
    arrays = collections.OrderedDict(x=x[part], y=y[part])
    return tf.data.Dataset.from_tensor_slices(arrays).shuffle(EXAMPLES, seed=1).batch(BATCH).repeat(EPOCHS)


process = tff.learning.algorithms.build_weighted_fed_avg(
    model_fn,
    client_optimizer_fn=tff.learning.optimizers.build_sgdm(RATE),
    server_optimizer_fn=tff.learning.optimizers.build_sgdm(1.0),
)
state, clients, rounds = process.initialize(), [client(k) for k in range(LEARNERS)], []
for _ in range(ROUNDS):
    began = time.time()
    result = process.next(state, clients)
    state = result.state
    rounds.append(time.time() - began)
metrics = result.metrics["client_work"]["train"]
print(
    json.dumps({"accuracy": float(metrics["sparse_categorical_accuracy"]), "rounds": rounds, "end": time.time()}),
    flush=True,
)
os._exit(0)
