"""The models of a store, verified, with copies on this machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedpipe.errors import CorruptError, InputError, NotFoundError, StoreError, StoreUnavailableError
from fedpipe.serving.catalogue import Catalogue, Entry, Place, locate, versions
from fedpipe.serving.policy import Rule, policy_key, read_policy
from fedpipe.serving.promotion import promote
from fedpipe.store import LocalStore, MemoryStore, Store
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
    return Place(models, "federation", is_local=False)  # type: ignore[arg-type]


def looked(place: Place, cache: Store | None = None) -> Catalogue:
    """A catalogue that knows what is there."""
    catalogue = Catalogue(place, cache)
    catalogue.look()
    return catalogue


@pytest.fixture
def models(store: MemoryStore) -> MemoryStore:
    """The folder of a federation that holds its models."""
    return store.below("models")


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


def test_a_claim_without_a_model_is_no_version(models: MemoryStore) -> None:
    publish(models, "m", 1, softmax())
    models.delete("m/1/model.onnx")
    assert versions(models) == {}


def test_bytes_have_the_digest_of_their_origin(store: MemoryStore, models: MemoryStore) -> None:
    publish(models, "m", 1, softmax())
    assert looked(place(store)).fetch(Entry("m", 1)) == softmax()
    models.replace("m/1/model.onnx", softmax(2))
    with pytest.raises(CorruptError, match="the model has the digest"):
        looked(place(store)).fetch(Entry("m", 1))
    models.delete("m/1/origin.json")
    with pytest.raises(CorruptError, match="does not tell its origin"):
        looked(place(store)).fetch(Entry("m", 1))


def test_a_folder_of_ones_own_needs_no_origin(tmp_path: Path) -> None:
    (tmp_path / "m" / "1").mkdir(parents=True)
    (tmp_path / "m" / "1" / "model.onnx").write_bytes(softmax())
    assert looked(locate(folder=tmp_path)).fetch(Entry("m", 1)) == softmax()


def test_copies_serve_while_the_store_is_lost(store: MemoryStore, models: MemoryStore, tmp_path: Path) -> None:
    lost, cache = Lost(), LocalStore(tmp_path)
    publish(models, "m", 1, softmax(1))
    publish(models, "m", 2, softmax(2))
    promote(models, "m", Rule(kind="pinned", version=1))
    catalogue = looked(place(HookedStore(store, lost)), cache)
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


def test_a_copy_that_was_spoiled_is_fetched_again(store: MemoryStore, models: MemoryStore, tmp_path: Path) -> None:
    publish(models, "m", 1, softmax())
    cache = LocalStore(tmp_path)
    catalogue = looked(place(store), cache)
    catalogue.fetch(Entry("m", 1))
    cache.replace("m/1/model.onnx", b"spoiled")
    assert catalogue.fetch(Entry("m", 1)) == softmax()
    assert cache.read("m/1/model.onnx").data == softmax()


def test_copies_of_what_is_served_no_more_are_removed(store: MemoryStore, models: MemoryStore, tmp_path: Path) -> None:
    cache = LocalStore(tmp_path)
    for version in (1, 2):
        publish(models, "m", version, softmax(version))
    catalogue = looked(place(store), cache)
    for version in (1, 2):
        catalogue.fetch(Entry("m", version))
    promote(models, "m", Rule(kind="pinned", version=2))
    catalogue.settle("m", {2}, read_policy(models, "m")[0])
    assert sorted(cache.keys()) == ["m/2/model.onnx", "m/2/origin.json", policy_key("m")]


def test_a_full_disk_is_no_reason_not_to_serve(
    store: MemoryStore, models: MemoryStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def full(_number: int, name: str, _key: str) -> None:
        if name == "replace":
            raise OSError(28, "No space left on device")

    publish(models, "m", 1, softmax())
    catalogue = looked(place(store), HookedStore(LocalStore(tmp_path), full))
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
    assert [home.uri for home in locate(source=file).homes()] == [f"file://{digits}/store/digits/models"]
    other = locate(source=file, store=str(digits / "other"))
    assert [home.uri for home in other.homes()] == [f"file://{digits}/other/digits/models"]


def test_a_store_may_hold_several_federations(store: MemoryStore, tmp_path: Path) -> None:
    publish(store.below("north").below("models"), "m", 1, softmax(1))
    publish(store.below("south").below("models"), "n", 2, softmax(2))
    publish(store.below("west").below("models"), "m", 3, softmax(3))
    store.create("north/HEAD", b"")
    place = Place(store, "any", is_local=False)
    catalogue = Catalogue(place, LocalStore(tmp_path))
    assert {name: numbers for name, (numbers, _) in catalogue.look().items()} == {"m": [1], "n": [2]}
    assert catalogue.troubles == ["memory:///west/models: there is another model 'm', which is not served"]
    assert catalogue.fetch(Entry("n", 2)) == softmax(2)
    assert place.home_of("n").uri == "memory:///south/models"
    with pytest.raises(NotFoundError, match=r"there is no model 'o'\. There are: m, m, n"):
        place.home_of("o")
    one = Place(store.below("west"), "any", is_local=False)
    assert {name: numbers for name, (numbers, _) in Catalogue(one).look().items()} == {"m": [3]}
