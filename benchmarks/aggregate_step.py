"""The aggregate step from store to store, compared with merely downloading the same updates."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from tests import servers
from tests.federations import make_federation

from benchmarks.measure import Row, at_most, repeated
from fedpipe import weights
from fedpipe.rounds.beginning import begin
from fedpipe.rounds.closing import close_round, in_constant_memory
from fedpipe.rounds.history import read_record
from fedpipe.rounds.manifests import Head, Update
from fedpipe.rounds.plan import Plan
from fedpipe.rounds.updates import find_update, publish_update
from fedpipe.store import Store, keys, open_store
from fedpipe.store.objects import digest_of, encode, fetch_file, put_file

LEARNERS = 10
COUNTS = {2: 2_500_000, 10: 2_500_000, 64: 625_000}
"""Numbers of learners, each with the elements of one of the model's ten tensors."""


def model(seed: int, tensors: int = 10, elements: int = 2_500_000) -> dict[str, np.ndarray]:
    """A model of 100 MB."""
    rng = np.random.default_rng(seed)
    return {f"layer{i}": rng.standard_normal(elements, np.float32) for i in range(tensors)}


def prepare(
    store: Store, folder: Path, learners: int = LEARNERS, elements: int = 2_500_000, **more: Any
) -> tuple[Plan, str]:
    """A run at round 1 with an update of each learner in the store."""
    plan, base = begin_again(store, learners, elements, **more)
    for number, name in enumerate(names_of(learners)):
        digest = weights.save(model(1 + number % 4, elements=elements), folder / "update")
        put_file(store, folder / "update", digest, name)
        size = (folder / "update").stat().st_size
        publish_update(
            store,
            Update(
                federation="tiny", run="bench", round=1, learner=name, base=base, weights=digest, size=size,
                examples=100 + number, metrics={"loss": 1.0},
            ),
        )  # fmt: skip
    return plan, base


def names_of(learners: int) -> tuple[str, ...]:
    """Names of so many learners."""
    return tuple(f"learner-{k:02}" for k in range(learners))


def begin_again(store: Store, learners: int, elements: int = 2_500_000, **more: Any) -> tuple[Plan, str]:
    """Begins the run, in place of an earlier one whose updates stay: they belong to no plan."""
    for key in [*store.keys("runs/bench/"), "HEAD"]:
        store.delete(key)
    plan = Plan(
        run="bench", federation=make_federation(names_of(learners), **more), code=digest_of(b""), function="build",
        shards={},
    )  # fmt: skip
    return plan, begin(store, plan, lambda: model(0, elements=elements)).weights


def measure(store: Store, name: str) -> list[Row]:
    """Both ways of downloading: as our steps do, verified and to disk; and raw bytes, to nowhere."""
    with tempfile.TemporaryDirectory() as folder:
        plan, base = prepare(store, Path(folder))
        updates = [(n.name, _update_digest(store, n.name)) for n in plan.federation.learners]

        def aggregate() -> None:
            forget_round(store)
            close_round(store, plan, 1, base)

        def verified() -> None:
            for learner, digest in updates:
                fetch_file(store, digest, Path(folder) / "copy", learner)

        def raw() -> None:
            for learner, digest in updates:
                reader = store.open(keys.content(digest, learner))
                while reader.read(2**20):
                    pass
                reader.close()

        ours, checked, bare = repeated(aggregate, verified, raw)
    return [
        at_most(f"aggregate step, 10 x 100 MB, {name}", ours, checked, "verified download to disk", 1.15),
        at_most(f"aggregate step, 10 x 100 MB, {name}", ours, bare, "raw read, unverified", 1.15),
    ]


def aggregates(store: Store, name: str, count: int, elements: int) -> Row:
    """The verified aggregate of so many updates as a file, and their verified download to files."""
    with tempfile.TemporaryDirectory() as folder:
        plan, _ = prepare(store, Path(folder), count, elements)
        previous = read_record(store, plan.run, 0)
        assert previous is not None
        found = [find_update(store, learner.name, plan.run, 1) for learner in plan.federation.learners]
        updates = [update for update in found if update is not None]

        def aggregate() -> None:
            with tempfile.TemporaryDirectory() as place:
                in_constant_memory()(store, plan, previous, updates, Path(place))

        def download() -> None:
            for update in updates:
                fetch_file(store, update.weights, Path(folder) / "copy", update.learner)

        ours, theirs = repeated(aggregate, download)
    what = f"aggregate of {count} x {elements // 25_000} MB, {name}"
    return at_most(what, ours, theirs, "verified download to disk", 1.1)


def _update_digest(store: Store, learner: str) -> str:
    (key,) = list(store.keys(f"learners/{learner}/objects/"))
    return f"sha256:{key.rsplit('/', 1)[1]}"


def forget_round(store: Store) -> None:
    """Takes the round back, so that it is aggregated again."""
    store.delete("runs/bench/1/record")
    store.delete("HEAD")
    record = read_record(store, "bench", 0)
    assert record is not None
    store.create("HEAD", encode(Head(run="bench", round=0, record=record.ref.record, weights=record.weights)))


def run() -> list[Row]:
    """On a folder and on MinIO."""
    os.environ.update(AWS_ACCESS_KEY_ID=servers.ACCESS_KEY, AWS_SECRET_ACCESS_KEY=servers.SECRET_KEY)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        rows += measure(open_store(f"{folder}/store"), "folder")
        rows += [aggregates(open_store(f"{folder}/{n}"), "folder", n, size) for n, size in COUNTS.items()]
    with tempfile.TemporaryDirectory() as folder, servers.running("minio", Path(folder) / "minio") as server:
        store = open_store(server.uri)
        rows += measure(store.below("bench"), "MinIO")
        rows += [aggregates(store.below(str(n)), "MinIO", n, size) for n, size in COUNTS.items()]
    return rows
