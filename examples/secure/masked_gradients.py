"""Ten parties train a perceptron of two classes, and nobody sees the gradient of another: masks in pairs, and no more.

    python examples/secure/masked_gradients.py

Each pair of parties shares a secret. One adds numbers that follow from it, the other subtracts them. So a masked
gradient looks like noise, and the sum of all is that of the gradients. This shows the idea only. Here every party must
stay to the end, and all share their secrets at one table. `fedpipe` needs neither (docs/secure-sums.md).
"""

from __future__ import annotations

import numpy as np

PARTIES, EXAMPLES, FEATURES, ROUNDS, RATE = 10, 40, 5, 30, 0.1
MODULUS, POINTS = 2**32, 2**16  # numbers are rounded to 1 / POINTS, and counted modulo MODULUS

Numbers = np.ndarray[tuple[int, ...], np.dtype[np.int64]]


def gradient(weights: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the perceptron's gradient: minus the examples on the wrong side, towards their class."""
    wrong = y * (x @ weights) <= 0
    found: np.ndarray = -(y[wrong] @ x[wrong])
    return found


def masked(values: np.ndarray, me: int, secrets: np.ndarray, number: int) -> Numbers:
    """Return whole numbers with a mask for each other party, which that party subtracts."""
    total = np.round(values * POINTS).astype(np.int64)
    for other in range(PARTIES):
        if other != me:
            low, high = sorted((me, other))
            mask = np.random.default_rng([secrets[low, high], number]).integers(0, MODULUS, values.size)
            total += mask if me < other else -mask
    return total % MODULUS


def opened(vectors: list[Numbers]) -> np.ndarray:
    """Return the sum of what was masked: in the sum, each mask meets its negative."""
    total = sum(vectors) % MODULUS
    return np.where(total >= MODULUS // 2, total - MODULUS, total) / POINTS


def train(seed: int = 0) -> tuple[np.ndarray, float]:
    """Train on random examples that a line divides; return the weights and the accuracy."""
    random = np.random.default_rng(seed)
    truth = random.normal(size=FEATURES)
    x = random.normal(size=(PARTIES, EXAMPLES, FEATURES))
    y = np.sign(x @ truth)
    secrets = random.integers(0, 2**63, (PARTIES, PARTIES))
    weights = np.zeros(FEATURES)
    for number in range(ROUNDS):
        vectors = [masked(gradient(weights, x[k], y[k]), k, secrets, number) for k in range(PARTIES)]
        weights -= RATE * opened(vectors)
    return weights, float((np.sign(x @ weights) == y).mean())


if __name__ == "__main__":
    print(f"accuracy {train()[1]:.3f}")
