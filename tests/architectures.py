"""Models of many kinds, each with a little data: what users bring."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import yaml

from fedpipe.data.trees import Tree

ROWS = 64
RNG = np.random.default_rng(0)
WORDS = ["north", "south", "east", "west", "später"]


class Architecture(NamedTuple):
    """A model with its data.

    Args:
        build: the body of `build()`, which ends with a compiled `model`.
        x: makes the features.
        y: makes the labels.
        weighted: whether the examples have weights.
        before: code above `build`.
        settings: of the federation file.
        remarks: parts of the sentence when it cannot be exported.
        own: whether learners bring their data through `load`, which several arrays need.
    """

    build: str
    x: Callable[[], Tree]
    y: Callable[[], Tree] = lambda: RNG.integers(0, 2, ROWS)
    weighted: bool = False
    before: str = ""
    settings: Mapping[str, Any] = MappingProxyType({})
    remarks: tuple[str, ...] = ()
    own: bool = False

    def code(self) -> str:
        """The text of model.py."""
        body = "\n".join(f"    {line}" for line in self.build.strip().splitlines())
        load = _LOAD if self.own else ""
        return f"{_HEAD}{self.before}\n{load}\ndef build():\n{body}\n    return model\n"

    def write(self, folder: Path, name: str, **more: Any) -> Path:
        """Write the federation file with its model and data, and return its path."""
        folder.mkdir()
        (folder / "model.py").write_text(self.code())
        settings: dict[str, Any] = {
            "name": name, "store": f"file://{folder.parent}/store", "model": "model.py:build",
            "learners": [{"name": "a"}, {"name": "b"}],
            "training": {"rounds": 2, "batch_size": 8, "tensorboard": False},
        }  # fmt: skip
        if self.own:
            for learner in settings["learners"]:
                learner["data"] = str(folder / f"{learner['name']}.npz")
                np.savez(learner["data"], **self.arrays())
        else:
            np.savez(folder / "data.npz", **self.arrays())
            settings["data"] = {"uri": str(folder / "data.npz")}
        for key, value in {**self.settings, **more}.items():
            settings[key] = {**settings.get(key, {}), **value} if isinstance(value, dict) else value
        file = folder / "federation.yaml"
        file.write_text(yaml.safe_dump(settings))
        return file

    def arrays(self) -> dict[str, Any]:
        """Data as the arrays of an .npz file."""
        found: dict[str, Any] = {"weight": RNG.random(ROWS)} if self.weighted else {}
        for side, tree in (("x", self.x()), ("y", self.y())):
            if isinstance(tree, dict):
                found |= {
                    f"{side}/{name}": array.astype(str) if array.dtype == object else array
                    for name, array in tree.items()
                }
            else:
                found[side] = tree.astype(str) if tree.dtype == object else tree
        return found


_HEAD = """
import keras
import numpy as np
from keras import layers, ops

"""
_LOAD = """
def load(uri):
    def side(name):
        if name in data:
            return data[name]
        parts = {key.split("/")[1]: data[key] for key in data if key.startswith(name + "/")}
        return tuple(parts[key] for key in sorted(parts)) if "0" in parts else parts

    with np.load(uri) as file:
        data = dict(file)
    return (side("x"), side("y"), data["weight"]) if "weight" in data else (side("x"), side("y"))

"""
_SOFTMAX = 'model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])'
_BINARY = 'model.compile("adam", "binary_crossentropy", metrics=["accuracy", keras.metrics.AUC()])'


def numbers(*shape: int) -> Callable[[], Tree]:
    return lambda: RNG.normal(size=(ROWS, *shape)).astype(np.float32)


def words(columns: int) -> Callable[[], Tree]:
    return lambda: RNG.choice(np.array(WORDS, object), (ROWS, columns))


ALL: dict[str, Architecture] = {
    "batchnorm": Architecture(
        f"""
