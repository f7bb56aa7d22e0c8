"""The contract that every implementation of `fedpipe.store.Store` must pass.

Subclass `StoreContract` in a test module and give it a fixture `store`, which returns an empty store:

    class TestMyStore(StoreContract):
        @pytest.fixture
        def store(self) -> Store:
            return MyStore()

It needs pytest, so nothing in fedpipe imports this module. For detailed failures, put
`pytest.register_assert_rewrite("fedpipe.store.testing")` into `conftest.py`.
"""

from __future__ import annotations

import concurrent.futures
import gzip
import hashlib
import time
import zlib
from pathlib import Path

import pytest

from fedpipe.errors import FedpipeError, NotFoundError, StoreError, TooLargeError
from fedpipe.store import Store


class StoreContract:
    """Tests a store: conditional writes, versions, ages, streams, keys and mistakes."""

    def test_a_created_object_is_read(self, store: Store) -> None:
        assert store.create("a/b", b"bytes")
        assert store.read("a/b").data == b"bytes"

    def test_create_reports_who_won(self, store: Store) -> None:
        assert store.create("once", b"first")
        assert not store.create("once", b"second")
        assert store.read("once").data == b"first"

    def test_one_of_many_racing_creates_wins(self, store: Store) -> None:
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            won = list(pool.map(lambda k: store.create("race", b"%d" % k), range(8)))
        assert won.count(True) == 1
        assert store.read("race").data == b"%d" % won.index(True)

    def test_swap_replaces_the_version_that_was_read(self, store: Store) -> None:
        store.create("head", b"one")
        version = store.read("head").version
        assert store.swap("head", b"two", version)
        assert store.read("head").data == b"two"

    def test_swap_refuses_a_stale_version(self, store: Store) -> None:
        store.create("head", b"one")
        version = store.read("head").version
        store.swap("head", b"two", version)
        assert not store.swap("head", b"three", version)
        assert store.read("head").data == b"two"

    def test_swap_refuses_an_absent_object(self, store: Store) -> None:
        store.create("other", b"x")
        assert not store.swap("absent", b"two", store.read("other").version)
        assert store.size("absent") is None

    def test_one_of_many_racing_swaps_wins(self, store: Store) -> None:
        store.create("head", b"start")
        version = store.read("head").version
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            won = list(pool.map(lambda k: store.swap("head", b"%d" % k, version), range(8)))
        assert won.count(True) == 1
        assert store.read("head").data == b"%d" % won.index(True)

    def test_poll_returns_only_new_versions(self, store: Store) -> None:
        assert store.poll("board") is None
        store.create("board", b"one")
        first = store.poll("board")
        assert first is not None
        assert first.data == b"one"
        assert store.poll("board", first.version) is None
        assert store.swap("board", b"two", first.version), "the version of a poll is that of a read"
        second = store.poll("board", first.version)
        assert second is not None
        assert second.data == b"two"
        assert store.poll("board", second.version) is None
        with pytest.raises(TooLargeError):
            store.poll("board", limit=2)

    def test_age_counts_from_the_last_write(self, store: Store) -> None:
        assert store.age("board") is None
        store.create("board", b"one")
        store.create("other", b"one")
        time.sleep(2.1)
        store.replace("board", b"two")
        young, old = store.age("board"), store.age("other")
        assert young is not None
        assert old is not None
        assert young >= 0
        assert 1.0 <= old - young < 60  # S3 servers report whole seconds, some of them a second late

    def test_replace_overwrites(self, store: Store) -> None:
        store.replace("note", b"one")
        store.replace("note", b"two, longer")
        assert store.read("note").data == b"two, longer"

    def test_an_error_names_the_absent_object(self, store: Store) -> None:
        for act in (store.read, store.open):
            with pytest.raises(NotFoundError, match="absent"):
                act("absent")
        with pytest.raises(NotFoundError):
            store.read_range("absent", 0, 1)
        assert store.size("absent") is None

    def test_a_folder_is_not_an_object(self, store: Store) -> None:
        store.create("folder/object", b"x")
        with pytest.raises(NotFoundError):
            store.read("folder")

    def test_read_refuses_objects_above_the_limit(self, store: Store) -> None:
        store.create("large", bytes(100))
        with pytest.raises(StoreError, match="100 bytes"):
            store.read("large", limit=99)

    def write_encoded(self, store: Store, key: str, data: bytes, encoding: str) -> None:
        """Writes an object with a content encoding. Override it for a store that keeps one, as S3 does."""
        assert encoding
        store.replace(key, data)

    @pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd", "GZip", "gzip, gzip", "identity, gzip"])
    def test_content_is_never_decoded(self, store: Store, tmp_path: Path, encoding: str) -> None:
        """Every way to read gives the bytes that are stored, or refuses them: they cannot grow."""
        data = gzip.compress(gzip.compress(bytes(2**22)))
        if encoding == "deflate":
            data = zlib.compress(bytes(2**22))
        self.write_encoded(store, "grows", data, encoding)

        def polled() -> bytes:
            blob = store.poll("grows")
            assert blob is not None
            return blob.data

        def streamed() -> bytes:
            reader = store.open("grows")
            pieces = list(iter(lambda: reader.read(100), b""))
            reader.close()
            return b"".join(pieces)

        def downloaded() -> bytes:
            store.download("grows", tmp_path / "down")
            return (tmp_path / "down").read_bytes()

        ways = {
            "read": lambda: store.read("grows").data,
            "poll": polled,
            "open": streamed,
            "range": lambda: store.read_range("grows", 0, 2**22),
            "rest": lambda: data[:4] + store.read_range("grows", 4, 2**22),
            "download": downloaded,
        }
        for name, way in ways.items():
            try:
                found = way()
            except FedpipeError as error:
                assert encoding in str(error), name  # noqa: PT017  (it may also not raise)
            else:
                assert found == data, name
        assert store.size("grows") == len(data)

    def test_ranges(self, store: Store) -> None:
        store.create("digits", b"0123456789")
        assert store.read_range("digits", 2, 3) == b"234"
        assert store.read_range("digits", 8, 9) == b"89"
        assert store.read_range("digits", 10, 5) == b""
        assert store.read_range("digits", 0, 0) == b""

    def test_an_empty_object(self, store: Store) -> None:
        assert store.create("empty", b"")
        assert store.read("empty").data == b""
        assert store.size("empty") == 0

    def test_a_stream_returns_the_bytes_in_order(self, store: Store) -> None:
        data = bytes(range(256)) * 5000
        store.create("stream", data)
        reader = store.open("stream")
        assert reader.size == len(data)
        found = b""
        while piece := reader.read(300_001):
            found += piece
        reader.close()
        assert found == data

    def test_a_stream_may_be_closed_early(self, store: Store) -> None:
        store.create("stream", bytes(3_000_000))
        reader = store.open("stream")
        reader.read(10)
        reader.close()
        assert store.size("stream") == 3_000_000

    @pytest.mark.parametrize("size", [0, 1, 1_000_000, 70 * 2**20])
    def test_files_of_any_size_are_uploaded_and_downloaded(self, store: Store, tmp_path: Path, size: int) -> None:
        data = hashlib.sha256(b"seed").digest() * (size // 32 + 1)
        (tmp_path / "up").write_bytes(data[:size])
        store.upload("file", tmp_path / "up")
        store.download("file", tmp_path / "down")
        assert store.size("file") == size
        assert (tmp_path / "down").read_bytes() == data[:size]

    def test_a_failed_download_leaves_no_file(self, store: Store, tmp_path: Path) -> None:
        with pytest.raises(NotFoundError):
            store.download("absent", tmp_path / "down")
        assert list(tmp_path.iterdir()) == []

    def test_keys_are_sorted_and_filtered_by_prefix(self, store: Store) -> None:
        for key in ("b/2", "a/1", "b/1/x", "bc"):
            store.create(key, b"")
        assert list(store.keys()) == ["a/1", "b/1/x", "b/2", "bc"]
        assert list(store.keys("b")) == ["b/1/x", "b/2", "bc"]
        assert list(store.keys("b/")) == ["b/1/x", "b/2"]
        assert list(store.keys("nothing")) == []
        assert store.folders() == ["a", "b"]
        assert store.below("b").folders() == ["1"]
        assert store.below("nothing").folders() == []

    def test_a_listing_has_a_limit(self, store: Store) -> None:
        for number in range(5):
            store.create(f"a/{number}", b"")
        assert len(list(store.keys("a/", limit=3))) == 3
        assert set(store.keys("a/", limit=3)) < set(store.keys("a/"))
        assert list(store.keys("a/", limit=9)) == list(store.keys("a/"))

    def test_entries_have_sizes_and_times(self, store: Store) -> None:
        store.create("a/1", b"123")
        store.create("a/2", b"")
        store.create("b", b"12")
        found = list(store.entries())
        assert [(entry.key, entry.size) for entry in found] == [("a/1", 3), ("a/2", 0), ("b", 2)]
        assert [entry.key for entry in store.entries("a/")] == ["a/1", "a/2"]
        assert list(store.below("nothing").entries()) == []
        written = {entry.key: entry.written for entry in found}
        assert abs(written["b"] - written["a/1"]) < 60
        assert [entry.key for entry in store.below("a").entries()] == ["1", "2"]

    def test_delete_ignores_absent_objects(self, store: Store) -> None:
        store.create("gone", b"x")
        store.delete("gone")
        store.delete("gone")
        assert store.size("gone") is None

    def test_below_is_the_same_store_under_a_prefix(self, store: Store) -> None:
        below = store.below("team/one")
        below.create("x", b"1")
        assert store.read("team/one/x").data == b"1"
        assert list(below.keys()) == ["x"]
        assert below.uri == f"{store.uri}/team/one"

    @pytest.mark.parametrize(
        "key", ["", "/a", "a/", "a//b", "../a", "a/../b", "a/./b", "a b", "a\nb", "ä", "a\x00", "a\\b", "x" * 901]
    )
    def test_unsafe_keys_are_refused_everywhere(self, store: Store, key: str) -> None:
        for act in (store.read, store.open, store.size, store.delete, lambda k: store.create(k, b"")):
            with pytest.raises(StoreError, match="not a safe object key"):
                act(key)

    def test_probe_leaves_no_object(self, store: Store) -> None:
        store.probe()
        assert list(store.keys()) == []
