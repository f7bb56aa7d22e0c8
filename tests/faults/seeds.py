"""The seeds of disturbed sessions: other ones with every commit, the same ones for one commit.

The first comes from the commit, so that CI draws new faults with each change and a failure can be repeated.
`FEDPIPE_FAULT_SEED` sets it; `FEDPIPE_FAULTS` sets how many sessions of processes are disturbed.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

COUNT = int(os.environ.get("FEDPIPE_FAULTS", "24"))
"""Sessions of real processes; the simulated ones are ten times as many."""


def _first() -> int:
    if chosen := os.environ.get("FEDPIPE_FAULT_SEED"):
        return int(chosen)
    command = ["git", "rev-parse", "HEAD"]
    commit = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False).stdout
    return int(commit[:7] or "0", 16)  # without git there is no commit


FIRST = _first()


def drawn(part: int, parts: int, count: int) -> range:
    """The seeds of one of several parts."""
    return range(FIRST + part, FIRST + count, parts)


def how_to_repeat(seed: int) -> str:
    """The settings with which a test of faults begins with this seed."""
    return f"FEDPIPE_FAULT_SEED={seed} FEDPIPE_FAULTS=1"
