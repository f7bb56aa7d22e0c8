"""Extra peak memory of the aggregate step for 2 to 64 learners with a model of 100 MB."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from benchmarks.aggregate_step import begin_again, forget_round, prepare
from benchmarks.measure import MIB, REPEATS, Row, median, script
from fedpipe.store import open_store

MODEL = 100e6
COUNTS = (2, 8, 32, 64)
BOUND = 2.5 * MODEL + 64 * MIB


def extra_bytes(learners: int, *sections: dict[str, Any], repeats: int = REPEATS) -> list[float]:
    """Median peaks of the step's process above what it was before, over several processes.

    Args:
        learners: of the round.
        sections: of the federation file, for each of the medians.
        repeats: processes.
    """
    found = []
    with tempfile.TemporaryDirectory() as folder:
        store = open_store(f"{folder}/store")
        prepare(store, Path(folder), learners)
        for more in sections:
            plan, base = begin_again(store, learners, **more)
            peaks = []
            for _ in range(repeats):
                peaks.append(script("ours", "step_memory.py", f"{folder}/store", base, plan.digest)["extra"])
                forget_round(store)
            found.append(median(peaks))
    return found


def memory_row(what: str, extra: float) -> Row:
    """The extra memory of a step, compared with the bound."""
    return Row(
        f"extra memory of the aggregate step, {what}", f"{extra / 1e6:.1f} MB", f"bound {BOUND / 1e6:.0f} MB",
        round(extra / BOUND, 3), "<= 1", extra <= BOUND,
    )  # fmt: skip


def run() -> list[Row]:
    """At most 2.5 models + 64 MiB, and a slope below 1 % of a model per learner."""
    found = {n: extra_bytes(n, {})[0] for n in COUNTS}
    rows = [memory_row(f"{count} learners", extra) for count, extra in found.items()]
    slope = 100 * (found[64] - found[2]) / 62 / MODEL
    rows.append(
        Row("growth per learner", f"{slope:.3f} % of a model", "bound 1 %", round(slope, 4), "<= 1", slope <= 1)
    )
    return rows
