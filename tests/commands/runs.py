"""Helpers for tests of whole runs; `python -m tests.commands.runs FILE STORE WHAT COUNT` is a run that dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import fedpipe
from fedpipe.engine.local import Event
from fedpipe.store import Store, open_store

ROOT = Path(__file__).parents[2]


def store_of(place: Path | str) -> Store:
    """Returns the part of a store that belongs to the federation of `fedpipe init`."""
    return open_store(str(place)).below("digits")


def records(summary: dict[str, Any]) -> list[str]:
    """Returns the digests of a run's records."""
    return [entry["record"] for entry in summary["rounds"]]


def run_killed(file: Path, store: Path, what: str, count: int) -> None:
    """Runs a federation in a process that kills itself and its workers at the `count`-th event of a kind.

    Args:
        file: the federation file.
        store: a folder.
        what: an event such as `train done`, or a moment of the coordinator such as `coordinate closed`.
        count: from 1.
    """
    command = [sys.executable, "-m", "tests.commands.runs", str(file), str(store), what, str(count)]
    done = subprocess.run(command, cwd=ROOT, start_new_session=True, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr


def main() -> None:
    """Runs, and kills the process group in the middle."""
    file, store, what, count = sys.argv[1:]
    left = int(count)

    def listen(event: Event) -> None:
        nonlocal left
        left -= f"{event.task.step} {event.moment.what if event.moment else event.what}" == what
        if not left:
            os.killpg(0, signal.SIGKILL)

    with tempfile.TemporaryDirectory() as out:
        fedpipe.run(file, store=store, out=out, listener=listen)


if __name__ == "__main__":
    main()
