"""Writes the data of the attacked federation: digits for eight honest learners, and what two hostile ones train on.

    python examples/attacked/write_data.py examples/attacked

The digits are those of scikit-learn, from the UCI "Optical Recognition of Handwritten Digits" test set. Each hostile
learner has real digits with wrong labels, 9 - y. Its pictures are four times as bright, so its updates are larger.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

HOSTILE, ROWS, BRIGHTER = ("mallory", "trudy"), 180, 4.0


def make(folder: Path) -> None:
    """Writes the files; the same at each call."""
    pictures, labels = load_digits(return_X_y=True)
    pictures = (pictures.reshape(-1, 8, 8, 1) / 16).astype(np.float32)
    order = np.random.default_rng(5).permutation(len(labels))
    folder.mkdir(parents=True, exist_ok=True)
    for position, name in enumerate(HOSTILE):
        rows = order[position * ROWS : (position + 1) * ROWS]
        np.savez_compressed(folder / f"{name}.npz", x=BRIGHTER * pictures[rows], y=9 - labels[rows])
    rows = order[len(HOSTILE) * ROWS :]
    np.savez_compressed(folder / "digits.npz", x=pictures[rows], y=labels[rows])


if __name__ == "__main__":
    make(Path(sys.argv[1]))
