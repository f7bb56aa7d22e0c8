"""Federated learning of softmax regression in NumPy: float64, formulas as in the papers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from fedpipe.data.examples import Examples

Arrays = dict[str, np.ndarray]
RANDOM = np.random.default_rng(11)
KERNEL, BIAS = "sequential/dense/kernel", "sequential/dense/bias"
START: Arrays = {KERNEL: RANDOM.normal(size=(4, 3)).astype(np.float32), BIAS: np.zeros(3, np.float32)}


def examples(count: int) -> Examples:
    x = RANDOM.normal(size=(count, 4)).astype(np.float32)
    return Examples(x, np.argmax(x[:, :3] + RANDOM.normal(size=(count, 3)), axis=1))


TRAIN = {"a": examples(6), "b": examples(10), "c": examples(3)}
TEST = {"a": examples(4), "b": examples(5), "c": examples(2)}
CENTRAL = examples(7)
ROUNDS = 2


def soft(w: Arrays, x: np.ndarray) -> np.ndarray:
    scores = x @ w[KERNEL] + w[BIAS]
    exp = np.exp(scores - scores.max(axis=1, keepdims=True))
    return exp / exp.sum(axis=1, keepdims=True)


def loss(w: Arrays, data: Examples) -> float:
    right = soft(w, data.x)[np.arange(len(data.y)), data.y]
    return float(-np.log(right).mean())


def gradient(w: Arrays, data: Examples) -> Arrays:
    error = (soft(w, data.x.astype(np.float64)) - np.eye(3)[data.y]) / len(data.y)
    return {KERNEL: data.x.T.astype(np.float64) @ error, BIAS: error.sum(axis=0)}


def trained(w: Arrays, data: Examples, rate: float, steps: int, pull: float = 0.0) -> Arrays:
    now = {k: v.astype(np.float64) for k, v in w.items()}
    for _ in range(steps):
        g = gradient(now, data)
        now = {k: now[k] - rate * (g[k] + pull * (now[k] - w[k])) for k in now}
    return now


def mean_delta(w: Arrays, rate: float = 0.5, steps: int = 2, pull: float = 0.0, uniform: bool = False) -> Arrays:
    """The negative pseudo-gradient: the mean of the clients' changes."""
    sizes = [1 if uniform else len(TRAIN[n].y) for n in TRAIN]
    deltas = [{k: v - w[k] for k, v in trained(w, TRAIN[n], rate, steps, pull).items()} for n in TRAIN]
    return {k: np.average([d[k] for d in deltas], axis=0, weights=sizes) for k in w}


Step = Callable[[np.ndarray, np.ndarray, dict[str, Any], int], np.ndarray]
"""Takes weights, their gradient, the optimizer's memory and the number of the step; returns the next weights."""


def sgd(w: np.ndarray, g: np.ndarray, m: dict[str, Any], t: int) -> np.ndarray:
    return w - g


def momentum(w: np.ndarray, g: np.ndarray, m: dict[str, Any], t: int) -> np.ndarray:
    m["v"] = 0.9 * m.get("v", 0) + g
    return w - 0.7 * m["v"]


def adagrad(w: np.ndarray, g: np.ndarray, m: dict[str, Any], t: int) -> np.ndarray:
    m["s"] = m.get("s", 0.1) + g**2
    return w - 0.1 * g / np.sqrt(m["s"] + 1e-7)


def adam(w: np.ndarray, g: np.ndarray, m: dict[str, Any], t: int) -> np.ndarray:
    m["a"] = 0.9 * m.get("a", 0) + 0.1 * g
    m["s"] = 0.99 * m.get("s", 0) + 0.01 * g**2
    return w - 0.1 * np.sqrt(1 - 0.99**t) / (1 - 0.9**t) * m["a"] / (np.sqrt(m["s"]) + 1e-3)


def yogi(w: np.ndarray, g: np.ndarray, m: dict[str, Any], t: int) -> np.ndarray:
    m["a"] = 0.9 * m.get("a", 0) + 0.1 * g
    s = m.get("s", 1e-6)
    m["s"] = s + 0.01 * np.sign(g**2 - s) * g**2
    return w - 0.1 * np.sqrt(1 - 0.99**t) / (1 - 0.9**t) * m["a"] / (np.sqrt(m["s"]) + 1e-3)


BETAS = {"learning_rate": 0.1, "beta_2": 0.99, "epsilon": 1e-3}
SERVERS: dict[str, tuple[dict[str, Any], Step]] = {
    "sgd": ({"name": "sgd", "learning_rate": 1.0}, sgd),
    "momentum": ({"name": "sgd", "learning_rate": 0.7, "momentum": 0.9}, momentum),
    "adagrad": ({"name": "adagrad", "learning_rate": 0.1}, adagrad),
    "adam": ({"name": "adam", **BETAS}, adam),
    "yogi": ({"name": "yogi", **BETAS}, yogi),
}
"""Settings of an optimizer in the federation file, and its formula."""


def federated(delta: Callable[[Arrays], Arrays], server: Step = sgd, rounds: int = ROUNDS) -> Arrays:
    """Weights after some rounds, from `START`.

    Args:
        delta: gives the mean change of the clients.
        server: its step along the negative change.
        rounds: how many.
    """
    now: Arrays = {k: v.astype(np.float64) for k, v in START.items()}
    memory: dict[str, Any] = {k: {} for k in now}
    for number in range(1, rounds + 1):
        change = delta(now)
        now = {k: server(now[k], -change[k], memory[k], number) for k in now}
    return now
