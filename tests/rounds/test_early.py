"""Updates that are added up while others are awaited."""

from __future__ import annotations

import resource
from pathlib import Path
from types import SimpleNamespace

import pytest

from fedpipe import weights
from fedpipe.rounds.beginning import begin
from fedpipe.rounds.early import EarlySums
from fedpipe.rounds.manifests import Update
from fedpipe.store import MemoryStore, keys
from fedpipe.store.objects import get_bytes
from tests.federations import PlusOneLearner, fresh, make_federation, make_plan, play_round

LEARNERS = {name: PlusOneLearner(k + 1) for k, name in enumerate("abc")}


@pytest.fixture
def sums(store: MemoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EarlySums:
    """A round whose three learners have answered."""
    monkeypatch.setattr("fedpipe.aggregation.tree.WORTH_ADDING", 0)
    plan = make_plan(make_federation(tuple(LEARNERS)))
    record = begin(store, plan, fresh)
    for update in play_round(store, plan, 1, record.weights, LEARNERS):
        assert isinstance(update, Update)
    layout = weights.layout_of(weights.loads(get_bytes(store, record.weights)))
    made = EarlySums.plant(store, plan, record, layout, tuple(LEARNERS), tmp_path)
    assert made is not None
    return made


def taken(sums: EarlySums) -> list[str]:
    assert sums.forest is not None
    return list(sums.forest.members)


def test_each_update_is_added_when_it_comes(sums: EarlySums) -> None:
    for name in ("c", "a", "b"):
        sums.take(name)
    assert taken(sums) == ["c", "a", "b"]
    assert sums.forest is not None
    assert [tree.summed for tree in sums.forest.kept] == [True]


@pytest.mark.parametrize("data", [None, b"?", b" " * 2**17], ids=["missing", "malformed", "too large"])
def test_an_update_that_cannot_be_read_is_left_to_the_closing(
    store: MemoryStore, sums: EarlySums, data: bytes | None
) -> None:
    key = keys.update("b", "r1", 1)
    assert store.size(key)
    store.delete(key) if data is None else store.replace(key, data)
    for name in LEARNERS:
        sums.take(name)
    assert taken(sums) == ["a", "c"]


def test_a_full_disk_leaves_all_to_the_closing(sums: EarlySums, tmp_path: Path) -> None:
    """The sums of before are deleted: the closing needs the space."""
    sums.take("a")
    assert list(tmp_path.iterdir())
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (16, hard))  # a write beyond it fails as on a full disk
    try:
        sums.take("b")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    sums.take("c")
    assert sums.forest is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("free", "adds"), [(10**6, True), (140, False)])
def test_the_disk_must_hold_a_copy_a_sum_and_the_files_of_the_closing(
    sums: EarlySums, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, adds: bool
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=free))
    sums.take("a")
    assert (sums.forest is not None) == adds
    assert bool(list(tmp_path.iterdir())) == adds


def test_an_update_of_another_learner_is_not_added(store: MemoryStore, sums: EarlySums) -> None:
    found = store.read(keys.update("a", "r1", 1)).data
    store.replace(keys.update("b", "r1", 1), found)
    for name in LEARNERS:
        sums.take(name)
    assert taken(sums) == ["a", "c"]


def test_sums_are_given_up_when_their_files_cannot_be_written(sums: EarlySums, tmp_path: Path) -> None:
    tmp_path.rmdir()
    sums.take("a")
    assert sums.forest is None
    sums.take("b")
    assert sums.forest is None
