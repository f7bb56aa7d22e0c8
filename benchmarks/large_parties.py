"""One side of a session with a large model: `large_parties begin|coordinator|learners URI BYTES LEARNERS ROUNDS`.

The coordinator prints the seconds of each round, and the peaks of its memory and of the files of its early sums.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
from tests.federations import make_federation, make_plan

from benchmarks.measure import resident
from fedpipe.rounds.beginning import begin
from fedpipe.rounds.history import read_record
from fedpipe.rounds.manifests import Update
from fedpipe.rounds.plan import Plan
from fedpipe.rounds.updates import find_update, publish_update
from fedpipe.sessions.attendance import Attendance, at_once
from fedpipe.sessions.board import Board
from fedpipe.sessions.coordinator import Coordinator, Moment
from fedpipe.sessions.pacing import drive
from fedpipe.store import Store, keys, open_store
from fedpipe.store.objects import fetch_file, put_file
from fedpipe.weights import Array

VARIABLES = 64
"""Variables that share one half of the model; a single one has the other half."""


def model(size: int) -> dict[str, Array]:
    """Return a model of so many bytes."""
    count, rng = size // 4, np.random.default_rng(0)
    lengths = {"large": count // 2} | {f"small{k:02}": count // 2 // VARIABLES for k in range(VARIABLES)}
    return {name: rng.standard_normal(length, np.float32) for name, length in lengths.items()}


def coordinate(store: Store, plan: Plan) -> None:
    """Play all rounds; delete the global weights that no round begins with any more."""
    closed, most, done = [time.monotonic()], 0, threading.Event()

    def listen(moment: Moment) -> None:
        if moment.what == "closed" and moment.record and moment.record.base:
            closed.append(time.monotonic())
            store.delete(keys.content(moment.record.base))

    def look() -> None:
        nonlocal most
        while not done.wait(0.2):
            with contextlib.suppress(FileNotFoundError):  # one was deleted in between
                most = max(most, sum(path.stat().st_size for path in Path(tempfile.gettempdir()).rglob("tree-*")))

    watch = threading.Thread(target=look)
    watch.start()
    try:
        drive(Coordinator(store, plan, "s", listener=listen).run(), time.sleep)
    finally:
        done.set()
        watch.join()
    seconds = [later - earlier for earlier, later in itertools.pairwise(closed)]
    print(json.dumps({"seconds": seconds, "resident": resident("VmHWM"), "files": most}))


def attend(uri: str, plan: Plan, number: int, turn: threading.Lock) -> None:
    """Exchange the weights of each round; a learner deletes its update of the round before."""
    store, name = open_store(uri), plan.federation.learners[number].name

    def answer(board: Board) -> bool:
        with turn, tempfile.TemporaryDirectory() as folder:
            if earlier := find_update(store, name, plan.run, board.round - 1):
                store.delete(keys.content(earlier.weights, name))
            path = Path(folder) / "weights"
            fetch_file(store, board.base, path)
            size = path.stat().st_size
            with path.open("r+b") as file:
                file.seek(size - 4)
                file.write(np.float32(board.round + number / 10).tobytes())
                file.seek(0)
                digest = f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
            put_file(store, path, digest, name)
            update = Update(
                federation=plan.federation.name, run=plan.run, round=board.round, learner=name, base=board.base,
                weights=digest, size=size, examples=number + 1, metrics={},
            )  # fmt: skip
            return publish_update(store, update) is not None

    drive(Attendance(store, plan, name, "s", {"train": at_once(answer)}).run(), time.sleep)


def main() -> None:
    """Play the side that the command line names."""
    role, uri, size, learners, rounds = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])
    names = tuple(f"learner-{k:02}" for k in range(learners))
    training = {"rounds": rounds, "batch_size": 1}
    plan = make_plan(make_federation(names, training=training, quorum={"deadline": 24 * 3600}))
    store = open_store(uri)
    if role == "begin":
        begin(store, plan, lambda: model(size))
    elif role == "coordinator":
        coordinate(store, plan)
    else:
        turn = threading.Lock()
        work = [threading.Thread(target=attend, args=(uri, plan, number, turn)) for number in range(learners)]
        for thread in work:
            thread.start()
        for thread in work:
            thread.join()
        assert read_record(store, plan.run, rounds)


if __name__ == "__main__":
    main()
