"""Simulated runs of a small federation, begun without Keras and played by a worker of the tff environment."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from fedpipe import weights
from fedpipe.data.examples import Examples
from fedpipe.data.parts import put_parts, put_shard
from fedpipe.engine.workers import Worker
from fedpipe.rounds.beginning import begin, make_plan
from fedpipe.rounds.history import read_record
from fedpipe.rounds.manifests import Record
from fedpipe.rounds.plan import RunPlace, Shards
from fedpipe.steps.simulate import Inputs, advance
from fedpipe.store import LocalStore
from fedpipe.store.objects import get_bytes, put_bytes
from tests.federations import make_federation
from tests.models import DENSE
from tests.tff.oracle import CENTRAL, ROUNDS, START, TEST, TRAIN, Arrays

Parts = dict[str, dict[str, Examples]]
WHOLE = {"rounds": ROUNDS + 1, "batch_size": 16, "local_epochs": 2}
"""A whole batch a step, so that no order counts. The last round, whose test costs as much as all others, is not played."""
UNTESTED = {"test_every": 0}
PARTS = {name: {"train": TRAIN[name], "test": TEST[name]} for name in TRAIN}


def begun(folder: Path, *, code: str = DENSE, start: Arrays = START, parts: Parts = PARTS, **content: Any) -> RunPlace:
    """A run whose round 0 is committed, without Keras."""
    federation = make_federation(**{"training": WHOLE, **content})
    whole = LocalStore(folder)
    store = whole.below(federation.name)
    shards = {name: put_shard(store, name, held)[1] for name, held in parts.items()}
    test = put_parts(store, {"test": CENTRAL})[0]
    put_bytes(store, code.encode())
    plan = make_plan("run-1", federation, code, Shards(learners=shards, test=test))
    begin(store, plan, lambda: start)
    return RunPlace(store=f"file://{folder}", federation=federation.name, run="run-1", plan=plan.digest)


def rounds(tff: Worker, place: RunPlace, count: int = ROUNDS, **texts: str) -> list[Record]:
    """Works through rounds in the tff environment."""
    inputs = Inputs(place=place, base="", **texts)
    for number in range(1, count + 1):
        tff.call(advance, inputs, number)
    return records_of(place)


def records_of(place: RunPlace) -> list[Record]:
    """The committed rounds, from 0."""
    store, found = place.open(), []
    while record := read_record(store, place.run, len(found)):
        found.append(record)
    return found


def copied(place: RunPlace, folder: Path) -> RunPlace:
    """The run as it is now, in a store of its own."""
    shutil.copytree(place.store.removeprefix("file://"), folder)
    return replace(place, store=f"file://{folder}")


def weights_of(place: RunPlace, record: Record) -> Arrays:
    return dict(weights.loads(get_bytes(place.open(), record.weights)))