model = keras.Sequential([
    keras.Input((5,)), layers.Dense(4, activation="gelu"), layers.BatchNormalization(), layers.Dropout(0.3),
    layers.Dense(1, activation="sigmoid"),
])
{_BINARY}""",
        numbers(5),
    ),
    "lstm": Architecture(
        f"""
model = keras.Sequential([keras.Input((6, 3)), layers.LSTM(4), layers.Dense(2, activation="softmax")])
{_SOFTMAX}""",
        numbers(6, 3),
    ),
    "bigru": Architecture(
        f"""
model = keras.Sequential([
    keras.Input((6, 3)), layers.Bidirectional(layers.GRU(4)), layers.Dense(2, activation="softmax")])
{_SOFTMAX}""",
        numbers(6, 3),
    ),
    "attention": Architecture(
        f"""
inputs = keras.Input((6, 4), name="sequence")
x = Positions()(inputs)
x = layers.LayerNormalization()(x + layers.MultiHeadAttention(2, 4)(x, x))
outputs = layers.Dense(2, activation="softmax", name="diagnosis")(layers.GlobalAveragePooling1D()(x))
model = keras.Model(inputs, outputs)
{_SOFTMAX}""",
        numbers(6, 4),
        before="""
class Positions(layers.Layer):
    def __init__(self, **more):
        super().__init__(**more)
        self.table = layers.Embedding(6, 4)

    def call(self, x):
        return x + self.table(ops.arange(6))

""",
    ),
    "two-inputs": Architecture(
        f"""
image, age = keras.Input((6, 6, 1), name="image"), keras.Input((1,), name="age")
x = layers.Concatenate()([layers.Flatten()(layers.Conv2D(2, 3)(image)), age])
model = keras.Model([image, age], layers.Dense(2, activation="softmax")(x))
{_SOFTMAX}""",
        lambda: {"age": RNG.random(ROWS), "image": RNG.random((ROWS, 6, 6, 1))},
        own=True,
    ),
    "two-outputs": Architecture(
        """
inputs = keras.Input((4,))
x = layers.Dense(4, activation="relu")(inputs)
outputs = {"risk": layers.Dense(1, activation="sigmoid")(x), "days": layers.Dense(1)(x)}
model = keras.Model(inputs, outputs)
model.compile(
    "adam", loss={"risk": "binary_crossentropy", "days": "mse"}, loss_weights={"risk": 1.0, "days": 0.1},
    metrics={"risk": ["accuracy", keras.metrics.AUC()], "days": ["mae"]})""",
        numbers(4),
        lambda: {"risk": RNG.integers(0, 2, ROWS), "days": RNG.random(ROWS)},
        own=True,
    ),
    "shared-layer": Architecture(
        """
encode = keras.Sequential([keras.Input((4,)), layers.Dense(3, activation="tanh")])
a, b = keras.Input((4,)), keras.Input((4,))
model = keras.Model([a, b], layers.Dense(1, activation="sigmoid")(ops.abs(encode(a) - encode(b))))
model.compile("adam", "binary_crossentropy", metrics=["accuracy"])""",
        lambda: {"0": RNG.random((ROWS, 4)), "1": RNG.random((ROWS, 4))},
        own=True,
    ),
    "strings": Architecture(
        f"""
numbers, categories = keras.Input((2,), name="numbers"), keras.Input((2,), dtype="string", name="categories")
lookup = layers.StringLookup(vocabulary=["north", "south", "später"], output_mode="multi_hot")
x = layers.Concatenate()([numbers, lookup(categories)])
model = keras.Model({{"numbers": numbers, "categories": categories}}, layers.Dense(2, activation="softmax")(x))
{_SOFTMAX}""",
        lambda: {"categories": words(2)(), "numbers": RNG.random((ROWS, 2))},  # type: ignore[dict-item]
        own=True,
    ),
    "custom": Architecture(
        """
inputs = keras.Input((4,))
model = keras.Model(inputs, layers.Dense(1)(Scale()(inputs)))
model.compile("adam", loss=huber, metrics=[gap])""",
        numbers(4),
        lambda: RNG.random(ROWS).astype(np.float32),
        before="""
