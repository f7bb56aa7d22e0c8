"""Runs the benchmarks, prints a table and writes `benchmarks/results.json`."""

from __future__ import annotations

import importlib
import json
import os
import platform
import signal
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

NAMES = (
    "mean",
    "robust_rules",
    "robustness",
    "exchange",
    "aggregate_step",
    "memory",
    "transfer",
    "start",
    "waits",
    "local_run",
    "many_learners",
    "simulation",
    "vote_round",
    "session",
    "session_start",
    "site",
    "serving",
    "hostile",
    "many_runs",
    "kubeflow_runs",
    "differing",
    "secure",
    "split",
    "intersection",
    "large",
)
LONG = ("large",)
"""Benchmarks that run only when they are named: they take half an hour or more."""
RESULTS = Path(__file__).parent / "results.json"
PAGE = Path(__file__).parent / "README.md"
MARKS = ("<!-- figures -->", "<!-- end of figures -->")


def main() -> int:
    """`python -m benchmarks [NAME ...]`; results of benchmarks that are not run again are kept."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that a stopped benchmark ends its processes
    chosen = sys.argv[1:] or [name for name in NAMES if name not in LONG]
    if unknown := set(chosen) - set(NAMES):
        print(f"unknown benchmark {sorted(unknown)[0]!r}; known: {', '.join(NAMES)}", file=sys.stderr)
        return 2
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    console = Console()
    for name in chosen:
        with console.status(name):
            rows = importlib.import_module(f"benchmarks.{name}").run()
        results[name] = [row._asdict() for row in rows]
    results["machine"] = {
        "cores": os.cpu_count(),
        "processor": platform.processor() or platform.machine(),
        "python": platform.python_version(),
    }
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")
    _write_page(results)
    table = Table("what", "ours", "compared with", "ratio", "goal", "reached")
    for name in NAMES:
        for row in results.get(name, []):
            reached = "[green]yes[/]" if row["reached"] else "[red]no[/]"
            table.add_row(row["what"], row["ours"], row["other"], f"{row['ratio']:g}", row["goal"], reached)
    console.print(table)
    return 0


def _write_page(results: dict[str, Any]) -> None:
    """Puts the figures into the README, between its markers."""
    lines = ["| what | ours | compared with | ratio | goal | reached |", "| --- | --- | --- | --- | --- | --- |"]
    for name in NAMES:
        for row in results.get(name, []):
            reached = "yes" if row["reached"] else "**no**"
            lines.append(
                f"| {row['what']} | {row['ours']} | {row['other']} | {row['ratio']:g} | {row['goal']} | {reached} |"
            )
    before, _, rest = PAGE.read_text().partition(MARKS[0])
    _, _, after = rest.partition(MARKS[1])
    PAGE.write_text("\n".join([before + MARKS[0], *lines, MARKS[1] + after]))


if __name__ == "__main__":
    sys.exit(main())
