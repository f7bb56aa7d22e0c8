"""Downloads of weights: learners in one process share that of the global ones."""

from __future__ import annotations

import gc
import threading
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fedpipe
from fedpipe import weights
from fedpipe.engine.workers import Worker
from fedpipe.errors import CorruptError
from fedpipe.learners import downloads
from fedpipe.learners.downloads import fetched, shared_downloads
from fedpipe.rounds.beginning import begin
from fedpipe.rounds.history import history
from fedpipe.store import LocalStore, MemoryStore, keys
from fedpipe.store.objects import put_bytes
from tests.commands.runs import store_of
from tests.faults.stores import Counting
from tests.federations import PlusOneLearner, fresh, make_federation, make_plan, play_round

ARRAYS = {"w": np.arange(5, dtype=np.float32), "b": np.zeros((), np.float64)}


def put(store: MemoryStore | LocalStore, arrays: Any = ARRAYS, owner: str | None = None) -> str:
    return put_bytes(store, weights.dumps(arrays), owner)


def same(found: Any, expected: Any = ARRAYS) -> bool:
    return found.keys() == expected.keys() and all(np.array_equal(found[name], expected[name]) for name in found)


@pytest.mark.parametrize(("sharing", "count"), [(True, 1), (False, 3)])
def test_learners_of_a_round_download_its_base_once(sharing: bool, count: int, tmp_path: Path) -> None:
    store, plan = Counting(), make_plan(make_federation(training={"rounds": 1, "batch_size": 1}))
    base = begin(store, plan, fresh).weights
    learners = {name: PlusOneLearner(1.0) for name in "abc"}
    if sharing:
        with shared_downloads():
            play_round(store, plan, 1, base, learners)
    else:
        play_round(store, plan, 1, base, learners)
    assert store.opened.count(keys.content(base)) == count


def test_the_next_global_weights_take_their_place(tmp_path: Path) -> None:
    store, other = Counting(), {"w": np.ones(3, np.float32)}
    first, second = put(store), put(store, other)
    with shared_downloads():
        for digest, expected in ((first, ARRAYS), (second, other), (second, other), (first, ARRAYS)):
            assert same(fetched(store, digest, tmp_path / "w"), expected)
    assert store.opened == [keys.content(digest) for digest in (first, second, first)]
    assert not list(tmp_path.iterdir())


def test_weights_of_a_learner_are_not_kept(tmp_path: Path) -> None:
    store = Counting()
    digest = put(store, owner="a")
    with shared_downloads():
        assert all(same(fetched(store, digest, tmp_path / "w", "a")) for _ in range(2))
    assert len(store.opened) == 2


def test_damaged_weights_are_refused_by_each(tmp_path: Path) -> None:
    store = Counting()
    digest = put(store)
    data = store.read(keys.content(digest)).data
    store.replace(keys.content(digest), data[:-1] + bytes([data[-1] ^ 1]))
    with shared_downloads():
        for _ in range(2):
            with pytest.raises(CorruptError, match="the bytes have the digest"):
                fetched(store, digest, tmp_path / "w")
        store.replace(keys.content(digest), data)
        assert same(fetched(store, digest, tmp_path / "w"))


def test_no_learner_can_change_them_for_the_next(tmp_path: Path) -> None:
    store = Counting()
    digest = put(store)
    with shared_downloads():
        mine = fetched(store, digest, tmp_path / "w")
        with pytest.raises(ValueError, match="read-only"):
            mine["w"][0] = 7
        with pytest.raises(ValueError, match="WRITEABLE"):
            mine["w"].flags.writeable = True
        mine["w"] = np.zeros(5, np.float32)
        del mine["b"]
        assert same(fetched(store, digest, tmp_path / "w"))


def test_threads_that_ask_at_the_same_time_download_once(tmp_path: Path) -> None:
    started = threading.Barrier(8)

    def ask(number: int) -> None:
        started.wait()
        found.append(same(fetched(store, digest, tmp_path / str(number))))

    store, found = Counting(), list[bool]()
    digest = put(store)
    with shared_downloads():
        threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert found == [True] * 8
    assert len(store.opened) == 1


@pytest.mark.parametrize(("room", "count"), [(28, 1), (27, 2)])
def test_larger_ones_are_not_kept(room: int, count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The arrays have 5 x 4 and 8 bytes."""
    monkeypatch.setattr(downloads, "MOST_KEPT", room)
    store = Counting()
    digest = put(store)
    with shared_downloads():
        for _ in range(2):
            fetched(store, digest, tmp_path / "w")
    assert len(store.opened) == count


def test_nothing_is_kept_after_the_end(tmp_path: Path) -> None:
    store = Counting()
    digest = put(store)
    with shared_downloads():
        with shared_downloads():
            held = weakref.ref(fetched(store, digest, tmp_path / "w")["w"])
        gc.collect()
        assert held() is not None  # somebody else still shares them
    gc.collect()
    assert held() is None


def test_a_worker_shares_them_between_its_learners(tmp_path: Path) -> None:
    """The second one needs no store at all."""
    store, worker = LocalStore(tmp_path / "store"), Worker(preloaded=False)
    digest = put(store)
    try:
        assert same(worker.call(fetched, store, digest, tmp_path / "w"))
        store.delete(keys.content(digest))
        assert same(worker.call(fetched, store, digest, tmp_path / "w"))
    finally:
        worker.stop()


def test_a_local_run_downloads_each_rounds_base_once(
    numpy_digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its learners in NumPy work in threads of this process, and the coordinator needs the base's file for the norms."""
    opened: list[str] = []
    original = LocalStore.open

    def counted(self: LocalStore, key: str) -> Any:
        opened.append(key)
        return original(self, key)

    monkeypatch.setattr(LocalStore, "open", counted)
    run = fedpipe.run(numpy_digits / "federation.yaml", out=tmp_path / "out", training={"rounds": 2}, export="none")
    records = history(store_of(numpy_digits / "store"), run.summary["run"])
    assert len(run.summary["rounds"][0]["learners"]) > 2
    for record in records[1:]:
        assert record.base is not None
        assert opened.count(keys.content(record.base)) == 2
