"""Points that are multiplied in several processes: the same ones, the same refusals, and no process that stays."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pytest

from fedpipe.errors import DroppedError, WorkerDiedError
from fedpipe.secure.cores import Cores, blinded
from fedpipe.secure.curve import multiplied, scalar_of

IDS = [f"patient {number}".encode() for number in range(4500)]
SCALAR = scalar_of(b"\7" * 32)


def children() -> set[int]:
    tasks = Path("/proc/self/task").glob("*/children")
    return {int(pid) for task in tasks for pid in task.read_text().split()}


def test_several_processes_give_the_points_of_one() -> None:
    before = children()
    with Cores(3) as cores:
        found = cores.blinded(IDS, "run", SCALAR)
        assert len(children() - before) == 3
        again = cores.multiplied(found, SCALAR)
        bad = found.copy()
        bad[4400] = 0
        with pytest.raises(DroppedError, match="a point of a blinded id is not valid"):
            cores.multiplied(bad, SCALAR)
        np.testing.assert_array_equal(cores.multiplied(found[:5], SCALAR), again[:5])
    assert not children() - before
    for first in (0, 1499, 1500, 2999, 3000, 4499):
        here = blinded(IDS[first : first + 1], "run", SCALAR)
        np.testing.assert_array_equal(found[first : first + 1], here)
        np.testing.assert_array_equal(again[first : first + 1], multiplied(here, SCALAR))


def test_a_process_that_is_killed_is_named() -> None:
    before = children()
    with Cores(2) as cores:
        points = cores.blinded(IDS, "run", SCALAR)
        for pid in children() - before:
            os.kill(pid, signal.SIGKILL)
        with pytest.raises(WorkerDiedError, match="a process that multiplies was ended"):
            cores.multiplied(points, SCALAR)
