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


def make_plan(store: Store, federation: Federation, code: str = DENSE, **more: object) -> Plan:
    """A plan whose code is in the store."""
    put_bytes(store, code.encode())
    return Plan(
        run="r1", federation=federation, code=digest_of(code.encode()), function="build", **{"shards": {}, **more}
    )  # type: ignore[arg-type]
