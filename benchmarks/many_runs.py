"""Measures a store with 1000 ended runs: the list of runs, and the resumption of one, on a folder and on MinIO."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests import servers
from tests.federations import make_plan, play

from benchmarks.measure import Row, at_most, repeated, timed
from fedpipe.commands.opened import known_runs
from fedpipe.reports.catalogue import list_runs
from fedpipe.rounds.retention import Rules, find_loss
from fedpipe.store import MemoryStore, Store, keys, open_store

RUNS = 1000
SECOND = 1.0


def run() -> list[Row]:
    """The rows: seconds, compared with one."""
    os.environ.update(AWS_ACCESS_KEY_ID=servers.ACCESS_KEY, AWS_SECRET_ACCESS_KEY=servers.SECRET_KEY)
    made = MemoryStore()
    for number in range(RUNS):
        play(made, make_plan(run=f"run-{number}"))
        made.create(keys.summary(f"run-{number}"), b"{}")
    with tempfile.TemporaryDirectory() as folder, servers.running("minio", Path(folder) / "minio") as server:
        stores = {"a folder": f"{folder}/store", "MinIO": server.uri}
        return [row for where, uri in stores.items() for row in _rows(made, where, open_store(uri).below("tiny"))]


def _rows(made: MemoryStore, where: str, store: Store) -> Iterator[Row]:
    with ThreadPoolExecutor(16) as writers:
        list(writers.map(lambda key: store.replace(key, made.read(key).data), list(made.keys())))
    without = timed(lambda: list_runs(store))
    listed, named, resumed = repeated(
        lambda: list_runs(store), lambda: known_runs(store), lambda: play(store, make_plan(run=f"run-{RUNS - 1}"))
    )
    for what, seconds in (("list", listed), ("names", named), ("resumption of an ended run", resumed)):
        yield at_most(f"{RUNS} runs on {where}: {what}", seconds, SECOND, "a second", 1)
    yield at_most(f"{RUNS} runs on {where}: first list of an earlier version's store", without, SECOND, "a second", 5)
    kept = timed(lambda: find_loss(store, Rules(keep_runs=10)))
    yield at_most(f"{RUNS} runs on {where}: prune, without removing", kept, SECOND, "a second", 60)
