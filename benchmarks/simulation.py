"""A simulation of softmax regression and a bare TFF script of the same: rounds and start."""

from __future__ import annotations

import subprocess

from benchmarks.local_run import ours, peer
from benchmarks.measure import PYTHONS, REPEATS, Row, at_most, median, quiet, timed

_START = 0.5
"""Seconds beyond TFF's import within which the first round should begin."""


def run() -> list[Row]:
    """Rounds without the first, in which TFF loads the computation, and the time before the first."""
    mine, bare, imports = [], [], []
    for _ in range(REPEATS):
        mine.append(ours("simulate"))
        bare.append(peer("tff", "run_tff.py"))
        imports.append(timed(_import))
    if abs(mine[-1]["accuracy"] - bare[-1]["accuracy"]) > 0.1:
        raise RuntimeError("the two did not learn the same")
    rounds = [median([m["round"] for m in mine]), median([median(m["rounds"][1:]) for m in bare])]
    start, first = median([m["start"] for m in mine]), median([m["seconds"] - sum(m["rounds"]) for m in bare])
    imported = median(imports)
    more = start - imported
    return [
        at_most("a simulated round, 10 clients", rounds[0], rounds[1], "bare TFF", 1.1),
        at_most("a simulation's start", start, first, "bare TFF", 1.1),
        Row(
            "the same",
            f"{start:.3f} s",
            f"import TFF {imported:.3f} s",
            round(more, 3),
            "<= 0.5 s more",
            more <= _START,
        ),
    ]


def _import() -> None:
    command = [PYTHONS["tff"], "-c", "import tensorflow_federated"]
    subprocess.run(command, check=True, env=quiet(), capture_output=True)
