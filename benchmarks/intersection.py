"""Private set intersection of a million ids with a million, of which half are common, as `fedpipe run` does it."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.measure import Row, at_most, quiet
from fedpipe.rounds.history import history
from fedpipe.rounds.timings import find_timing
from fedpipe.store import open_store

FEDPIPE = str(Path(sys.executable).parent / "fedpipe")
IDS, GOAL = 1_000_000, 180.0
FILE = """
name: million
store: store
model: model.py
learners:
  - {name: alice, data: alice.npz}
  - {name: bob, data: bob.npz}
algorithm: {name: split, label_party: bob, ids: id, align: intersection, batch_size: BATCH}
training: {rounds: 1}
quorum: {deadline: 3600}
export: none
"""
MODEL = """
import keras

def bottom(party):
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile(optimizer="sgd")
    return model

def top():
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, activation="sigmoid")])
    model.compile(optimizer="sgd", loss="binary_crossentropy")
    return model
"""


def run() -> list[Row]:
    """The row: seconds of the phase at the slower party, with both on this machine and a folder as the store."""
    with tempfile.TemporaryDirectory() as folder:
        seconds, common = measured(Path(folder), IDS)
    assert common == IDS // 2, common
    what = f"intersection of {IDS:,} ids with {IDS:,}, both parties on this machine"
    return [at_most(what, seconds, GOAL, "goal", 1.0)]


def measured(folder: Path, count: int) -> tuple[float, int]:
    """Seconds of the intersection of so many ids with so many, and how many were common."""
    random = np.random.default_rng(1)
    for party, first, name in (("alice", 0, "x"), ("bob", count // 2, "y")):
        ids = random.permutation(np.arange(first, first + count))
        values = random.normal(size=(count, 1)) if name == "x" else random.integers(0, 2, count)
        np.savez(folder / f"{party}.npz", **{"id": ids, name: values})
    (folder / "federation.yaml").write_text(FILE.replace("BATCH", str(count // 16)))
    (folder / "model.py").write_text(MODEL)
    command = [FEDPIPE, "run", str(folder / "federation.yaml"), "--out", str(folder / "out"), "-p", "run=r"]
    subprocess.run(command, check=True, env=quiet())
    store = open_store(f"file://{folder}/store").below("million")
    timings = [find_timing(store, "r", 0, "align", party) for party in ("alice", "bob")]
    record = history(store, "r")[1]
    assert record.aligned
    return max(timing.seconds for timing in timings if timing), record.aligned[0].common


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        print(measured(Path(temporary), int(sys.argv[1])))
