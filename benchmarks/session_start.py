"""How soon a session of pods trains: its steps start together, or each in its turn.

Each step is a process with its supervising parent, as in a pod. Kubeflow adds about 20 s for each step in a row, of which
there is one until the learners train if all start together, and three otherwise.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from tests.steps.pods import Pods

from benchmarks.measure import REPEATS, Row, at_most, median, quiet
from fedpipe.rounds.timings import Timing, read_timings
from fedpipe.store import open_store

LEARNERS = ("hospital-a", "hospital-b")
"""As many as this machine has cores: on a cluster, each learner has its own."""
ROUNDS = 8
SESSION = ("shard", "initialise", "coordinate", "learn")
GOAL = 3.0
KUBEFLOW = 20.0
"""Seconds that KFP 2.17 takes to start a step (docs/kubeflow.md)."""


class Start(NamedTuple):
    """Seconds of a job: until its learners train, of its first round, and of a later one."""

    until_training: float
    first: float
    later: float


def run() -> list[Row]:
    """The rows: both ways in turn, each job from an empty store."""
    os.environ.update(quiet())
    with tempfile.TemporaryDirectory() as folder:
        _make(Path(folder))
        jobs = [
            (_started(Path(folder), early=True, number=number), _started(Path(folder), early=False, number=number))
            for number in range(REPEATS)
        ]
    together, in_turn = (
        Start(*map(median, map(list, zip(*starts, strict=True)))) for starts in zip(*jobs, strict=True)
    )
    what = "the first round of a session of pods, steps start together"
    there, other = together.until_training + KUBEFLOW, in_turn.until_training + 3 * KUBEFLOW
    until = f"until its learners train, with Kubeflow's {KUBEFLOW:.0f} s for each step in a row"
    return [
        at_most(what, together.first, together.later, "a later round", GOAL),
        at_most("the same, each step in its turn", in_turn.first, in_turn.later, "a later round", GOAL)._replace(
            goal="stated", reached=True
        ),
        at_most(until, there, other, "each step in its turn", 1.0),
    ]


def _make(folder: Path) -> None:
    """Writes the demo, with two learners."""
    fedpipe = str(Path(sys.executable).parent / "fedpipe")
    subprocess.run([fedpipe, "init", str(folder), "--force"], check=True, capture_output=True)
    content = yaml.safe_load((folder / "federation.yaml").read_text())
    content |= {"learners": [{"name": name} for name in LEARNERS]}
    content["training"] |= {"rounds": ROUNDS}
    content["quorum"] |= {"min_learners": len(LEARNERS)}
    (folder / "federation.yaml").write_text(yaml.safe_dump(content))


def _started(folder: Path, *, early: bool, number: int) -> Start:
    """Runs a job up to the end of its session."""
    name = f"{'together' if early else 'in-turn'}-{number}"
    placement = {} if early else {step: {"early": False} for step in SESSION[1:]}
    pipeline, store = folder / f"{name}.yaml", f"file://{folder}/{name}"
    _compile(folder / "federation.yaml", pipeline, placement)
    begun = time.time()
    ended = Pods(pipeline, folder / f"{name}-pods", {"run": "r1", "store": store}, name).run(*SESSION)
    if failed := {step: one.log[-2000:] for step, one in ended.items() if one.code}:
        raise RuntimeError(f"{name}: {failed}")
    timings = list(read_timings(open_store(store).below("digits"), "r1", LEARNERS))
    training = min(one.started for one in timings if one.step == "train")
    rounds = [_seconds(timings, number) for number in range(1, ROUNDS + 1)]
    return Start(training - begun, rounds[0], median(rounds[1:]))


def _compile(file: Path, pipeline: Path, placement: dict[str, Any]) -> None:
    from fedpipe.commands.compile import compile as write

    content = yaml.safe_load(file.read_text()) | {"placement": placement}
    changed = file.with_name("changed.yaml")
    changed.write_text(yaml.safe_dump(content))
    write(changed, pipeline)


def _seconds(timings: list[Timing], number: int) -> float:
    """Seconds of a round, from the coordinator's request to the commit."""
    own = [one for one in timings if one.round == number and one.step in ("await-train", "aggregate")]
    return max(one.started + one.seconds for one in own) - min(one.started for one in own)
