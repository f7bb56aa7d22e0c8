import resource
from pathlib import Path

import pytest

from fedpipe.errors import CorruptError, NotFoundError
from fedpipe.rounds.manifests import Head
from fedpipe.store import MemoryStore, Reader, keys
from fedpipe.store.objects import decode, digest_of, encode, fetch_file, find, get_bytes, put_bytes, put_file


def test_an_object_is_named_by_its_bytes(store: MemoryStore) -> None:
    digest = put_bytes(store, b"hello")
    assert digest == "sha256:2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"
    assert list(store.keys()) == ["objects/2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"]
    assert get_bytes(store, digest) == b"hello"


def test_a_learner_writes_below_its_own_name(store: MemoryStore) -> None:
    digest = put_bytes(store, b"x", "hospital-a")
    assert next(store.keys()).startswith("learners/hospital-a/objects/")
    assert get_bytes(store, digest, "hospital-a") == b"x"
    with pytest.raises(NotFoundError):
        get_bytes(store, digest)


def test_altered_bytes_are_seen(store: MemoryStore, tmp_path: Path) -> None:
    digest = put_bytes(store, b"hello")
    store.replace(keys.content(digest), b"hellO")
    with pytest.raises(CorruptError, match="not the one in their name"):
        get_bytes(store, digest)
    with pytest.raises(CorruptError):
        fetch_file(store, digest, tmp_path / "file")
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_takes_a_part_leaves_no_file(store: MemoryStore, tmp_path: Path) -> None:
    """The system writes what still fits and says how much, without an error."""
    digest = put_bytes(store, bytes(300_000))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (290_000, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            fetch_file(store, digest, tmp_path / "w")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.iterdir())


def test_an_object_of_the_wrong_size_is_mended(store: MemoryStore, tmp_path: Path) -> None:
    digest = put_bytes(store, b"hello")
    store.replace(keys.content(digest), b"he")
    put_bytes(store, b"hello")
    assert get_bytes(store, digest) == b"hello"
    store.replace(keys.content(digest), b"he")
    (tmp_path / "file").write_bytes(b"hello")
    put_file(store, tmp_path / "file", digest)
    assert get_bytes(store, digest) == b"hello"


@pytest.mark.parametrize("digest", ["", "sha256:", "sha256:" + "g" * 64, "../" + "0" * 64, "sha256:" + "0" * 65])
def test_what_is_no_digest_is_refused(digest: str) -> None:
    with pytest.raises(CorruptError, match="not a digest"):
        keys.content(digest)


def test_a_reader_that_has_no_end(tmp_path: Path) -> None:
    class Endless:
        size = 1000

        def read(self, length: int) -> bytes:
            return bytes(length)

        def close(self) -> None:
            pass

    class Growing(MemoryStore):
        def open(self, key: str) -> Reader:
            return Endless()

    with pytest.raises(CorruptError, match="digest"):
        fetch_file(Growing(), digest_of(b"x"), tmp_path / "file", limit=1000)
    fetch_file(Growing(), digest_of(bytes(1000)), tmp_path / "file", limit=1000)
    assert (tmp_path / "file").read_bytes() == bytes(1000)


def test_json_is_canonical() -> None:
    assert encode({"b": 1, "a": [1.5, None]}) == b'{"a":[1.5,null],"b":1}'


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"run":"r"}', b'{"run":1,"round":0}', b"\xff", b"[" * 100_000])
def test_json_that_is_not_the_struct_is_refused(data: bytes) -> None:
    with pytest.raises(CorruptError, match="not a valid head"):
        decode(data, Head, where="HEAD")


def test_a_struct_above_the_limit_is_corrupt(store: MemoryStore) -> None:
    store.create("HEAD", b" " * 11)
    with pytest.raises(CorruptError, match="the object has 11 bytes, the limit is 10"):
        find(store, "HEAD", Head, limit=10)


def test_unknown_fields_are_refused() -> None:
    head = {"run": "r", "round": 0, "record": digest_of(b""), "weights": digest_of(b""), "more": 1}
    with pytest.raises(CorruptError, match="more"):
        decode(encode(head), Head, where="HEAD")
