"""Robust rules over ten updates of 100 MB held in memory, compared with Flower's, and the memory of their step."""

from __future__ import annotations

from benchmarks.measure import Row, at_least, median, script

NAMES = ("median", "trimmed_mean", "krum")


def run() -> list[Row]:
    """Throughput in MB of updates per second."""
    rows = []
    for name in NAMES:
        ours, flower = (
            1000 / median(script(environment, f"peers/robust_{who}.py", name)["seconds"])
            for who, environment in (("ours", "ours"), ("flower", "bench"))
        )
        rows.append(at_least(f"{name} of 10 x 100 MB", ours, flower, "flower", 5.0, "MB/s"))
    return rows
