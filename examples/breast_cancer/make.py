"""Writes breast cancer data of four hospitals as Parquet files, and other patients as a CSV file.

    python examples/breast_cancer/make.py data

The data are those of scikit-learn (Wolberg, Street and Mangasarian: Breast Cancer Wisconsin, Diagnostic; 569 patients).
The hospitals differ in size and in their patients: large tumours are more frequent in some. A few measurements are
missing, and the side is made up, so that there is a column of categories.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import csv, parquet
from sklearn.datasets import load_breast_cancer

HOSPITALS = {"north": 80, "south": 100, "east": 120, "west": 155}
"""Patients of each hospital; the other 114 are in patients.csv."""


def make(folder: Path) -> None:
    """Writes the files; the same at each call."""
    data, generator = load_breast_cancer(), np.random.default_rng(17)
    count = len(data.target)
    columns: dict[str, Any] = {"patient": pa.array([f"P{number:04d}" for number in range(count)])}
    for position, name in enumerate(data.feature_names):
        columns[name.replace(" ", "_")] = pa.array(data.data[:, position], mask=generator.random(count) < 0.03)
    side = np.array(["left", "right"])[generator.integers(0, 2, count)]
    columns["side"] = pa.array(side, mask=generator.random(count) < 0.05)
    columns["diagnosis"] = pa.array([str(data.target_names[number]) for number in data.target])
    table = pa.table(columns)

    order = generator.permutation(count)
    others, own = order[: count - sum(HOSPITALS.values())], order[count - sum(HOSPITALS.values()) :]
    own = own[np.argsort(data.data[own, 0] + generator.normal(0, 6, len(own)), kind="stable")]  # by radius, and chance
    folder.mkdir(parents=True, exist_ok=True)
    start = 0
    for name, size in HOSPITALS.items():
        parquet.write_table(table.take(np.sort(own[start : start + size])), folder / f"{name}.parquet")
        start += size
    csv.write_csv(table.take(np.sort(others)), folder / "patients.csv")


if __name__ == "__main__":
    make(Path(sys.argv[1] if len(sys.argv) > 1 else "data"))
