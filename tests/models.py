"""Small model.py texts for tests."""

from __future__ import annotations

from fedpipe.federation.federation import Federation
from fedpipe.rounds.plan import Plan
from fedpipe.store import Store
from fedpipe.store.objects import digest_of, put_bytes

DENSE = """
import keras

def build():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, activation="softmax")])
    model.compile(keras.optimizers.SGD(0.5), "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model
"""

RICH = """
import keras

def build():
    inputs = keras.Input((4,))
    x = keras.layers.Dense(8, activation="relu")(inputs)
    x = keras.layers.BatchNormalization()(x)
    x = keras.layers.Dropout(0.5)(x)
    model = keras.Model(inputs, keras.layers.Dense(1, activation="sigmoid")(x))
    model.compile("adam", "binary_crossentropy", metrics=["accuracy", keras.metrics.AUC(num_thresholds=50)])
    return model
"""


LINEAR = """
from fedpipe.learners.numpy import Linear

def build():
    return Linear(4, 3, learning_rate=0.5)
"""
"""The same model as DENSE, with `framework: numpy`."""


CUSTOM = """
import numpy as np
from onnx import TensorProto, helper, numpy_helper

FEATURES, CLASSES, RATE = 4, 3, 0.5

def scores(weights, x):
    return x.reshape(len(x), -1).astype(np.float64) @ weights["kernel"] + weights["bias"]

def softmax(z):
    shares = np.exp(z - z.max(axis=1, keepdims=True))
    return shares / shares.sum(axis=1, keepdims=True)

def initial_weights(seed):
    kernel = np.random.default_rng(seed).normal(0, 0.1, (FEATURES, CLASSES)).astype(np.float32)
    return {"kernel": kernel, "bias": np.zeros(CLASSES, np.float32)}

def train(weights, x, y, *, epochs, steps, batch_size, learning_rate, seed, optimizer):
    generator, w, metrics = np.random.default_rng(seed), {k: v.astype(np.float64) for k, v in weights.items()}, []
    v = {k: a.astype(np.float64) for k, a in (optimizer or {k: 0 * a for k, a in weights.items()}).items()}
    orders = [generator.permutation(len(x)) for _ in range(epochs or -(-steps * batch_size // len(x)))]
    if steps:
        orders = [np.concatenate(orders)[:steps * batch_size]]
    for order in orders:
        for start in range(0, len(order), batch_size):
            rows = order[start:start + batch_size]
            error = (softmax(scores(w, x[rows])) - np.eye(CLASSES)[y[rows]]) / len(rows)
            slopes = {"kernel": x[rows].reshape(len(rows), -1).T.astype(np.float64) @ error, "bias": error.sum(axis=0)}
            for name, slope in slopes.items():
                v[name] = 0.5 * v[name] - (learning_rate or RATE) * slope
                w[name] = w[name] + v[name]
        metrics.append(evaluate(w, x, y))
    return w, metrics, v

def evaluate(weights, x, y):
    if y.ndim != 1 or y.min() < 0 or y.max() >= CLASSES:
        raise ValueError(f"the labels range from {y.min()} to {y.max()}, but the model has {CLASSES} outputs")
    with np.errstate(all="ignore"):
        z = scores(weights, x)
        top = z.max(axis=1)
        losses = top + np.log(np.exp(z - top[:, None]).sum(axis=1)) - z[np.arange(len(y)), y]
    return {"loss": losses.mean(), "accuracy": np.mean(z.argmax(axis=1) == y)}

def predict(weights, x):
    return softmax(scores(weights, x)).astype(np.float32)

def convert(weights, opset):
    graph = helper.make_graph(
        [helper.make_node("Flatten", ["x"], ["rows"]), helper.make_node("Gemm", ["rows", "kernel", "bias"], ["z"]),
         helper.make_node("Softmax", ["z"], ["shares"], axis=-1)],
        "custom",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", *SHAPE])],
        [helper.make_tensor_value_info("shares", TensorProto.FLOAT, ["batch", CLASSES])],
        [numpy_helper.from_array(value, name) for name, value in sorted(weights.items())],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)

SHAPE = [FEATURES]

class learner:
    metrics, task = ("loss", "accuracy"), "multiclass"
    inputs = [("features", "float32", (None, *SHAPE))]
    initial_weights, train, evaluate, predict, convert = map(
        staticmethod, (initial_weights, train, evaluate, predict, convert))
"""
"""The same model as DENSE, of a user's own functions, with `framework: custom` and `model: model.py:learner`."""

CUSTOM_DIGITS = CUSTOM.replace("FEATURES, CLASSES, RATE = 4, 3", "FEATURES, CLASSES, RATE = 64, 10").replace(
    "SHAPE = [FEATURES]", "SHAPE = [8, 8, 1]"
)
"""The same for the digits of `fedpipe init`."""


def make_plan(store: Store, federation: Federation, code: str = DENSE, **more: object) -> Plan:
    """A plan whose code is in the store."""
    put_bytes(store, code.encode())
    return Plan(
        run="r1", federation=federation, code=digest_of(code.encode()), function="build", **{"shards": {}, **more}
    )  # type: ignore[arg-type]
