"""Workers end with their parent, however it ends; mistakes are not repeated, and a dying learner is dropped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fedpipe.engine.workers import CrashError, Workers
from tests.commands.runs import ROOT
from tests.processes import LIMIT, assert_ended, started_with

SCRIPT = """
import sys, threading, time
from fedpipe.engine.workers import Workers
from tests.engine.test_ends import compute
workers = Workers(preload={preload})
for _ in range(2):
    threading.Thread(target=workers.call, args=(compute, sys.argv[1]), daemon=True).start()
time.sleep(600)
"""


def compute(folder: str) -> None:
    """Computes without a pause for longer than a test waits, and never looks at its connection."""
    (Path(folder) / str(os.getpid())).touch()
    end, total = time.monotonic() + 5 * LIMIT, 0
    while time.monotonic() < end:
        total += sum(range(1000))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGHUP, signal.SIGSEGV])
def test_workers_end_with_a_script(number: signal.Signals, tmp_path: Path) -> None:
    _end(number, tmp_path, preload=False)


@pytest.mark.heavy
@pytest.mark.xdist_group("runs")
def test_forked_workers_and_their_server_too(tmp_path: Path) -> None:
    _end(signal.SIGKILL, tmp_path, preload=True)


def _end(number: signal.Signals, folder: Path, *, preload: bool) -> None:
    mark = {"STARTED_BY": f"{folder}-{number}"}
    environment = {**os.environ, **mark, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'src'}"}
    command = [sys.executable, "-c", SCRIPT.format(preload=preload), str(folder)]
    with subprocess.Popen(command, env=environment, cwd=ROOT) as script:
        end = time.monotonic() + LIMIT
        while len(list(folder.iterdir())) < 2:
            assert time.monotonic() < end
            assert script.poll() is None
            time.sleep(0.05)
        assert len(started_with(mark)) >= 3
        script.send_signal(number)
        script.wait(LIMIT)
    assert_ended(mark)


def test_a_crash_has_its_cause_in_a_line() -> None:
    with Workers(preload=False) as workers:
        with pytest.raises(CrashError, match="Traceback") as caught:
            workers.call(int, "x1")
        assert caught.value.reason == "ValueError: invalid literal for int() with base 10: 'x1'"
        assert not caught.value.transient
        with pytest.raises(CrashError) as caught:
            workers.call(os.listdir, "/none")
        assert caught.value.transient
        with pytest.raises(CrashError) as caught:
            workers.call(sys.exit, 3)
        assert caught.value.reason == "SystemExit: 3"
