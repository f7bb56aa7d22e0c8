"""Attacks on a cut network: labels from gradients, and images from activations, on handwritten digits.

    python benchmarks/split_privacy.py

The party with features sees the gradients of one epoch. It sorts the rows by their directions into ten groups, without
any label, and a group counts as its most frequent digit. The label party sees the activations. It knows 100 pairs of
images and activations, fits a ridge regression, and reconstructs all other images. A score of 0 means the mean image.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits
from sklearn.linear_model import Ridge

from fedpipe.federation.file import parse_federation
from fedpipe.learners.cut import TOP, bottom_name, part_of
from fedpipe.learners.keras.cut import CutKeras
from fedpipe.rounds.parcels import packed, unpacked

MODEL = """
import keras

def bottom(party):
    layers = [keras.layers.Dense(64, activation="relu") for _ in range(DEPTH)]
    model = keras.Sequential([keras.Input((64,)), *layers])
    model.compile(optimizer=keras.optimizers.Adam(2e-3))
    return model

def top():
    model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(10, activation="softmax")])
    model.compile(optimizer=keras.optimizers.Adam(2e-3), loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    return model
"""
EPOCHS, SIZE, KNOWN = 5, 32, 100


def trained(depth: int, exchange: Any, noise: float) -> tuple[float, float, float]:
    """Train, and return the accuracy, the share of labels guessed from gradients, and the score of the images."""
    digits = load_digits()
    x, y = (digits.data / 16).astype(np.float32), digits.target.astype(np.int64)
    code = MODEL.replace("DEPTH", str(depth)).encode()
    digest = f"sha256:{hashlib.sha256(code).hexdigest()}"
    federation = parse_federation(
        {
            "name": "digits", "training": {"rounds": 1, "batch_size": SIZE}, "data": {},
            "learners": [{"name": "alice", "data": "a.npz"}, {"name": "bob", "data": "b.npz"}],
            "algorithm": {"name": "split", "label_party": "bob", "exchange": exchange},
        }
    )  # fmt: skip
    adapter, training, random = CutKeras(federation), federation.training, np.random.default_rng(0)
    start = adapter.build(code, digest, "", training).initial_weights(0)
    bottom, top = adapter.bottom(code, digest, "alice", training), adapter.top(code, digest, training)
    bottom.begin(part_of(start, bottom_name("alice")), None, seed=0, rate=0.0)
    top.begin(part_of(start, TOP), None, seed=0, rate=0.0)

    def sent(values: Any) -> Any:
        return unpacked(packed((values + random.normal(0, noise, values.shape)).astype(np.float32), exchange))

    rows = random.permutation(len(y))
    train, test = rows[:1437], rows[1437:]
    seen = np.zeros((len(y), 64), np.float32)
    for epoch in range(EPOCHS):
        for places in np.array_split(random.permutation(train), len(train) // SIZE):
            (gradient,) = top.step([sent(bottom.forward(x[places]))], y[places])
            gradient = unpacked(packed(gradient, exchange))
            if epoch == 0:
                seen[places] = gradient
            bottom.backward(gradient)
    predict = top.predictor(top.weights())
    accuracy = float(np.mean(np.argmax(predict(bottom.infer(x[test]))[0], axis=1) == y[test]))
    lengths = np.linalg.norm(seen[train], axis=1, keepdims=True)
    groups = KMeans(10, n_init=5, random_state=0).fit_predict(seen[train] / np.maximum(lengths, 1e-12))
    guessed = sum(np.bincount(y[train][groups == group]).max() for group in set(groups)) / len(train)
    shown = sent(bottom.infer(x))
    known, others = rows[:KNOWN], rows[KNOWN:]
    found = Ridge(1.0).fit(shown[known], x[known]).predict(shown[others])
    score = 1 - float(np.mean((found - x[others]) ** 2) / np.mean((x[known].mean(axis=0) - x[others]) ** 2))
    return accuracy, float(guessed), score


def main() -> None:
    """Print a line of the table in docs/split-learning.md for each setting."""
    for name, depth, exchange, noise in (
        ("one layer, float32", 1, "float32", 0.0),
        ("one layer, int8", 1, "int8", 0.0),
        ("one layer, noise 1 on activations", 1, "float32", 1.0),
        ("three layers, float32", 3, "float32", 0.0),
    ):
        accuracy, guessed, score = trained(depth, exchange, noise)
        print(f"| {name} | {accuracy:.3f} | {guessed:.3f} | {score:.3f} |", flush=True)


if __name__ == "__main__":
    main()
