"""Kills `fedpipe run` at random moments, and finds its processes ended, its store whole and the same model afterwards."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from fedpipe.rounds.history import read_record
from fedpipe.store import open_store
from tests.faults import seeds
from tests.federations import change
from tests.processes import COMMAND, LIMIT, assert_ended

SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM)
KILLS = max(4, seeds.COUNT * 3 // 10)
pytestmark = [pytest.mark.heavy]


def run(folder: Path, mark: dict[str, str]) -> subprocess.Popen[bytes]:
    with (folder / "output").open("ab") as output:
        return subprocess.Popen(
            [COMMAND, "run", "federation.yaml"], cwd=folder, stdout=output, stderr=output, env={**os.environ, **mark}
        )


def weights_of(folder: Path) -> str:
    store = open_store(f"file://{folder}/store")
    name = store.folders()[0]
    record = read_record(store.below(name), "run-1", 3)
    assert record is not None, (folder / "output").read_text()[-2000:]
    return record.weights


def test_killed_runs_leave_no_process_and_resume(numpy_digits: Path, tmp_path: Path) -> None:
    """A run is killed again and again until one is not, and has the weights of a run without faults."""
    change(numpy_digits, **{"rounds: 10": "rounds: 3"})
    undisturbed, moments = tmp_path / "undisturbed", random.Random(seeds.FIRST)
    shutil.copytree(numpy_digits, undisturbed)
    begun = time.monotonic()
    assert run(undisturbed, {}).wait(300) == 0
    lasts = time.monotonic() - begun
    expected, folder, killed, ended = weights_of(undisturbed), tmp_path / "killed", 0, 0
    while killed < KILLS or ended < 1:
        if not folder.exists():
            shutil.copytree(numpy_digits, folder)
        mark = {"STARTED_BY": f"{folder}-{killed}-{ended}"}
        running = run(folder, mark)
        with contextlib.suppress(subprocess.TimeoutExpired):
            running.wait(moments.uniform(0.05, 1.2) * lasts if killed < KILLS else 300)
        if running.poll() is None:
            running.send_signal(moments.choice(SIGNALS))
            running.wait(LIMIT)
            killed += 1
            assert_ended(mark)
            continue
        assert running.returncode == 0, (folder / "output").read_text()[-2000:]
        assert weights_of(folder) == expected, seeds.how_to_repeat(seeds.FIRST)
        ended += 1
        shutil.rmtree(folder)
