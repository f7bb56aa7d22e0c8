"""Sessions: what a round costs beyond its training, how it ends, and what a long or a crowded one takes."""

from __future__ import annotations

import contextlib
import itertools
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tests import servers
from tests.federations import PlusOneLearner, make_federation, make_plan

from benchmarks.measure import MIB, REPEATS, ROOT, Row, at_most, median, quiet
from fedpipe import weights
from fedpipe.engine.meeting import Meeting
from fedpipe.learners.contribute import contribute
from fedpipe.learners.framework import Arrays
from fedpipe.learners.learner import Trained
from fedpipe.rounds.beginning import begin
from fedpipe.rounds.history import read_record
from fedpipe.rounds.manifests import Scores, Update
from fedpipe.rounds.plan import Plan
from fedpipe.rounds.updates import publish_update
from fedpipe.sessions.attendance import Attendance, at_once
from fedpipe.sessions.board import Board, Sign, poll_board, put_sign
from fedpipe.sessions.coordinator import Coordinator, Moment
from fedpipe.sessions.pacing import drive
from fedpipe.store import open_store
from fedpipe.store.objects import fetch_file, put_file

NAMES = tuple(f"learner-{number}" for number in range(5))
TRAINING = 0.5
"""Seconds that a learner sleeps instead of training."""


def plan_of(names: tuple[str, ...], rounds: int) -> Plan:
    training = {"rounds": rounds, "batch_size": 1}
    return make_plan(make_federation(names, training=training))


@contextlib.contextmanager
def stores() -> Iterator[dict[str, str]]:
    """URIs of a folder and of a MinIO."""
    os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"] = servers.ACCESS_KEY, servers.SECRET_KEY
    with tempfile.TemporaryDirectory() as folder, servers.running("minio", Path(folder) / "minio") as server:
        yield {"folder": f"file://{folder}/store", "MinIO": server.uri}


def model(elements: int, seed: int = 0) -> dict[str, np.ndarray]:
    return {"w": np.random.default_rng(seed).normal(size=elements).astype(np.float32)}


class Sleeper(PlusOneLearner):
    """Sleeps instead of training, and has no optimizer whose state could be kept."""

    def propose_weights(self, *, seed: int, seconds: float, optimizer: Arrays | None) -> Trained:
        time.sleep(TRAINING)
        return super().propose_weights(seed=seed, seconds=seconds, optimizer=None)._replace(optimizer=None)

    def _score(self, weights: Arrays) -> Scores:
        return self._scores  # the model has other names


def overhead(uri: str, name: str, count: int, rounds: int = 12) -> float:
    """Median seconds of a round beyond its training, with a model of 40 kB.

    On a folder, learners are threads that wake each other, as in a local run. On MinIO, they are processes, as in pods.
    """
    names = tuple(f"learner-{number:03}" for number in range(count))
    store, plan = open_store(uri).below(name), plan_of(names, rounds)
    meeting = Meeting() if uri.startswith("file://") else None
    begin(store, plan, lambda: model(10_000))
    closed: list[float] = []

    def listen(moment: Moment) -> None:
        if moment.what == "closed":
            closed.append(time.monotonic())
        if meeting and moment.what in ("opened", "ended"):
            meeting.move()

    def waiter(*, coordinates: bool) -> Callable[[float], None]:
        return meeting.waiter(coordinates=coordinates) if meeting else time.sleep

    def attend(learner: str) -> None:
        own, worker = open_store(uri).below(name), Sleeper(1.0)

        def answer(board: Board) -> bool:
            with meeting.computing() if meeting else contextlib.nullcontext():
                return isinstance(contribute(own, plan, learner, board.round, board.base, lambda: worker), Update)

        attendance = Attendance(own, plan, learner, "s", {"train": at_once(answer)})
        drive(attendance.run(), waiter(coordinates=False))

    party: Any = threading.Thread if meeting else multiprocessing.get_context("fork").Process
    learners = [party(target=attend, args=(learner,)) for learner in names]
    for one in learners:
        one.start()
    drive(Coordinator(store, plan, "s", listener=listen).run(), waiter(coordinates=True))
    for one in learners:
        one.join()
    return median([later - earlier for earlier, later in itertools.pairwise(closed[1:])]) - TRAINING


def ending(uri: str, name: str, elements: int) -> tuple[float, float, float]:
    """Seconds from the last update's sign until the sum is complete and until the round is committed, and of a download.

    The others' updates were fetched while it was awaited.
    """
    store, plan = open_store(uri).below(name), plan_of(NAMES, 1)
    record = begin(store, plan, lambda: model(elements))
    times: dict[str, float] = {}
    put = store.upload

    def upload(key: str, path: Path) -> None:
        times["combined"] = time.monotonic()
        put(key, path)

    store.upload = upload  # type: ignore[method-assign]
    coordinator = threading.Thread(target=lambda: drive(Coordinator(store, plan, "s").run(), time.sleep))
    coordinator.start()
    own = open_store(uri).below(name)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "w"
        for number, learner in enumerate(NAMES):
            digest = weights.save(model(elements, number), path)
            put_file(own, path, digest, learner)
            update = Update(
                federation=plan.federation.name, run=plan.run, round=1, learner=learner, base=record.weights,
                weights=digest, size=path.stat().st_size, examples=number + 1, metrics={},
            )  # fmt: skip
            publish_update(own, update)
            if learner == NAMES[-1]:
                time.sleep(3)  # the others are fetched by now
                started = time.monotonic()
                fetch_file(own, digest, Path(folder) / "copy", learner)
                download = time.monotonic() - started
                times["sign"] = time.monotonic()
            put_sign(own, learner, plan.run, Sign(round=1, attempt=1, phase="train", took_part=True))
    coordinator.join()
    committed = time.monotonic()
    return times["combined"] - times["sign"], committed - times["sign"], download


