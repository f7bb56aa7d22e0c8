"""Writes the handwritten digits of scikit-learn as rows of 64 numbers, for the learners in this folder.

    python examples/frameworks/digits.py

The data are those of Alpaydin and Kaynak: Optical Recognition of Handwritten Digits; 1797 pictures of 8 x 8.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits


def write(folder: Path) -> None:
    """Write digits.npz; the same at each call."""
    digits = load_digits()
    np.savez_compressed(folder / "digits.npz", x=(digits.data / 16).astype(np.float32), y=digits.target)


if __name__ == "__main__":
    write(Path(__file__).parent)
