"""A cut network takes the steps of the uncut one, to rounding."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pytest

from fedpipe.errors import ModelError
from fedpipe.learners.cut import TOP, bottom_name, held_by, joined, part_of
from fedpipe.learners.keras.cut import CutKeras, KerasBottom, KerasTop, _cached_whole
from tests.federations import make_federation

PARTS = """
import keras

def bottom(party):
    sizes = {"alice": 5, "bob": 3, "carol": 4}
    inputs = keras.Input((sizes[party],))
    x = keras.layers.Dense(6, activation="tanh", kernel_regularizer=keras.regularizers.L2(0.01))(inputs)
    x = keras.layers.BatchNormalization()(x)
    model = keras.Model(inputs, keras.layers.Dropout(RATE)(x))
    model.compile(optimizer=OPTIMIZER)
    return model

def top():
    inputs = [keras.Input((6,)) for _ in range(COUNT)]
    x = keras.layers.Concatenate()(inputs) if COUNT > 1 else inputs[0]
    x = keras.layers.Dense(8, activation="relu", kernel_regularizer=keras.regularizers.L2(0.01))(x)
    x = keras.layers.BatchNormalization()(x)
    x = keras.layers.Dropout(RATE)(x)
    model = keras.Model(inputs if COUNT > 1 else inputs[0], keras.layers.Dense(3, activation="softmax")(x))
    model.compile(optimizer=OPTIMIZER, loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    return model
"""
SIZES = {"alice": 5, "bob": 3, "carol": 4}


def cut(names: tuple[str, ...], *, label_features: bool = False, rate: float = 0.0, optimizer: str = "'sgd'") -> Any:
    parties = [
        {"name": name, "data": f"{name}.npz"} for name in (*names, "labels" if not label_features else names[-1])
    ]
    federation = make_federation(
        learners=parties[: len(names) + (not label_features)], training={"rounds": 1, "batch_size": 8}, data={},
        algorithm={"name": "split", "label_party": parties[-1]["name"], "label_party_features": label_features},
    )  # fmt: skip
    text = PARTS.replace("RATE", str(rate)).replace("OPTIMIZER", optimizer).replace("COUNT", str(len(names)))
    code = text.encode()
    return CutKeras(federation), federation, code, f"sha256:{hashlib.sha256(code).hexdigest()}"


def drawing(noise: str) -> tuple[bytes, str]:
    """A cut network whose parts draw by this expression, also in a test."""
    _, _, code, _ = cut(("alice",))
    layer = f"""
import tensorflow as tf

class Noise(keras.layers.Layer):
    def call(self, x):
        return x + {noise}

def bottom("""
    text = code.decode().replace("\ndef bottom(", layer).replace("keras.layers.Dropout(0.0)", "Noise()")
    return text.encode(), f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def made(count: int = 44) -> tuple[dict[str, Any], Any]:
    random = np.random.default_rng(1)
    x = {name: random.normal(size=(count, size)).astype(np.float32) for name, size in SIZES.items()}
    return x, (np.sum(x["alice"], axis=1) > 0).astype(np.int64) + (x["bob"][:, 0] > 1)


def batches(count: int, size: int = 8) -> list[Any]:
    order = np.random.default_rng(2).permutation(count)
    return [order[i : i + size] for i in range(0, count, size)]


def trained_apart(
    adapter: Any, federation: Any, code: bytes, digest: str, rows_of: Any = None
) -> tuple[dict[str, Any], dict[str, float], dict[str, dict[str, float]]]:  # fmt: skip
    """Trains the parts by what they hand to each other, batch by batch; returns weights and metrics of both sides."""
    training, names = federation.training, federation.feature_parties
    start = adapter.build(code, digest, "", training).initial_weights(training.seed)
    bottoms = [adapter.bottom(code, digest, name, training) for name in names]
    top = adapter.top(code, digest, training)
    for name, bottom in zip(names, bottoms, strict=True):
        bottom.begin(part_of(start, bottom_name(name)), None, seed=7, rate=0.0)
    top.begin(part_of(start, TOP), None, seed=7, rate=0.0)
    x, y = rows_of or made()
    for rows in batches(len(y)):
        up = [bottom.forward(x[name][rows]) for name, bottom in zip(names, bottoms, strict=True)]
        for bottom, down in zip(bottoms, top.step(up, y[rows]), strict=True):
            bottom.backward(down)
    parts = {bottom_name(name): bottom.weights() for name, bottom in zip(names, bottoms, strict=True)}
    measured = {name: bottom.metrics() for name, bottom in zip(names, bottoms, strict=True)}
    return joined({**parts, TOP: top.weights()}), top.metrics(), measured


def trained_whole(
    adapter: Any, federation: Any, code: bytes, digest: str, rows_of: Any = None
) -> tuple[dict[str, Any], dict[str, float]]:  # fmt: skip
    """Trains the uncut network by Keras's own steps, with the random states that the parts have."""
    training, names = federation.training, federation.feature_parties
    whole = adapter.build(code, digest, "", training)
    start = whole.initial_weights(training.seed)
    whole.reset(7)
    whole.set_weights(start)
    for part, model in whole._parts.items():
        alone = adapter.top(code, digest, training) if part == TOP else adapter.bottom(
            code, digest, part.removeprefix("bottom-"), training
        )  # fmt: skip
        alone.reset(7)
        for mine, theirs in zip(model.variables, alone.keras.variables, strict=True):
            if "seed_generator_state" in mine.path:
                mine.assign(theirs)
    x, y = rows_of or made()
    sums: dict[str, float] = {}
    for rows in batches(len(y)):
        given = [x[name][rows] for name in names]
        found = whole.keras.train_on_batch(given if len(given) > 1 else given[0], y[rows], return_dict=True)
        sums = {name: sums.get(name, 0.0) + float(value) * len(rows) for name, value in found.items()}
    return whole.weights(), {name: total / len(y) for name, total in sums.items()}


@pytest.mark.parametrize(
    ("names", "optimizer"),
    [(("alice",), "keras.optimizers.Adam(0.01, epsilon=1e-3)"), (("alice", "bob"), "keras.optimizers.SGD(0.1, momentum=0.9)"),
     (("alice", "bob", "carol"), "keras.optimizers.Adam(0.01, epsilon=1e-3)")],
)  # fmt: skip
def test_an_epoch_of_the_parts_is_an_epoch_of_the_uncut_network(names: tuple[str, ...], optimizer: str) -> None:
    given = cut(names, label_features=len(names) == 3, rate=0.3, optimizer=optimizer)
    apart, metrics, measured = trained_apart(*given)
    whole, expected = trained_whole(*given)
    assert apart.keys() == whole.keys()
    assert all(name.startswith(("bottom-", "top/")) for name in apart)
    for name in apart:
        np.testing.assert_allclose(apart[name], whole[name], atol=1e-5, rtol=0, err_msg=name)
    assert metrics["accuracy"] == pytest.approx(expected["accuracy"])
    penalties = [found["penalty"] for found in measured.values()]
    assert min(penalties) > 0
    assert metrics["loss"] + sum(penalties) == pytest.approx(expected["loss"], abs=1e-5)


LAYERS = """
import keras

class Fired(keras.layers.Layer):
    def __init__(self):
        super().__init__()
        self.share = keras.metrics.Mean(name="fired")

    def call(self, x):
        self.share.update_state(keras.ops.mean(keras.ops.cast(x > 0, "float32")))
        return x

def layers():
    return [
        keras.layers.Rescaling(0.5),
        keras.layers.Conv2D(3, 2, activation="relu", kernel_regularizer=keras.regularizers.L2(0.01)),
        Fired(),
        keras.layers.BatchNormalization(),
        keras.layers.Flatten(),
        keras.layers.Dense(6, activation="tanh"),
        keras.layers.Dropout(0.3),
        keras.layers.Dense(3, activation="softmax"),
    ]

def made(shape, chosen, **more):
    model = keras.Sequential([keras.Input(shape), *chosen])
    model.compile(optimizer=keras.optimizers.SGD(0.1, momentum=0.9), **more)
    return model

def bottom(party):
    return made((3, 3, 1), layers()[:CUT])

def top():
    shape = bottom("alice").output_shape[1:]
    return made(shape, layers()[CUT:], loss="sparse_categorical_crossentropy", metrics=["accuracy"])
"""


@pytest.mark.parametrize("place", [1, 2, 5, 7])
def test_a_network_may_be_cut_anywhere(place: int) -> None:
    """After a layer without weights, between images, after batch normalisation, behind dropout."""
    adapter, federation, _, _ = cut(("alice",))
    code = LAYERS.replace("CUT", str(place)).encode()
    given = (adapter, federation, code, f"sha256:{hashlib.sha256(code).hexdigest()}")
    images = np.random.default_rng(3).normal(size=(44, 3, 3, 1)).astype(np.float32)
    rows = {"alice": images}, (images.mean(axis=(1, 2, 3)) > 0).astype(np.int64)
    apart, metrics, measured = trained_apart(*given, rows)
    whole, expected = trained_whole(*given, rows)
    assert apart.keys() == whole.keys()
    for name in apart:
        np.testing.assert_allclose(apart[name], whole[name], atol=1e-5, rtol=0, err_msg=name)
    assert metrics["loss"] + measured["alice"].get("penalty", 0) == pytest.approx(expected["loss"], abs=1e-5)
    side = measured["alice"] if place > 2 else metrics
    assert 0 < side["fired"] < 1, "metrics of layers come from the party that holds them"


def test_gradients_are_applied_to_the_oldest_open_batch() -> None:
    """Two batches are sent with the same weights; without an optimizer's state, the steps add up."""
    adapter, federation, code, digest = cut(("alice",), optimizer="keras.optimizers.SGD(0.1)")
    start = adapter.build(code, digest, "", federation.training).initial_weights(federation.training.seed)
    bottom, own = adapter.bottom(code, digest, "alice", federation.training), part_of(start, "bottom-alice")
    x, _ = made()
    first, second = x["alice"][:8], x["alice"][8:20]
    moved = []
    for rows in ([first], [second], [first, second]):
        bottom.begin(own, None, seed=7, rate=0.0)
        up = [bottom.forward(batch) for batch in rows]
        for found in up:
            bottom.backward(np.ones_like(found))
        moved.append({name: array - own[name] for name, array in bottom.weights().items() if "kernel" in name})
    assert moved[0]
    for name in moved[0]:
        np.testing.assert_allclose(moved[2][name], moved[0][name] + moved[1][name], atol=1e-6)


def test_parts_alone_begin_with_the_weights_of_the_whole_network() -> None:
    adapter, federation, code, digest = cut(("alice", "bob"), label_features=True)
    training = federation.training
    start = adapter.build(code, digest, "", training).initial_weights(training.seed)
    for name in ("alice", "bob"):
        alone = adapter.bottom(code, digest, name, training).initial_weights(0)
        mine = part_of(start, bottom_name(name))
        assert mine.keys() == alone.keys()
        assert all(np.array_equal(mine[key], alone[key]) for key in mine)
    assert held_by(start, federation, "bob").keys() >= {"bottom-bob/dense/kernel", "top/dense/kernel"}


def test_parts_that_are_made_while_the_file_is_loaded_have_the_same_names_each_time() -> None:
    """Each part loads the file again, and Keras counts the layers of a process."""
    adapter, federation, code, _ = cut(("alice",))
    code += b"\nBOTTOM, TOP = bottom('alice'), top()\n\ndef bottom(party):\n    return BOTTOM\n\ndef top():\n    return TOP\n"
    training, digest = federation.training, f"sha256:{hashlib.sha256(code).hexdigest()}"
    start = adapter.build(code, digest, "", training).initial_weights(training.seed)
    parts = {"bottom-alice": adapter.bottom(code, digest, "alice", training), TOP: adapter.top(code, digest, training)}
    assert joined({name: part.weights() for name, part in parts.items()}).keys() == start.keys()
    _cached_whole.cache_clear()
    again = adapter.build(code, digest, "", training).initial_weights(training.seed)
    assert all(np.array_equal(again[name], array) for name, array in start.items())


@pytest.mark.parametrize(
    ("old", "new", "what"),
    [
        ("Dense(6,", "Dense(7,", 'bottom("alice") returns float32 [7] a row, but top() takes float32 [6]'),
        ("def bottom", "def lower", "there is no function 'bottom'"),
        ("def top", "def upper", "there is no function 'top'"),
        ('"alice": 5, "bob": 3', '"alice": 5', "bottom() fails, because KeyError: 'bob' (line 6)"),
        ("    return model\n\ndef top", "    return None\n\ndef top", 'bottom("alice") returns None'),
        ("for _ in range(2)", "for _ in range(3)", "top() takes 3 inputs, but 2 parties hold features: alice, bob"),
    ],
)
def test_parts_that_do_not_fit_are_reported(old: str, new: str, what: str) -> None:
    adapter, federation, code, _ = cut(("alice", "bob"))
    assert old.encode() in code
    code = code.replace(old.encode(), new.encode())
    with pytest.raises(ModelError) as error:
        adapter.build(code, f"sha256:{hashlib.sha256(code).hexdigest()}", "", federation.training)
    assert what in error.value.what


@pytest.mark.parametrize(
    "noise", ["tf.random.normal(tf.shape(x))", "keras.random.normal(keras.ops.shape(x))"], ids=["TensorFlow", "Keras"]
)
def test_the_draws_of_a_part_follow_from_the_round_whatever_it_did_before(noise: str) -> None:
    code, digest = drawing(noise)
    x, y = made(16)

    def parts() -> tuple[Any, Any]:
        return KerasBottom(code, digest, bottom_name("alice"), 0), KerasTop(code, digest, ("alice",), 0, 8)

    def played(bottom: Any, top: Any, seed: int) -> list[Any]:
        """The activations of a test, and the activations and gradients of two batches."""
        bottom.begin(bottom_start, None, seed=seed, rate=0.0)
        found = [bottom.infer(x["alice"])]
        top.begin(top_start, None, seed=seed + 1, rate=0.0)
        for rows in (slice(0, 8), slice(8, 16)):
            up = bottom.forward(x["alice"][rows])
            (down,) = top.step([up], y[rows])
            bottom.backward(down)
            found += [up, down]
        return found

    bottom, top = parts()
    bottom_start, top_start = bottom.weights(), top.weights()
    bottom.infer(x["alice"])  # as a check does
    first, second = played(bottom, top, 1), played(bottom, top, 2)
    assert all((one != other).any() for one, other in zip(first, second, strict=True)), "rounds draw other numbers"
    for used, fresh in zip(second, played(*parts(), 2), strict=True):
        np.testing.assert_array_equal(used, fresh)
