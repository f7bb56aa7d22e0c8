"""The account of a site's agent: nothing is sent without an entry, but that the site cannot take part."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fedpipe.errors import InputError
from fedpipe.sites.account import accounted
from fedpipe.store import MemoryStore, Store, keys
from fedpipe.store.objects import digest_of, put_bytes

Noted = list[tuple[str, dict[str, Any]]]


@pytest.fixture
def noted() -> Noted:
    return []


@pytest.fixture
def inner() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def store(inner: MemoryStore, noted: Noted) -> Store:
    return accounted(inner, lambda event, **fields: noted.append((event, fields)), "b")


def full(event: str, **fields: Any) -> None:
    raise InputError("the journal cannot be written: No space left on device")


AGREED, SIGN = keys.answer("b", "r1", 2, "agreed"), keys.sign("b", "r1")
EXCUSES = (
    SIGN,
    keys.answer("b", "r1", 2, keys.note("dropped", 3)),
    keys.answer("b", "r1", 2, "absent"),
    keys.score("b", "r1"),
)


def test_each_object_that_is_sent_has_an_entry(store: Store, noted: Noted, tmp_path: Path) -> None:
    assert store.create(AGREED, b"one")
    assert store.swap(AGREED, b"two", store.read(AGREED).version)
    store.replace(SIGN, b"three")
    (tmp_path / "file").write_bytes(b"four!")
    store.upload(keys.content(digest_of(b"four!"), "b"), tmp_path / "file")
    assert [(event, fields["object"], fields["bytes"]) for event, fields in noted] == [
        ("sent", AGREED, 3), ("sent", AGREED, 3), ("sent", SIGN, 5), ("sent", keys.content(digest_of(b"four!"), "b"), 5),
    ]  # fmt: skip
    assert [fields["digest"] for _, fields in noted[:3]] == [digest_of(data) for data in (b"one", b"two", b"three")]


def test_nothing_is_sent_without_a_journal(inner: MemoryStore, tmp_path: Path) -> None:
    store = accounted(inner, full, "b")
    inner.replace("there", b"1")
    (tmp_path / "file").write_bytes(b"1")
    for send in (
        lambda: store.create(AGREED, b"1"), lambda: store.replace(AGREED, b"1"),
        lambda: store.swap("there", b"2", inner.read("there").version), lambda: store.upload("up", tmp_path / "file"),
    ):  # fmt: skip
        with pytest.raises(InputError, match="No space left on device"):
            send()
    assert list(inner.keys()) == ["there"]
    assert inner.read("there").data == b"1"


@pytest.mark.parametrize("key", [*EXCUSES, keys.presence("b")])
def test_others_need_not_wait_for_a_site_whose_disk_is_full(inner: MemoryStore, key: str) -> None:
    accounted(inner, full, "b").replace(key, b"1")
    assert inner.read(key).data == b"1"


def test_the_presence_is_no_entry(store: Store, noted: Noted) -> None:
    store.replace(keys.presence("b"), b"1")
    assert noted == []


def test_content_that_is_read_has_one_entry(store: Store, inner: MemoryStore, noted: Noted) -> None:
    code = keys.content(put_bytes(inner, b"code"))
    inner.replace("runs/r1/board", b"{}")
    for _ in range(3):
        assert store.read(code).data == b"code"
        assert store.read("runs/r1/board").data == b"{}"
        assert store.poll("runs/r1/board") is not None
    assert noted == [("read", {"object": code, "bytes": 4})]
