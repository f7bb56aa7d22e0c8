"""The table of examples/split: split learning, the uncut network on the joined table, and each hospital alone.

    python -m benchmarks.split_table [SEEDS]

Each number is a mean over seeds, with the lowest and the highest. A seed draws the held-out patients, the first weights
and the batches. The network alone has the bottom of that hospital and a top of the same kind.
"""

from __future__ import annotations

import hashlib
import re
import runpy
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from msgspec.structs import replace

import fedpipe
from benchmarks.measure import ROOT
from fedpipe.federation.federation import Federation
from fedpipe.federation.file import read_federation
from fedpipe.learners.keras.cut import CutKeras
from fedpipe.learners.party import held_rows

EXAMPLE = ROOT / "examples" / "split"
SEEDS = 5
EPOCHS = 30
HOSPITALS = ("imaging", "pathology")


def made(folder: Path, seed: int) -> Path:
    """Write the example with another seed, and return the file."""
    runpy.run_path(str(EXAMPLE / "cut_table.py"))["make"](folder)
    shutil.copy(EXAMPLE / "parts.py", folder)
    text = (EXAMPLE / "federation.yaml").read_text()
    assert "seed: 1}" in text
    (folder / "federation.yaml").write_text(text.replace("seed: 1}", f"seed: {seed}}}"))
    return folder / "federation.yaml"


def central(federation: Federation, code: str, parties: Sequence[str], seed: int) -> float:
    """Return the accuracy on held-out patients of a network that is not cut, with the columns of some hospitals."""
    columns = {name: held_rows(federation, name, None).x.shape[1] for name in parties}  # type: ignore[union-attr]
    data = re.sub(r"COLUMNS = {.*}", f"COLUMNS = {columns}", code).encode()
    present = tuple(one for one in federation.learners if one.name in (*parties, "registry"))
    adapter, digest = CutKeras(replace(federation, learners=present)), f"sha256:{hashlib.sha256(data).hexdigest()}"
    model = adapter.build(data, digest, "", federation.training)
    held = {name: held_rows(federation, name, None) for name in (*parties, "registry")}
    parts, y = held["registry"].parts, held["registry"].y
    assert y is not None

    def rows(part: str) -> object:
        found = [held[name].x[parts[part]] for name in parties]  # type: ignore[index]
        return found if len(found) > 1 else found[0]

    model.reset(seed)
    size = federation.training.batch_size
    model.keras.fit(rows("train"), y[parts["train"]], epochs=EPOCHS, batch_size=size, verbose=0)
    return float(model.keras.evaluate(rows("test"), y[parts["test"]], verbose=0, return_dict=True)["accuracy"])


def main() -> None:
    """Print the lines of the table in docs/split-learning.md."""
    found: dict[str, list[float]] = {}
    for seed in range(1, (int(sys.argv[1]) if len(sys.argv) > 1 else SEEDS) + 1):
        with tempfile.TemporaryDirectory() as folder:
            file = made(Path(folder), seed)
            summary = fedpipe.run(file, out=Path(folder) / "out").summary
            found.setdefault("split learning", []).append(summary["evaluation"]["federated"]["metrics"]["accuracy"])
            federation, code = read_federation(file), (EXAMPLE / "parts.py").read_text()
            for parties in (HOSPITALS, *((name,) for name in HOSPITALS)):
                found.setdefault(" and ".join(parties), []).append(central(federation, code, parties, seed))
            print(f"seed {seed}: {', '.join(f'{name} {values[-1]:.3f}' for name, values in found.items())}", flush=True)
    for name, values in found.items():
        print(f"| {name} | {np.mean(values):.3f} ({min(values):.3f} to {max(values):.3f}) |", flush=True)


if __name__ == "__main__":
    main()
