"""Federated learning under attack, in NumPy alone: the same for fedpipe's rules and for a peer's.

Ten learners train softmax regression on the digits, two of them hostile. These know all honest updates of the round.

    label_flip      train honestly on labels 9 - y
    sign_flip       send the opposite of their change
    scaling         send their change, multiplied by a million
    alie            send the mean of the honest, less z deviations (Baruch et al. 2019, "A Little Is Enough")
    inner_product   send the opposite of the mean honest change (Xie et al. 2020)
    min_max         send the mean less as many deviations as stay within the honest diameter (Shejwalkar, Houmansadr 2021)
    silent          one of them sends nothing, the other is honest
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Arrays = dict[str, npt.NDArray[Any]]
Rule = Callable[[list[Arrays], Arrays], Arrays]
"""Takes the updates and the weights that they began with; returns the next weights."""

LEARNERS, HOSTILE, ROUNDS, EPOCHS, BATCH, RATE = 10, 2, 60, 1, 16, 0.1
SHARDS: dict[str, float] = {"iid": math.inf, "Dirichlet 0.3": 0.3, "Dirichlet 0.1": 0.1}
"""Concentration of the draw by which each class is dealt out."""
ATTACKS = ("none", "label_flip", "sign_flip", "scaling", "alie", "inner_product", "min_max", "silent")


class Data(NamedTuple):
    """Rows in [0, 1] and labels of train shards and of the test set."""

    shards: list[tuple[Floats, npt.NDArray[np.int64]]]
    test: tuple[Floats, npt.NDArray[np.int64]]


def dealt(alpha: float, seed: int = 3) -> Data:
    """Deals the digits of scikit-learn; a fifth is the test set, and every learner has at least 20 rows."""
    from sklearn.datasets import load_digits

    rng, (x, y) = np.random.default_rng(seed), load_digits(return_X_y=True)
    order = rng.permutation(len(y))
    x, y = x[order] / 16, y[order].astype(np.int64)
    cut = len(y) // 5
    while True:
        owner = np.empty(len(y) - cut, np.int64)
        for label in range(10):
            rows = np.flatnonzero(y[cut:] == label)
            shares = np.full(LEARNERS, 1 / LEARNERS) if math.isinf(alpha) else rng.dirichlet([alpha] * LEARNERS)
            ends = np.round(np.cumsum(shares) * len(rows)).astype(int)[:-1]
            for learner, part in enumerate(np.split(rows, ends)):
                owner[part] = learner
        if np.bincount(owner, minlength=LEARNERS).min() >= 20:
            break
    return Data([(x[cut:][owner == k], y[cut:][owner == k]) for k in range(LEARNERS)], (x[:cut], y[:cut]))


def saved(data: Data, path: Path) -> None:
    """Writes data for a process that has no scikit-learn."""
    arrays = {
        f"{kind}{k}": part
        for k, pair in enumerate([*data.shards, data.test])
        for kind, part in zip("xy", pair, strict=True)
    }
    np.savez(path, **arrays)


def loaded(path: Path) -> Data:
    """Reads what `saved` wrote."""
    with np.load(path) as found:
        pairs = [(found[f"x{k}"], found[f"y{k}"]) for k in range(LEARNERS + 1)]
    return Data(pairs[:-1], pairs[-1])


def trained(base: Arrays, x: Floats, y: npt.NDArray[np.int64], rng: np.random.Generator) -> Arrays:
    """Returns the weights after a few epochs of gradient descent."""
    w, b, targets = base["w"].astype(np.float64), base["b"].astype(np.float64), np.eye(10)[y]
    for _ in range(EPOCHS):
        order = rng.permutation(len(y))
        for start in range(0, len(order), BATCH):
            rows = order[start : start + BATCH]
            scores = x[rows] @ w + b
            soft = np.exp(scores - scores.max(axis=1, keepdims=True))
            slope = (soft / soft.sum(axis=1, keepdims=True) - targets[rows]) / len(rows)
            w, b = w - RATE * x[rows].T @ slope, b - RATE * slope.sum(axis=0)
    return {"w": w.astype(np.float32), "b": b.astype(np.float32)}


def hostile(attack: str, honest: Floats, own: Floats) -> Floats:
    """Returns the change that a hostile learner sends.

    Args:
        attack: its name.
        honest: changes of the honest learners, one a row.
        own: the change that it would send if it were honest.
    """
    mean, deviation, count = honest.mean(axis=0), honest.std(axis=0), len(honest) + HOSTILE
    if attack == "sign_flip":
        return -own
    if attack == "scaling":
        return 1e6 * own
    if attack == "alie":
        supporters = count // 2 + 1 - HOSTILE
        z = NormalDist().inv_cdf((count - HOSTILE - supporters) / (count - HOSTILE))
        return mean - max(z, 0.0) * deviation
    if attack == "inner_product":
        return -mean
    if attack == "min_max":
        diameter = max(np.linalg.norm(honest - row, axis=1).max() for row in honest)
        low, high = 0.0, 100.0
        for _ in range(40):
            middle = (low + high) / 2
            fits = np.linalg.norm(honest - (mean - middle * deviation), axis=1).max() <= diameter
            low, high = (middle, high) if fits else (low, middle)
        return mean - low * deviation
    return own


def accuracy(rule: Rule, data: Data, attack: str, rounds: int = ROUNDS, seed: int = 0) -> float:
    """Returns the accuracy on the test set after some rounds; 0 when the weights are not finite."""
    now: Arrays = {"w": np.zeros((64, 10), np.float32), "b": np.zeros(10, np.float32)}
    for number in range(rounds):
        updates: list[Arrays] = []
        for learner, (x, y) in enumerate(data.shards):
            bad = learner < HOSTILE
            labels = 9 - y if bad and attack == "label_flip" else y
            updates.append(trained(now, x, labels, np.random.default_rng((seed, number, learner))))
        changes = np.array([_flat(update) - _flat(now) for update in updates])
        if attack == "silent":
            updates = updates[1:]
        elif attack not in ("none", "label_flip"):
            for learner in range(HOSTILE):
                sent = _flat(now) + hostile(attack, changes[HOSTILE:], changes[learner])
                updates[learner] = {"w": sent[:640].reshape(64, 10).astype("f4"), "b": sent[640:].astype("f4")}
        now = rule(updates, now)
        if not all(np.isfinite(value).all() for value in now.values()):
            return 0.0
    x, y = data.test
    return float(((x @ now["w"] + now["b"]).argmax(axis=1) == y).mean())


def _flat(arrays: Arrays) -> Floats:
    return np.concatenate([arrays["w"].ravel(), arrays["b"]]).astype(np.float64)
