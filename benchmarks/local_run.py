"""A local run of softmax regression up to the last round, compared with TFF's and Flower's simulation."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measure import PYTHONS, REPEATS, ROOT, Row, at_most, ended, median, quiet

sys.path.insert(0, str(ROOT / "benchmarks" / "peers"))
from softmax import BATCH, EPOCHS, LEARNERS, RATE, ROUNDS, data

MODEL = f"""
import keras

def build():
    model = keras.Sequential([keras.Input((784,)), keras.layers.Dense(10, activation="softmax")])
    model.compile(keras.optimizers.SGD({RATE}), "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model
"""


def write_federation(folder: Path, rounds: int = ROUNDS) -> Path:
    """The same problem as a federation, for a run or a simulation."""
    x, y = data()
    np.savez(folder / "data.npz", x=x, y=y)
    (folder / "model.py").write_text(MODEL)
    learners = ", ".join(f"{{name: learner-{k}}}" for k in range(LEARNERS))
    (folder / "federation.yaml").write_text(
        f"name: softmax\nstore: store\nlearners: [{learners}]\n"
        f"data: {{uri: data.npz, parts: {{train: 1.0, vote: 0.0, test: 0.0}}}}\n"
        f"training: {{rounds: {rounds}, batch_size: {BATCH}, local_epochs: {EPOCHS}, tensorboard: false}}\n"
        "evaluation: {holdout: 0.0, every_round: false}\nsimulation: {test_every: 0}\n"
    )
    return folder / "federation.yaml"


def ours(act: str = "run", rounds: int = ROUNDS) -> dict[str, Any]:
    """Seconds from the start of `fedpipe run` (or `simulate`) to the end of the last round, and of each round."""
    with tempfile.TemporaryDirectory() as folder:
        file = write_federation(Path(folder), rounds)
        command = [str(Path(sys.executable).parent / "fedpipe"), act, str(file), "--out", f"{folder}/out"]
        started = time.time()
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=quiet())
        assert process.stdout is not None
        end = 0.0
        for line in process.stdout:
            if f"round {rounds} of {rounds}" in line:
                end = time.time()
        if process.wait() or not end:
            raise RuntimeError("the run failed")
        summary = json.loads((Path(folder) / "out" / "summary.json").read_text())
    seconds = [r["seconds"] for r in summary["rounds"]]
    return {
        "seconds": end - started,
        "start": end - started - sum(seconds),
        "round": median(seconds[1:]),
        "accuracy": summary["rounds"][-1]["metrics"]["accuracy"],
    }


def peer(environment: str, name: str, rounds: int = ROUNDS) -> dict[str, Any]:
    """Seconds from process start to the end of the last round."""
    command = [PYTHONS[environment], str(ROOT / "benchmarks/peers" / name)]
    started = time.time()
    with ended({**quiet(), "ROUNDS": str(rounds)}) as marked:  # TFF and Ray leave processes behind
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL, text=True, env=marked
        )
        assert process.stdout is not None
        found = next((json.loads(line) for line in process.stdout if line.startswith('{"accuracy"')), None)
    process.stdout.close()
    process.wait()
    if found is None:
        raise RuntimeError(f"{name} failed")
    return {**found, "seconds": found["end"] - started}


def bare_loop() -> float:
    """Seconds of the same training in a bare Keras loop, one learner after another, after TensorFlow's import."""
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT / 'benchmarks/peers')!r})\n{MODEL}\n"
        "from softmax import *\nimport time, numpy as np\nx, y = data(); model = build(); shared = model.get_weights()\n"
        "def play():\n    global shared\n    new = []\n    for k in range(LEARNERS):\n"
        "        part = slice(k * EXAMPLES, (k + 1) * EXAMPLES); model.set_weights(shared)\n"
        "        model.fit(x[part], y[part], epochs=EPOCHS, batch_size=BATCH, verbose=0); new.append(model.get_weights())\n"
        "    shared = [np.mean(w, axis=0) for w in zip(*new)]\n"
        "play(); started = time.time()\nfor _ in range(3): play()\nprint((time.time() - started) / 3)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=quiet())
    return float(done.stdout.strip().splitlines()[-1])


def run() -> list[Row]:
    """The whole, for few and for many rounds, and what a round costs beyond training."""
    rows, few = _rows(ROUNDS, REPEATS, REPEATS)
    many, _ = _rows(100, 3, 1)
    round_seconds, bare = median([m["round"] for m in few]), bare_loop()
    loop, ratio = f"bare Keras loop, one process {bare:.3f} s", round(round_seconds / bare, 3)
    return [*rows, *many, Row("a round of it, all in", f"{round_seconds:.3f} s", loop, ratio, "stated", True)]


def _rows(rounds: int, repeats: int, repeats_of_flower: int) -> tuple[list[Row], list[dict[str, Any]]]:
    """The comparisons with both peers, and our runs; a hundred rounds of Flower take minutes."""
    mine, tff, flower = [], [], []
    for number in range(repeats):
        mine.append(ours(rounds=rounds))
        tff.append(peer("tff", "run_tff.py", rounds))
        if number < repeats_of_flower:
            flower.append(peer("bench", "run_flower.py", rounds))
    accuracies = [m[-1]["accuracy"] for m in (mine, tff, flower)]
    if max(accuracies) - min(accuracies) > 0.1:
        raise RuntimeError(f"the three did not learn the same: {accuracies}")
    seconds = [median([m["seconds"] for m in runs]) for runs in (mine, tff, flower)]
    what = f"softmax, 10 learners, {rounds} rounds"
    once = ", one run" if repeats_of_flower == 1 else ""
    rows = [
        at_most(what, seconds[0], seconds[1], "TFF simulation", 0.6),
        at_most(what, seconds[0], seconds[2], f"Flower simulation{once}", 0.2),
    ]
    return rows, mine
