"""Cuts breast cancer data between three parties, which hold different columns about the same patients.

    python examples/split/cut_table.py three-parties --run

writes the tables, the federation and its model to a folder, and runs it: `fedpipe run three-parties/federation.yaml`.
The data are those of scikit-learn (Wolberg, Street and Mangasarian: Breast Cancer Wisconsin, Diagnostic; 569 patients).
`imaging` measures size and symmetry of the largest cells, `pathology` their texture and shape. `registry` diagnoses:
1 is malignant.
"""

from __future__ import annotations

import argparse
import csv
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from sklearn.datasets import load_breast_cancer

LARGEST = "worst "
"""Begins the columns about the largest cells of a patient. Others have means and errors of all cells."""
SIZES = ("radius", "perimeter", "area", "symmetry")
"""Measurements of `imaging`; `pathology` has the others."""


def write(path: Path, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Write a table."""
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])


def make(folder: Path) -> None:
    """Write the files; the same at each call."""
    data = load_breast_cancer()
    names = [str(name) for name in data.feature_names]
    patients = [f"P{number:04d}" for number in range(len(data.target))]
    largest = [k for k, name in enumerate(names) if name.startswith(LARGEST)]
    sizes = [k for k in largest if any(word in names[k] for word in SIZES)]
    others = [k for k in largest if k not in sizes]
    folder.mkdir(parents=True, exist_ok=True)
    for party, columns in (("imaging", sizes), ("pathology", others)):
        rows = [[patient, *data.data[row, columns]] for row, patient in enumerate(patients)]
        write(folder / f"{party}.csv", ["patient", *(names[k] for k in columns)], rows)
    diagnoses = [[patient, int(malignant)] for patient, malignant in zip(patients, data.target == 0, strict=True)]
    write(folder / "registry.csv", ["patient", "malignant"], diagnoses)


def main() -> int:
    """Write a folder, and run its federation if asked to."""
    parser = argparse.ArgumentParser(description="Cuts breast cancer data between three parties.")
    parser.add_argument("folder", type=Path, help="where everything is written")
    parser.add_argument("--run", action="store_true", help="run the federation afterwards")
    given = parser.parse_args()
    make(given.folder)
    here = Path(__file__).resolve().parent
    if given.folder.resolve() != here:
        for name in ("federation.yaml", "parts.py"):
            shutil.copy(here / name, given.folder)
    if not given.run:
        return 0
    out = given.folder / "out"
    command = [sys.executable, "-m", "fedpipe", "run", str(given.folder / "federation.yaml"), "--out", str(out)]
    return subprocess.run(command, check=False).returncode  # noqa: S603  (our own command)


if __name__ == "__main__":
    sys.exit(main())