class Scale(layers.Layer):
    def build(self, shape):
        self.scale = self.add_weight(shape=(shape[-1],), initializer="ones")

    def call(self, x):
        self.add_loss(0.01 * ops.sum(ops.square(self.scale)))
        return x * self.scale


def huber(y, p):
    gap = ops.abs(ops.reshape(y, (-1, 1)) - p)
    return ops.mean(ops.where(gap < 1, 0.5 * gap**2, gap - 0.5), axis=-1)


def gap(y, p):
    return ops.mean(ops.abs(y - p), axis=-1)

""",
    ),
    "subclass": Architecture(
        f"""
model = Net()
{_SOFTMAX}""",
        numbers(5),
        before="""
class Net(keras.Model):
    def __init__(self):
        super().__init__()
        self.hidden, self.norm = layers.Dense(4, activation="relu"), layers.BatchNormalization()
        self.last = layers.Dense(2, activation="softmax")

    def call(self, x, training=False):
        return self.last(self.norm(self.hidden(x), training=training))

""",
    ),
    "mobilenet": Architecture(
        f"""
model = keras.applications.MobileNetV3Small(weights=None, input_shape=(32, 32, 3), classes=3)
{_SOFTMAX}""",
        numbers(32, 32, 3),
        lambda: RNG.integers(0, 3, ROWS),
    ),
    "mixed-float16": Architecture(
        f"""
model = keras.Sequential([keras.Input((6,)), layers.Dense(16, activation="relu"), layers.Dense(2, activation="softmax")])
{_SOFTMAX}""",
        numbers(6),
        settings={"training": {"precision": "mixed_float16"}},
    ),
    "mixed-bfloat16": Architecture(
        f"""
model = keras.Sequential([
    keras.Input((6, 6, 1)), layers.Conv2D(4, 3), layers.BatchNormalization(), layers.Flatten(),
    layers.Dense(2, activation="softmax"),
])
{_SOFTMAX}""",
        numbers(6, 6, 1),
        settings={"training": {"precision": "mixed_bfloat16"}},
    ),
    "float64": Architecture(
        """
keras.config.set_floatx("float64")
keras.config.set_dtype_policy("float64")
model = keras.Sequential([keras.Input((4,)), layers.Dense(8, activation="tanh"), layers.Dense(1)])
model.compile("adam", "mse", metrics=["mae"])""",
        lambda: RNG.normal(size=(ROWS, 4)),
        lambda: 1000 * RNG.normal(size=ROWS),
    ),
    "normalization": Architecture(
        f"""
scale = layers.Normalization()
scale.adapt(np.random.default_rng(1).normal(3, 2, (50, 4)))
model = keras.Sequential([keras.Input((4,)), scale, layers.Dense(2, activation="softmax")])
{_SOFTMAX}""",
        numbers(4),
    ),
    "discretization": Architecture(
        f"""
inputs = keras.Input((3,))
x = layers.Discretization(bin_boundaries=[-1.0, 0.0, 1.0])(inputs)
model = keras.Model(inputs, layers.Dense(2, activation="softmax")(layers.Flatten()(layers.Embedding(4, 2)(x))))
{_SOFTMAX}""",
        numbers(3),
    ),
    "sample-weights": Architecture(
        """
model = keras.Sequential([keras.Input((4,)), layers.Dense(1, activation="sigmoid")])
model.compile("adam", "binary_crossentropy", metrics=["accuracy"], weighted_metrics=["accuracy"])""",
        numbers(4),
        weighted=True,
        own=True,
    ),
    "text": Architecture(
        f"""
split = layers.TextVectorization(vocabulary=["north", "south"], output_sequence_length=4)
inputs = keras.Input((), dtype="string", name="texts")
x = layers.GlobalAveragePooling1D()(layers.Embedding(4, 3)(split(inputs)))
model = keras.Model(inputs, layers.Dense(2, activation="softmax")(x))
{_SOFTMAX}""",
        lambda: RNG.choice(np.array(["north of south", "East!", "west"], object), ROWS),
        settings={"export": "none"},
        remarks=("'text_vectorization' (TextVectorization)", "export: none"),
        own=True,
    ),
    "hashing": Architecture(
        f"""
