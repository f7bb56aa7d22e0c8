"""Updates in int8 and bfloat16: their bytes compared with float32's, and the accuracy that the digits lose over 30 rounds."""

from __future__ import annotations

import tempfile
from pathlib import Path
from statistics import fmean

import numpy as np

import fedpipe
from benchmarks.measure import Row
from fedpipe import weights
from fedpipe.aggregation.encoding import encode
from fedpipe.commands.init import Algorithm, Framework, init
from fedpipe.federation.exchange import Exchange

SEEDS = range(5)
ROUNDS = 30
SHAPES = {"dense1": (784, 128), "bias1": (128,), "dense2": (128, 10), "bias2": (10,)}


def run() -> list[Row]:
    """Bytes and points of accuracy."""
    whole = [accuracy(None, seed) for seed in SEEDS]
    rows = []
    for dtype, most in (("int8", 0.26), ("bfloat16", 0.51)):
        ours, other = size(Exchange(dtype=dtype)), size(None)  # type: ignore[arg-type]
        ratio = ours / other
        rows.append(
            Row(f"update of a 784-128-10 network, changes in {dtype}", f"{ours} B", f"float32 {other} B", round(ratio, 3),
                f"<= {most}", ratio <= most)
        )  # fmt: skip
        found = [accuracy(dtype, seed) for seed in SEEDS]
        lost = 100 * (fmean(whole) - fmean(found))
        rows.append(
            Row(f"digits, {ROUNDS} rounds, mean of {len(SEEDS)} seeds, changes in {dtype}", f"{100 * fmean(found):.2f} %",
                f"float32 {100 * fmean(whole):.2f} %", round(lost, 2), "<= 0.2 points lost", lost <= 0.2)
        )  # fmt: skip
    return rows


def size(exchange: Exchange | None) -> int:
    """Bytes of an update."""
    rng = np.random.default_rng(0)
    base = {name: rng.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}
    after = {name: (value + rng.normal(size=value.shape) * 0.01).astype(np.float32) for name, value in base.items()}
    sent = after if exchange is None else encode(exchange, after, base, {}, rng).update
    return len(weights.dumps(sent))


def accuracy(dtype: str | None, seed: int) -> float:
    """Accuracy on the central test set of the default federation in NumPy."""
    with tempfile.TemporaryDirectory() as folder:
        init(Path(folder), Algorithm.averaging, Framework.numpy)
        file = Path(folder) / "federation.yaml"
        more = f"  exchange: {{as: delta, dtype: {dtype}}}\n" if dtype else ""
        changed = (
            file.read_text()
            .replace("  rounds: 10", f"{more}  rounds: {ROUNDS}")
            .replace("  seed: 1\n", f"  seed: {seed}\n")
        )
        file.write_text(changed)
        found = fedpipe.run(file, out=Path(folder) / "out")
        return float(found.summary["evaluation"]["central"]["metrics"]["accuracy"])
