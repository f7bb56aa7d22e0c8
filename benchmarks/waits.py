"""Where a person waits: the demo, a finished run that is run again, `check` before and after it has passed, `--help`."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.measure import REPEATS, Row, at_most, median, quiet, timed

FEDPIPE = str(Path(sys.executable).parent / "fedpipe")
GOALS = {
    "`fedpipe check` of the demo": 6.0,
    "the same again, nothing changed": 2.0,
    "`fedpipe run` of the demo, from an empty folder": 20.0,
    "the same again, finished": 2.0,
    "`fedpipe --help`": 0.35,
}


def run() -> list[Row]:
    """The rows: seconds, compared with the goals; the limit of the first is TensorFlow's import."""
    with tempfile.TemporaryDirectory() as folder:
        times = list(zip(*[list(_waits(Path(folder))) for _ in range(REPEATS)], strict=True))
    found = zip(GOALS.items(), times, strict=True)
    return [at_most(what, median(list(seconds)), goal, "goal", 1) for (what, goal), seconds in found]


def _waits(folder: Path) -> Iterator[float]:
    """Yields the seconds of each command, without notes of earlier rehearsals."""
    cache, demo = folder / "cache", folder / "demo"
    for left in (cache, demo):
        shutil.rmtree(left, ignore_errors=True)
    environment = {**quiet(), "XDG_CACHE_HOME": str(cache)}

    def seconds(*arguments: str) -> float:
        command = [FEDPIPE, *arguments]
        return timed(lambda: subprocess.run(command, check=True, capture_output=True, env=environment, cwd=folder))

    seconds("init", str(demo))
    file = str(demo / "federation.yaml")
    yield seconds("check", file)
    yield seconds("check", file)
    shutil.rmtree(cache)
    yield seconds("run", file, "--out", str(folder / "out"))
    yield seconds("run", file, "--out", str(folder / "out"))
    yield seconds("--help")
