"""The same arrays for all: ten updates of a 100 MB model, with different numbers of examples."""

import numpy as np

UPDATES, TENSORS, ELEMENTS = 10, 10, 2_500_000
WEIGHTS = [100 + 7 * k for k in range(UPDATES)]


def updates(count=UPDATES):
    rng = np.random.default_rng(0)
    return [{f"layer{i}": rng.standard_normal(ELEMENTS, np.float32) for i in range(TENSORS)} for _ in range(count)]
