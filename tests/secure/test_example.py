"""The smallest example: masked gradients look like noise, and train the same perceptron."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np

FILE = Path(__file__).parents[2] / "examples" / "secure" / "masked_gradients.py"


def test_it_runs_as_a_script() -> None:
    done = subprocess.run([sys.executable, FILE], capture_output=True, text=True, check=True)
    assert float(done.stdout.removeprefix("accuracy ")) > 0.95


def test_the_sum_is_that_of_the_gradients() -> None:
    example = runpy.run_path(str(FILE))
    random = np.random.default_rng(3)
    secrets = random.integers(0, 2**63, (10, 10))
    gradients = random.normal(size=(10, 5)) * 20
    vectors = [example["masked"](gradients[k], k, secrets, 1) for k in range(10)]
    assert np.abs(example["opened"](vectors) - gradients.sum(axis=0)).max() < 10 / 2**16
    assert np.abs(np.mean(vectors) / 2**32 - 0.5) < 0.15, "one vector alone is noise"