def crowd(uri: str, process: int, count: int = 100, seconds: float = 20.0) -> tuple[float, float]:
    """Share of a core that a MinIO needs for so many learners that wait, and seconds of a bystander's small read."""
    names = tuple(f"w{number:03}" for number in range(count))
    plan = plan_of(names, 1)
    store = open_store(uri).below("crowd")
    begin(store, plan, lambda: model(10))
    stopped = threading.Event()

    def attend(learner: str) -> None:
        own = open_store(uri).below("crowd")

        def sleep(pause: float) -> None:
            if stopped.wait(pause):
                raise SystemExit

        with contextlib.suppress(SystemExit):
            drive(Attendance(own, plan, learner, "s", {"train": at_once(lambda _: True)}).run(), sleep)

    threads = [threading.Thread(target=attend, args=(name,), daemon=True) for name in names]
    for thread in threads:
        thread.start()
    time.sleep(10)  # from here on they have waited for a while
    before, started, reads = cpu_seconds(process), time.monotonic(), []
    while time.monotonic() - started < seconds:
        begun = time.monotonic()
        poll_board(store, plan.run)
        read_record(store, plan.run, 0)
        reads.append((time.monotonic() - begun) / 2)
        time.sleep(0.2)
    used = cpu_seconds(process) - before
    stopped.set()
    for thread in threads:
        thread.join()
    return used / seconds, median(reads)


def cpu_seconds(process: int) -> float:
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def shapes() -> tuple[float, float]:
    """Median seconds of a round of the digits demo in the local engine: in a session, and in single steps."""
    found = []
    for each in ("all", "1"):
        with tempfile.TemporaryDirectory() as folder:
            command = str(Path(sys.executable).parent / "fedpipe")
            subprocess.run([command, "init", folder, "--force"], check=True, capture_output=True, env=quiet())
            file = Path(folder) / "federation.yaml"
            file.write_text(file.read_text().replace("rounds_per_step: all", f"rounds_per_step: {each}"))
            subprocess.run(
                [command, "run", str(file), "--out", f"{folder}/out"], check=True, capture_output=True, env=quiet()
            )
            rounds = json.loads((Path(folder) / "out" / "summary.json").read_text())["rounds"]
            found.append(median([r["seconds"] for r in rounds[2:]]))
    return found[0], found[1]


def memory() -> tuple[float, float]:
    """Resident MiB of a coordinator around round 30 and around round 190.

    With an arena of malloc for each thread, what is free in them varies by more than a growth would be.
    """
    one_arena = {**os.environ, "MALLOC_ARENA_MAX": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.session_memory"], capture_output=True, text=True, check=True, cwd=ROOT,
        env=one_arena,
    )  # fmt: skip
    found = json.loads(done.stdout.strip().splitlines()[-1])
    return found["30"] / MIB, found["190"] / MIB


def run() -> list[Row]:
    """All of them; what depends on a noisy machine several times."""
    rows = []
    with stores() as uris:
        for kind, count, goal in (("folder", 10, 0.05), ("MinIO", 10, 0.2), ("folder", 100, 1.0), ("MinIO", 100, 1.0)):
            seconds = median([overhead(uris[kind], f"overhead-{count}-{number}", count) for number in range(3)])
            what = f"a session's round beyond training, {count} learners, {kind}"
            rows.append(at_most(what, seconds, goal, "goal", 1.0))
        ends = [ending(uris["MinIO"], f"ending-{number}", 25_000_000) for number in range(REPEATS)]
        combined, committed, download = (median(list(times)) for times in zip(*ends, strict=True))
        what = "last update of 100 MB (MinIO) until it is added"
        rows.append(at_most(what, combined, download, "its verified download", 1.5))
        bound = f"its verified download {download:.3f} s"
        rows.append(
            Row(
                "the same until the round is committed",
                f"{committed:.3f} s",
                bound,
                committed / download,
                "stated",
                True,
            )
        )
        share, read = crowd_of(uris["MinIO"])
        rows.append(
            Row("100 learners wait: a MinIO's processor", f"{share:.3f} cores", "one core", share, "stated", True)
        )
        rows.append(Row("the same: a bystander's small read", f"{read * 1000:.1f} ms", "", read, "stated", True))
    session, steps = zip(*[shapes() for _ in range(3)], strict=True)
    rows.append(
        at_most("a round of the demo, in a session", median(list(session)), median(list(steps)), "in steps", 1.5)
    )
    early, late = memory()
    rows.append(at_most("a coordinator's memory around round 190", late, early, "around round 30", 1.05, "MiB"))
    return rows


def crowd_of(uri: str) -> tuple[float, float]:
    """`crowd` with the process that listens at a URI's port."""
    port = uri.rpartition(":")[2]
    done = subprocess.run(["pgrep", "-f", f"127.0.0.1:{port}"], capture_output=True, text=True, check=True)
    return crowd(uri, int(done.stdout.split()[0]))
