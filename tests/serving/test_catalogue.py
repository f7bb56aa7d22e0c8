"""The models of a store, verified, with copies on this machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedpipe.errors import CorruptError, InputError, StoreError, StoreUnavailableError
from fedpipe.serving.catalogue import Catalogue, Entry, Place, locate, versions
from fedpipe.serving.policy import Rule, policy_key
from fedpipe.serving.promotion import promote
from fedpipe.store import LocalStore, MemoryStore
from tests.faults.stores import HookedStore
from tests.served import publish, softmax


class Lost:
    """Makes a store unreachable, and reachable again."""

    def __init__(self) -> None:
        self.lost = False

    def __call__(self, *_: object) -> None:
        if self.lost:
            raise StoreUnavailableError("the store cannot be reached")


def place(models: object) -> Place:
    return Place(models, published=True, is_local=False)  # type: ignore[arg-type]


def test_versions_are_numbers_in_order(store: MemoryStore) -> None:
    for key in (
        "m/2/model.onnx",
        "m/10/model.onnx",
        "m/0/model.onnx",
        "m/x/model.onnx",
        "m/3/origin.json",
        "n/1/model.onnx",
    ):
        store.create(key, b"")
    assert versions(store) == {"m": [2, 10], "n": [1]}


def test_a_claim_without_a_model_is_no_version(store: MemoryStore) -> None:
    publish(store, "m", 1, softmax())
    store.delete("m/1/model.onnx")
    assert versions(store) == {}


def test_bytes_have_the_digest_of_their_origin(store: MemoryStore) -> None:
    publish(store, "m", 1, softmax())
    assert Catalogue(place(store)).fetch(Entry("m", 1)) == softmax()
    store.replace("m/1/model.onnx", softmax(2))
    with pytest.raises(CorruptError, match="the model has the digest"):
        Catalogue(place(store)).fetch(Entry("m", 1))
    store.delete("m/1/origin.json")
    with pytest.raises(CorruptError, match="does not tell its origin"):
        Catalogue(place(store)).fetch(Entry("m", 1))


def test_a_folder_of_ones_own_needs_no_origin(tmp_path: Path) -> None:
    (tmp_path / "m" / "1").mkdir(parents=True)
    (tmp_path / "m" / "1" / "model.onnx").write_bytes(softmax())
    assert Catalogue(locate(folder=tmp_path)).fetch(Entry("m", 1)) == softmax()


def test_copies_serve_while_the_store_is_lost(store: MemoryStore, tmp_path: Path) -> None:
    lost, cache = Lost(), LocalStore(tmp_path)
    publish(store, "m", 1, softmax(1))
    publish(store, "m", 2, softmax(2))
    promote(store, "m", Rule(kind="pinned", version=1))
    catalogue = Catalogue(place(HookedStore(store, lost)), cache)
    catalogue.fetch(Entry("m", 1))
    lost.lost = True
    again = Catalogue(place(HookedStore(store, lost)), cache)
    found = again.look()
    assert found["m"][0] == [1]
    assert found["m"][1].rule == Rule(kind="pinned", version=1)
    assert again.is_lost
    assert "cannot be reached" in again.troubles[0]
    assert again.fetch(Entry("m", 1)) == softmax(1)
    with pytest.raises(StoreUnavailableError):
        again.fetch(Entry("m", 2))
    lost.lost = False
    assert again.look()["m"][0] == [1, 2]
    assert not again.is_lost
    assert not again.troubles


def test_a_copy_that_was_spoiled_is_fetched_again(store: MemoryStore, tmp_path: Path) -> None:
    publish(store, "m", 1, softmax())
    cache = LocalStore(tmp_path)
    catalogue = Catalogue(place(store), cache)
    catalogue.fetch(Entry("m", 1))
    cache.replace("m/1/model.onnx", b"spoiled")
    assert catalogue.fetch(Entry("m", 1)) == softmax()
    assert cache.read("m/1/model.onnx").data == softmax()


def test_copies_of_what_is_served_no_more_are_removed(store: MemoryStore, tmp_path: Path) -> None:
    cache = LocalStore(tmp_path)
    catalogue = Catalogue(place(store), cache)
    for version in (1, 2):
        publish(store, "m", version, softmax(version))
        catalogue.fetch(Entry("m", version))
    promote(store, "m", Rule(kind="pinned", version=2))
    catalogue.settle("m", {2})
    assert sorted(cache.keys()) == ["m/2/model.onnx", "m/2/origin.json", policy_key("m")]


def test_a_full_disk_is_no_reason_not_to_serve(
    store: MemoryStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def full(_number: int, name: str, _key: str) -> None:
        if name == "replace":
            raise OSError(28, "No space left on device")

    publish(store, "m", 1, softmax())
    catalogue = Catalogue(place(store), HookedStore(LocalStore(tmp_path), full))
    assert catalogue.fetch(Entry("m", 1)) == softmax()
    assert "m version 1 is not kept on this machine" in caplog.text


def test_places_that_are_wrong(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="models come from one place"):
        locate()
    with pytest.raises(InputError, match="models come from one place"):
        locate(store="file:///x", folder=tmp_path)
    with pytest.raises(InputError, match="there is no such folder"):
        locate(folder=tmp_path / "absent")
    with pytest.raises(StoreError, match="unknown store"):
        locate(store="ftp://x")


def test_the_federation_file_names_the_store(digits: Path) -> None:
    file = digits / "federation.yaml"
    assert locate(source=file).models.uri == f"file://{digits}/store/digits/models"
    assert locate(source=file, store=str(digits / "other")).models.uri == f"file://{digits}/other/digits/models"
    assert locate(store=str(digits / "other" / "digits")).models.uri == f"file://{digits}/other/digits/models"
