"""The memory of a run with fifty learners on this machine: all of its processes together."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

from benchmarks.measure import Row, at_most, ended, marked, quiet

LEARNERS = 50
ROUNDS = 5
BOUND = 3 * 1024.0
"""MiB."""


def run() -> list[Row]:
    """The demo with its convolutions, and 36 examples a learner."""
    with tempfile.TemporaryDirectory() as folder:
        fedpipe, file = str(Path(sys.executable).parent / "fedpipe"), Path(folder) / "federation.yaml"
        subprocess.run([fedpipe, "init", folder, "--force"], check=True, capture_output=True, env=quiet())
        content = yaml.safe_load(file.read_text())
        content["learners"] = [{"name": f"learner-{number:02}"} for number in range(LEARNERS)]
        content["data"]["shards"] = {"by": "iid"}
        content["training"]["rounds"] = ROUNDS
        content["quorum"] = {"min_learners": LEARNERS}
        file.write_text(yaml.safe_dump(content))
        peak = _peak([fedpipe, "run", str(file), "--out", f"{folder}/out"])
    what = f"the demo with {LEARNERS} learners on this machine: memory of all processes"
    return [at_most(what, peak, BOUND, "bound", 1.0, "MiB")]


def _peak(command: list[str]) -> float:
    """MiB that a command and all that it starts have at most; what several share counts once."""
    peak = 0.0
    with ended(quiet()) as environment:
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None:
            peak = max(peak, sum(map(_share, marked(environment))))
            time.sleep(0.1)
    if process.returncode:
        raise RuntimeError("the run failed")
    return peak


def _share(process: Path) -> float:
    """MiB of a process, of which what it shares with others is divided by their number (`Pss`)."""
    with contextlib.suppress(OSError):
        for line in (process / "smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) / 1024
    return 0.0
