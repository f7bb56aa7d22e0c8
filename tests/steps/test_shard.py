"""The shard step of a run that resumes, where learners have removed, changed or encrypted what they were dealt."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedpipe.errors import CorruptError, DataError, StoreError
from fedpipe.rounds.history import commit
from fedpipe.rounds.manifests import Record
from fedpipe.rounds.plan import RunPlace
from fedpipe.steps import explore, shard
from fedpipe.store import LocalStore, keys
from fedpipe.store.objects import digest_of, put_bytes, put_file
from tests.faults.stores import HookedStore

NAMES = ("a", "b", "c")


@pytest.fixture
def inputs(tmp_path: Path) -> shard.Inputs:
    data(tmp_path, 0)
    federation = {
        "name": "tiny", "framework": "numpy", "learners": [{"name": name} for name in NAMES],
        "data": {"uri": str(tmp_path / "x.npz")}, "training": {"rounds": 1, "batch_size": 8},
        "quorum": {"min_learners": 2},
    }  # fmt: skip
    return shard.Inputs(federation=json.dumps(federation), store=f"file://{tmp_path / 'store'}", run="r1")


def data(folder: Path, seed: int) -> None:
    x = np.random.default_rng(seed).normal(size=(90, 2)).astype(np.float32)
    np.savez(folder / "x.npz", x=x, y=np.arange(90) % 3)


def begun(inputs: shard.Inputs) -> shard.Outputs:
    """Deals, and records a round, after which the shards must stay what they are."""
    made = shard.deal(inputs)
    digest = digest_of(b"")
    common: dict[str, Any] = {"federation": "tiny", "run": "r1", "plan": digest, "weights": digest, "layout": digest}
    store = made.place.open()
    first = commit(store, Record(**common, round=0, previous=None, base=None))
    commit(store, Record(**common, round=1, previous=first.ref, base=digest))
    return made


def remove(made: shard.Outputs, *names: str) -> None:
    for name in names:
        made.place.open().delete(keys.content(made.shards.learners[name], name))


def test_a_removed_shard_is_dealt_again(inputs: shard.Inputs) -> None:
    made = begun(inputs)
    remove(made, "a")
    assert shard.deal(inputs) == made
    assert made.place.open().size(keys.content(made.shards.learners["a"], "a"))


@pytest.mark.parametrize("change", ["other data", "no data"])
def test_a_learner_that_removes_its_shard_stops_nobody(inputs: shard.Inputs, tmp_path: Path, change: str) -> None:
    made = begun(inputs)
    remove(made, "a")
    data(tmp_path, 1) if change == "other data" else (tmp_path / "x.npz").unlink()
    assert shard.deal(inputs) == made


@pytest.mark.parametrize("change", ["other data", "no data"])
def test_too_many_removed_shards_are_an_error(inputs: shard.Inputs, tmp_path: Path, change: str) -> None:
    made = begun(inputs)
    remove(made, "a", "b")
    data(tmp_path, 1) if change == "other data" else (tmp_path / "x.npz").unlink()
    with pytest.raises(DataError, match=r"vanished|no such dataset"):
        shard.deal(inputs)


class Refusing:
    """Refuses to give a learner's objects, as a store does if they are encrypted with a key of its own."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def __call__(self, _number: int, name: str, key: str) -> None:
        if "learners/a/" in key and name in ("size", "read", "open", "poll"):
            raise self._error


ERRORS = [StoreError("InvalidRequest"), CorruptError("content encoding")]


@pytest.mark.parametrize("error", ERRORS)
def test_a_shard_that_the_store_does_not_give(
    inputs: shard.Inputs, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run continues, and those who explore the data see the others."""
    made = begun(inputs)
    opened = RunPlace.open
    monkeypatch.setattr(RunPlace, "open", lambda place: HookedStore(opened(place), Refusing(error)))
    assert shard.deal(inputs) == made
    found = explore.run(explore.Inputs(place=made.place, shards=made.shards, federation=inputs.federation))
    assert str(error.args[0]) in found.page.content
    assert all(name in found.table.content for name in NAMES)


def test_a_removed_shard_is_left_out_of_the_exploration(inputs: shard.Inputs) -> None:
    made = begun(inputs)
    remove(made, "b")
    found = explore.run(explore.Inputs(place=made.place, shards=made.shards, federation=inputs.federation))
    assert "its shard was removed" in found.page.content


def test_an_object_that_its_owner_encrypted_is_written_again(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "store")
    refusing = HookedStore(store, Refusing(StoreError("InvalidRequest")))
    digest = put_bytes(store, b"data", "a")
    store.replace(keys.content(digest, "a"), b"junk")
    assert put_bytes(refusing, b"data", "a") == digest
    assert store.read(keys.content(digest, "a")).data == b"data"
    (tmp_path / "file").write_bytes(b"data")
    store.replace(keys.content(digest, "a"), b"junk")
    put_file(refusing, tmp_path / "file", digest, "a")
    assert store.read(keys.content(digest, "a")).data == b"data"
