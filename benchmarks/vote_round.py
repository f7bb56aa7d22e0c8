"""A round of collective learning in the local engine, and a bare Keras loop that trains and evaluates the same."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.measure import REPEATS, Row, at_most, median, quiet

BARE = """
import sys, time
from pathlib import Path
import numpy as np
from fedpipe.federation.file import read_federation
from fedpipe.data.shards import dealt
federation = read_federation(Path(sys.argv[1]))
parts, _ = dealt(federation, federation.data.uri)
import tensorflow as tf
code = {}
exec(Path(sys.argv[1]).with_name("model.py").read_text(), code)
model = code["build"]()
training, names = federation.training, list(parts)
def batches(examples, shuffled=False):
    data = tf.data.Dataset.from_tensor_slices(tuple(examples))
    return (data.shuffle(len(examples.y)) if shuffled else data).batch(training.batch_size)
def round_of(number):
    proposer = parts[names[number % len(names)]]
    model.fit(batches(proposer["train"], True), epochs=training.local_epochs, verbose=0)
    for name in names:
        for part in ("vote", "test"):
            model.evaluate(batches(parts[name][part]), verbose=0)
round_of(0); round_of(1)
seconds = []
for number in range(2, 12):
    started = time.perf_counter()
    round_of(number)
    seconds.append(time.perf_counter() - started)
print(sorted(seconds)[len(seconds) // 2])
"""


def ours(folder: Path) -> float:
    """Median seconds of a round, from its first step's start to its tally's end; the first two warm up."""
    fedpipe = str(Path(sys.executable).parent / "fedpipe")
    command = [
        fedpipe,
        "run",
        str(folder / "federation.yaml"),
        "--store",
        str(folder / "s"),
        "--out",
        str(folder / "o"),
    ]
    subprocess.run(command, check=True, capture_output=True, env=quiet())
    rounds = json.loads((folder / "o" / "summary.json").read_text())["rounds"]
    return median([r["seconds"] for r in rounds if r["round"] > 2])


def bare(folder: Path) -> float:
    """Median seconds of the same training and evaluations, one after another in one process."""
    command = [sys.executable, "-c", BARE, str(folder / "federation.yaml")]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=quiet())
    return float(done.stdout.strip().splitlines()[-1])


def run() -> list[Row]:
    """Both in turn, each from a fresh start."""
    mine, theirs = [], []
    for _ in range(REPEATS):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            fedpipe = str(Path(sys.executable).parent / "fedpipe")
            make = [fedpipe, "init", name, "--algorithm", "collective", "--force"]
            subprocess.run(make, check=True, capture_output=True, env=quiet())
            theirs.append(bare(folder))
            mine.append(ours(folder))
    what = "a round of votes, 5 learners, digits"
    return [at_most(what, median(mine), median(theirs), "bare Keras, train and evaluate all", 1.1)]
