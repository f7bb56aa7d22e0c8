"""Measures in separate processes, with their own environments: medians of five."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
REPEATS = 5
PYTHONS = {
    "ours": sys.executable,
    "bench": str(ROOT / ".venv-bench/bin/python"),
    "tff": str(ROOT / ".venv-tff/bin/python"),
}
MIB = 2**20
_MARK = "FEDPIPE_BENCHMARK"


class Row(NamedTuple):
    """A figure: ours and a peer's or a bound's, the ratio, and the goal."""

    what: str
    ours: str
    other: str
    ratio: float
    goal: str
    reached: bool


def median(values: list[float]) -> float:
    """The median."""
    return statistics.median(values)


def at_most(what: str, ours: float, other: float, name: str, goal: float, unit: str = "s") -> Row:
    """A row whose ratio ours / other should not be above the goal."""
    ratio = ours / other
    return Row(what, f"{ours:.3f} {unit}", f"{name} {other:.3f} {unit}", round(ratio, 3), f"<= {goal}", ratio <= goal)


def at_least(what: str, ours: float, other: float, name: str, goal: float, unit: str) -> Row:
    """A row whose ratio ours / other should not be below the goal."""
    ratio = ours / other
    return Row(what, f"{ours:.1f} {unit}", f"{name} {other:.1f} {unit}", round(ratio, 3), f">= {goal}", ratio >= goal)


def resident(name: str = "VmRSS") -> int:
    """`VmRSS` or its peak, `VmHWM`, of this process in bytes; `ru_maxrss` would begin with the parent's."""
    line = next(text for text in Path("/proc/self/status").read_text().splitlines() if text.startswith(name))
    return int(line.split()[1]) * 1024


def timed(act: Callable[[], Any]) -> float:
    """Seconds that an act takes."""
    started = time.perf_counter()
    act()
    return time.perf_counter() - started


def repeated(*acts: Callable[[], Any], repeats: int = REPEATS) -> list[float]:
    """Median seconds of each act; acts take turns, so that a slow moment of the machine meets all."""
    times: list[list[float]] = [[] for _ in acts]
    for act in acts:
        act()
    for _ in range(repeats):
        for kept, act in zip(times, acts, strict=True):
            kept.append(timed(act))
    return [median(t) for t in times]


def script(environment: str, path: str, *arguments: object) -> dict[str, Any]:
    """Runs a script of this folder and reads the JSON of its last line. Raises RuntimeError with its output."""
    command = [PYTHONS[environment], str(ROOT / "benchmarks" / path), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=quiet(), stdin=subprocess.DEVNULL)
    if done.returncode:
        raise RuntimeError(f"{path} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


@contextlib.contextmanager
def ended(environment: dict[str, str]) -> Iterator[dict[str, str]]:
    """Marks an environment, and kills all processes that have it at the end, also when the benchmark is stopped."""
    mine = {**environment, _MARK: uuid.uuid4().hex}
    try:
        yield mine
    finally:
        for _ in range(3):  # one that was just started is found the next time
            for process in marked(mine):
                with contextlib.suppress(OSError):
                    os.kill(int(process.name), signal.SIGKILL)


def marked(environment: dict[str, str]) -> Iterator[Path]:
    """The folders in /proc of all processes that were started with a marked environment (`ended`)."""
    mark = f"{_MARK}={environment[_MARK]}".encode()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if mark in (process / "environ").read_bytes().split(b"\0"):
                yield process


def quiet() -> dict[str, str]:
    """An environment in which frameworks say little and use no GPU, and scripts find this package."""
    paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH", ""))))
    return {
        **os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1", "RAY_DEDUP_LOGS": "0",
        "PYTHONPATH": paths,
    }  # fmt: skip
