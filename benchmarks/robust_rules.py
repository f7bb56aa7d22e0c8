"""Robust rules over ten updates of 100 MB held in memory, compared with Flower's, and the memory of their step."""

from __future__ import annotations

from typing import Any

from benchmarks.measure import Row, at_least, median, script
from benchmarks.memory import extra_bytes, memory_row

STEPS: dict[str, dict[str, Any]] = {
    "median": {"rule": "median"},
    "krum": {"rule": {"name": "krum", "byzantine": 2}},
    "clip, mixing, trimmed_mean": {
        "before": [{"name": "clip", "quantile": 0.8}, {"name": "nearest_neighbour_mixing", "byzantine": 2}],
        "rule": {"name": "trimmed_mean", "share": 0.2},
    },
}
NAMES = ("median", "trimmed_mean", "krum")


def run() -> list[Row]:
    """Throughput in MB of updates per second."""
    ours, flower = script("ours", "peers/robust_ours.py"), script("bench", "peers/robust_flower.py")
    rows = [
        at_least(
            f"{name} of 10 x 100 MB", 1000 / median(ours[name]), 1000 / median(flower[name]), "flower", 5.0, "MB/s"
        )
        for name in NAMES
    ]
    sections = [{"algorithm": {"name": "averaging", **algorithm}} for algorithm in STEPS.values()]
    found = extra_bytes(10, *sections, repeats=3)
    return rows + [memory_row(f"10 learners, {name}", extra) for name, extra in zip(STEPS, found, strict=True)]
