"""Attacks on a cut network: labels from gradients, and images from activations, on handwritten digits.

    python benchmarks/split_privacy.py

The party with features sees the gradients. By their directions in the first epoch, it sorts the rows into ten groups, without
any label, and a group counts as its most frequent digit. By their lengths, in all epochs, it ranks the rows of another
network, which decides whether a digit is a zero (Li et al. 2022). A score of 0.5 is chance, 1 is exact. The label party
sees the activations. It knows 100 pairs of images and activations, fits a ridge regression, and reconstructs all other
images. A score of 0 means the mean image.
"""

from __future__ import annotations

import hashlib
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits
from sklearn.linear_model import Ridge
from sklearn.metrics import roc_auc_score

from fedpipe.federation.file import parse_federation
from fedpipe.learners.cut import TOP, bottom_name, part_of
from fedpipe.learners.keras.cut import CutKeras
from fedpipe.rounds.parcels import packed, unpacked

Array = npt.NDArray[Any]
MODEL = """
import keras

def bottom(party):
    layers = [keras.layers.Dense(64, activation="relu") for _ in range(DEPTH)]
    model = keras.Sequential([keras.Input((64,)), *layers])
    model.compile(optimizer=keras.optimizers.Adam(2e-3))
    return model

def top():
    model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(CLASSES, activation="softmax")])
    model.compile(optimizer=keras.optimizers.Adam(2e-3), loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    return model
"""
EPOCHS, SIZE, KNOWN, TRAINED = 5, 32, 100, 1437


class Setting(NamedTuple):
    """How a network is cut, and what parties do to what they send.

    Args:
        name: in the table.
        depth: layers of the bottom.
        exchange: the type of the numbers.
        up: deviation of noise on activations.
        down: deviation of noise on gradients, in multiples of their root mean square in the batch.
    """

    name: str
    depth: int = 1
    exchange: Any = "float32"
    up: float = 0.0
    down: float = 0.0


class Seen(NamedTuple):
    """The result of a training: the accuracy, and what each party has seen.

    Args:
        accuracy: on held-out rows.
        gradients: of each train row, (epochs, rows, 64).
        activations: of all rows, as they are sent.
        rows: the places of all rows, train rows first.
    """

    accuracy: float
    gradients: Array
    activations: Array
    rows: Array


def trained(setting: Setting, x: Array, y: Array, classes: int) -> Seen:
    """Train a cut network."""
    code = MODEL.replace("DEPTH", str(setting.depth)).replace("CLASSES", str(classes)).encode()
    digest = f"sha256:{hashlib.sha256(code).hexdigest()}"
    federation = parse_federation(
        {
            "name": "digits", "training": {"rounds": 1, "batch_size": SIZE}, "data": {},
            "learners": [{"name": "alice", "data": "a.npz"}, {"name": "bob", "data": "b.npz"}],
            "algorithm": {"name": "split", "label_party": "bob", "exchange": setting.exchange},
        }
    )  # fmt: skip
    adapter, training, random = CutKeras(federation), federation.training, np.random.default_rng(0)
    start = adapter.build(code, digest, "", training).initial_weights(0)
    bottom, top = adapter.bottom(code, digest, "alice", training), adapter.top(code, digest, training)
    bottom.begin(part_of(start, bottom_name("alice")), None, seed=0, rate=0.0)
    top.begin(part_of(start, TOP), None, seed=0, rate=0.0)

    def sent(values: Array, noise: float) -> Array:
        noisy = (values + random.normal(0, noise, values.shape)).astype(np.float32)
        return unpacked(packed(noisy, setting.exchange))

    rows = random.permutation(len(y))
    train, test = rows[:TRAINED], rows[TRAINED:]
    seen = np.zeros((EPOCHS, len(y), 64), np.float32)
    for epoch in range(EPOCHS):
        for places in np.array_split(random.permutation(train), len(train) // SIZE):
            (gradient,) = top.step([sent(bottom.forward(x[places]), setting.up)], y[places])
            gradient = sent(gradient, setting.down * float(np.sqrt(np.mean(gradient**2))))
            seen[epoch, places] = gradient
            bottom.backward(gradient)
    predict = top.predictor(top.weights())
    accuracy = float(np.mean(np.argmax(predict(bottom.infer(x[test]))[0], axis=1) == y[test]))
    return Seen(accuracy, seen[:, train], sent(bottom.infer(x), setting.up), rows)


def by_direction(seen: Seen, y: Array) -> float:
    """Return the share of labels that groups of directions give away."""
    first, labels = seen.gradients[0], y[seen.rows[:TRAINED]]
    lengths = np.linalg.norm(first, axis=1, keepdims=True)
    groups = KMeans(10, n_init=5, random_state=0).fit_predict(first / np.maximum(lengths, 1e-12))
    return float(sum(np.bincount(labels[groups == group]).max() for group in set(groups)) / len(labels))


def by_length(seen: Seen, y: Array) -> float:
    """Return the area under the curve of a rare label, ranked by the mean length of the gradients."""
    lengths = np.linalg.norm(seen.gradients, axis=2).mean(axis=0)
    return float(roc_auc_score(y[seen.rows[:TRAINED]], lengths))


def images(seen: Seen, x: Array) -> float:
    """Return how much of the images' variance their activations give away."""
    known, others = seen.rows[:KNOWN], seen.rows[KNOWN:]
    found = Ridge(1.0).fit(seen.activations[known], x[known]).predict(seen.activations[others])
    return 1 - float(np.mean((found - x[others]) ** 2) / np.mean((x[known].mean(axis=0) - x[others]) ** 2))


SETTINGS = (
    Setting("one layer, `float32`"),
    Setting("one layer, `int8`", exchange="int8"),
    Setting("one layer, noise of deviation 1 on activations", up=1.0),
    Setting("one layer, noise on gradients, as large as they are", down=1.0),
    Setting("one layer, noise on gradients, four times as large", down=4.0),
    Setting("three layers, `float32`", depth=3),
)


def main() -> None:
    """Print a line of the table in docs/split-learning.md for each setting."""
    digits = load_digits()
    x, y = (digits.data / 16).astype(np.float32), digits.target.astype(np.int64)
    zeros = (y == 0).astype(np.int64)
    for setting in SETTINGS:
        ten, rare = trained(setting, x, y, 10), trained(setting, x, zeros, 2)
        scores = (ten.accuracy, by_direction(ten, y), by_length(rare, zeros), images(ten, x))
        print(f"| {setting.name} | {' | '.join(f'{score:.3f}' for score in scores)} |", flush=True)


if __name__ == "__main__":
    main()
