"""A session of 200 rounds: prints the coordinator's resident bytes around round 30 and round 190.

Both are medians of 20 rounds, because up to five updates more or less are in memory at a round's end. Its five
learners are threads of another process; the model has 2 MB.
"""

import json
import os
import signal
import statistics
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
from tests.federations import PlusOneLearner, make_federation, make_plan

from fedpipe.learners.contribute import contribute
from fedpipe.rounds.beginning import begin
from fedpipe.rounds.manifests import Update
from fedpipe.sessions.attendance import Attendance, at_once
from fedpipe.sessions.coordinator import Coordinator, Moment
from fedpipe.sessions.pacing import drive
from fedpipe.store import open_store

NAMES = ("a", "b", "c", "d", "e")
residents = []


def resident() -> int:
    """VmRSS of this process in bytes."""
    line = next(text for text in Path("/proc/self/status").read_text().splitlines() if text.startswith("VmRSS"))
    return int(line.split()[1]) * 1024


def listen(moment: Moment) -> None:
    """Notes the memory at the end of a round."""
    if moment.what == "closed":
        residents.append(resident())


with tempfile.TemporaryDirectory() as folder:
    plan = make_plan(make_federation(NAMES, training={"rounds": 200, "batch_size": 1}))
    store = open_store(f"file://{folder}").below("tiny")
    begin(store, plan, lambda: {"w": np.zeros(500_000, np.float32)})

    def attend(name: str) -> None:
        """A learner in a thread."""
        learner = PlusOneLearner(1.0)

        def answer(board):
            made = contribute(store, plan, name, board.round, board.base, lambda: learner)
            return isinstance(made, Update)

        drive(Attendance(store, plan, name, "s", {"train": at_once(answer)}).run(), time.sleep)

    child = os.fork()
    if not child:
        threads = [threading.Thread(target=attend, args=(name,)) for name in NAMES]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        os._exit(0)
    try:
        drive(Coordinator(store, plan, "s", listener=listen).run(), time.sleep)
    except BaseException:
        os.kill(child, signal.SIGKILL)  # it holds the pipe, so the reader would wait for the learners
        raise
    os.waitpid(child, 0)
    print(json.dumps({"30": statistics.median(residents[20:40]), "190": statistics.median(residents[-20:])}))