inputs = keras.Input((2,), dtype="string", name="categories")
x = layers.Hashing(8, output_mode="multi_hot")(inputs)
model = keras.Model(inputs, layers.Dense(2, activation="softmax")(x))
{_SOFTMAX}""",
        words(2),
        settings={"export": "none"},
        remarks=("'hashing' (Hashing)", "export: none"),
        own=True,
    ),
    "regression": Architecture(
        """
inputs = keras.Input((3,), name="numbers")
known = ops.where(ops.isnan(inputs), ops.zeros_like(inputs), inputs)
x = ops.concatenate([known, ops.cast(ops.isnan(inputs), "float32")], axis=-1)
model = keras.Model(inputs, layers.Dense(1, name="days")(layers.Dense(4, activation="silu")(x)))
model.compile("adam", "mse", metrics=["mae", keras.metrics.R2Score()])""",
        numbers(3),
        lambda: RNG.random(ROWS).astype(np.float32),
    ),
    "conv1d": Architecture(
        f"""
model = keras.Sequential([
    keras.Input((12, 2)), layers.Conv1D(4, 3, padding="causal", activation="relu"), layers.MaxPooling1D(2),
    layers.Flatten(), layers.Dense(2, activation="softmax"),
])
{_SOFTMAX}""",
        numbers(12, 2),
    ),
    "embedding": Architecture(
        f"""
model = keras.Sequential([
    keras.Input((5,), dtype="int32"), layers.Embedding(10, 4, mask_zero=True), layers.LSTM(3),
    layers.Dense(2, activation="softmax"),
])
{_SOFTMAX}""",
        lambda: RNG.integers(0, 10, (ROWS, 5)),
    ),
    "augmentation": Architecture(
        f"""
model = keras.Sequential([
    keras.Input((8, 8, 3), dtype="uint8"), layers.Rescaling(1 / 255), layers.RandomFlip(), layers.RandomRotation(0.1),
    layers.RandomContrast(0.2), layers.Conv2D(2, 3), layers.GlobalAveragePooling2D(),
    layers.Dense(2, activation="softmax"),
])
{_SOFTMAX}""",
        lambda: RNG.integers(0, 256, (ROWS, 8, 8, 3)).astype(np.uint8),
    ),
    "codes": Architecture(
        f"""
inputs = keras.Input((2,), dtype="int64")
hot = layers.CategoryEncoding(5)(layers.IntegerLookup(vocabulary=[3, 5, 9, 11])(inputs))
model = keras.Model(inputs, layers.Dense(2, activation="softmax")(hot))
{_SOFTMAX}""",
        lambda: RNG.choice([3, 5, 9, 11, 12], (ROWS, 2)),
    ),
    "jit": Architecture(
        """
inputs = keras.Input((4,))
inner = keras.Sequential([keras.Input((4,)), layers.Dense(4, activation="relu", kernel_regularizer="l2")])
model = keras.Model(inputs, layers.Dense(3, activation="softmax")(inner(inputs)))
model.compile("adam", "categorical_crossentropy", metrics=["accuracy", keras.metrics.F1Score()], jit_compile=True)""",
        numbers(4),
        lambda: np.eye(3, dtype=np.float32)[RNG.integers(0, 3, ROWS)],
    ),
    "several-outputs-by-position": Architecture(
        """
inputs = keras.Input((4,))
model = keras.Model(inputs, [layers.Dense(2, activation="softmax", name="kind")(inputs), layers.Dense(1, name="days")(inputs)])
model.compile("adam", ["sparse_categorical_crossentropy", "mae"], metrics=[["accuracy"], ["mse"]])""",
        numbers(4),
        lambda: {"0": RNG.integers(0, 2, ROWS), "1": RNG.random(ROWS)},
        own=True,
    ),
}
