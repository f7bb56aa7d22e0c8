import contextlib
import os
from pathlib import Path

import pytest

from fedpipe.errors import StoreError, StoreUnavailableError
from fedpipe.store import LocalStore, Store, keys
from fedpipe.store.testing import StoreContract
from tests.processes import few_files


class TestLocalStore(StoreContract):
    @pytest.fixture
    def store(self, tmp_path: Path) -> Store:
        return LocalStore(tmp_path / "store")


def test_no_scratch_is_left(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    store.create("a", b"1")
    store.create("a", b"2")
    store.replace("a", b"3")
    store.swap("a", b"4", store.read("a").version)
    assert [p.name for p in (tmp_path / ".fedpipe-tmp").iterdir()] == ["lock"]


def test_what_a_killed_writer_left_is_removed_after_a_day(tmp_path: Path) -> None:
    import os

    store = LocalStore(tmp_path)
    store.probe()
    left, fresh = tmp_path / ".fedpipe-tmp" / "left", tmp_path / ".fedpipe-tmp" / "fresh"
    left.write_bytes(b"half")
    fresh.write_bytes(b"half")
    os.utime(left, (0, 0))
    store.probe()
    assert not left.exists()
    assert fresh.exists()


def test_a_file_where_the_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be used"):
        LocalStore(tmp_path / "file").probe()


def test_a_listing_never_leaves_the_folder(tmp_path: Path) -> None:
    (tmp_path / "outside").write_text("x")
    store = LocalStore(tmp_path / "store")
    store.create("b/1", b"")
    for prefix in ("/", "../", "b/../../", f"{tmp_path}/", "b//", "./", "b/./"):
        assert list(store.keys(prefix)) == []
        assert list(store.entries(prefix)) == []


def test_a_file_that_grows_is_read_up_to_its_size(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    store.create("a/b", bytes(10))
    reader = store.open("a/b")
    with (tmp_path / "a/b").open("ab") as file:
        file.write(bytes(10))
    assert (reader.size, len(reader.read(7)), len(reader.read(7)), reader.read(7)) == (10, 7, 3, b"")
    reader.close()
    store.download("a/b", tmp_path / "copy")
    assert (tmp_path / "copy").stat().st_size == 20


def test_too_many_open_files_are_no_fault_of_an_object(tmp_path: Path) -> None:
    """So no learner is blamed: its objects can be read once others are closed."""
    store = LocalStore(tmp_path)
    store.create("a", b"1")
    with contextlib.ExitStack() as stack, few_files(5):
        with contextlib.suppress(StoreUnavailableError):
            for _ in range(6):
                stack.callback(store.open("a").close)
        with pytest.raises(StoreUnavailableError, match=r"Too many open files.*ulimit -n"):
            store.read("a")
        stack.close()
        assert store.read("a").data == b"1"


def test_empty_folders_can_be_removed(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "store")
    for key in ("runs/a/1/record", "runs/b/1/record"):
        store.create(key, b"")
    store.delete("runs/a/1/record")
    assert store.below("runs").folders() == ["a", "b"]
    store.remove_empty_folders()
    assert store.below("runs").folders() == ["b"]
    store.delete("runs/b/1/record")
    store.remove_empty_folders()
    assert store.folders() == []
    assert store.create("runs/a/1/record", b"")


def test_what_counts_is_on_the_disk_before_it_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, synced = LocalStore(tmp_path), []
    sync = os.fsync

    def noted(handle: int) -> None:
        synced.append(Path(f"/proc/self/fd/{handle}").read_bytes())
        sync(handle)

    monkeypatch.setattr(os, "fsync", noted)
    store.create(keys.update("a", "r", 1), b"update")
    store.create(keys.record("r", 1), b"record")
    store.replace(keys.HEAD, b"head")
    assert synced == [b"update", b"record", b"head"]


def test_signs_and_timings_need_not_be_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = LocalStore(tmp_path)
    monkeypatch.setattr(os, "fsync", lambda _: pytest.fail("it was awaited"))
    store.replace(keys.sign("a", "r"), b"sign")
    store.create(keys.timing("r", 1, "train", "a"), b"timing")
    assert store.read(keys.sign("a", "r")).data == b"sign"
