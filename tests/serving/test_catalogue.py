"""The models of a store, verified, with copies on this machine."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from fedpipe.errors import CorruptError, InputError, NotFoundError, StoreError, StoreUnavailableError
from fedpipe.identity.enrolment import Enrolment, change_enrolled
from fedpipe.identity.signing import make_key, public_key
from fedpipe.registry.publication import ModelVersion, Origin, sign_publication, versions
from fedpipe.serving.catalogue import Catalogue, Location, locate
from fedpipe.serving.promotion import promote
from fedpipe.serving.traffic import Split, read_traffic
from fedpipe.store import LocalStore, MemoryStore, Store, keys
from fedpipe.store.objects import decode
from tests.faults.stores import HookedStore
from tests.served import publish, softmax


class Lost:
    """Makes a store unreachable, and reachable again."""

    def __init__(self) -> None:
        self.lost = False

    def __call__(self, *_: object) -> None:
        if self.lost:
            raise StoreUnavailableError("the store cannot be reached")


def place(models: object) -> Location:
    return Location(models, "federation", is_local=False)  # type: ignore[arg-type]


def looked(place: Location, cache: Store | None = None) -> Catalogue:
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
    assert looked(place(store)).fetch(ModelVersion("m", 1)) == softmax()
    models.replace("m/1/model.onnx", softmax(2))
    with pytest.raises(CorruptError, match="the model has the digest"):
        looked(place(store)).fetch(ModelVersion("m", 1))
    models.delete("m/1/origin.json")
    with pytest.raises(CorruptError, match="does not tell its origin"):
        looked(place(store)).fetch(ModelVersion("m", 1))


def test_a_folder_of_ones_own_needs_no_origin(tmp_path: Path) -> None:
    (tmp_path / "m" / "1").mkdir(parents=True)
    (tmp_path / "m" / "1" / "model.onnx").write_bytes(softmax())
    assert looked(locate(folder=tmp_path)).fetch(ModelVersion("m", 1)) == softmax()


def test_copies_serve_while_the_store_is_lost(store: MemoryStore, models: MemoryStore, tmp_path: Path) -> None:
    lost, cache = Lost(), LocalStore(tmp_path)
    publish(models, "m", 1, softmax(1))
    publish(models, "m", 2, softmax(2))
    promote(models, "m", Split(kind="pinned", version=1))
    catalogue = looked(place(HookedStore(store, lost)), cache)
    catalogue.fetch(ModelVersion("m", 1))
    lost.lost = True
    again = Catalogue(place(HookedStore(store, lost)), cache)
    found = again.look()
    assert found["m"][0] == [1]
    assert found["m"][1].rule == Split(kind="pinned", version=1)
    assert again.is_lost
    assert "cannot be reached" in again.troubles[0]
    assert again.fetch(ModelVersion("m", 1)) == softmax(1)
    with pytest.raises(StoreUnavailableError):
        again.fetch(ModelVersion("m", 2))
    lost.lost = False
    assert again.look()["m"][0] == [1, 2]
    assert not again.is_lost
    assert not again.troubles


def test_a_copy_that_was_spoiled_is_fetched_again(store: MemoryStore, models: MemoryStore, tmp_path: Path) -> None:
    publish(models, "m", 1, softmax())
    cache = LocalStore(tmp_path)
    catalogue = looked(place(store), cache)
    catalogue.fetch(ModelVersion("m", 1))
    cache.replace("m/1/model.onnx", b"spoiled")
    assert catalogue.fetch(ModelVersion("m", 1)) == softmax()
    assert cache.read("m/1/model.onnx").data == softmax()


class TestAFederationWhoseCoordinatorIsEnrolled:
    KEY = make_key()

    @pytest.fixture
    def signed(self, store: MemoryStore, models: MemoryStore) -> MemoryStore:
        """Two versions, of which the first is signed."""
        for version in (1, 2):
            publish(models, "m", version, softmax(version))
        self.sign(models, 1)
        enrolment = Enrolment(key=public_key(self.KEY), since=1.0e9)
        change_enrolled(store, lambda current: msgspec.structs.replace(current, coordinator=enrolment))
        return store

    def sign(self, models: Store, version: int) -> None:
        entry = ModelVersion("m", version)
        sign_publication(models, entry, decode(models.read(keys.origin(*entry)).data, Origin, where=""), self.KEY)

    def test_serves_what_it_signed(self, signed: MemoryStore) -> None:
        catalogue = looked(place(signed))
        assert catalogue.fetch(ModelVersion("m", 1)) == softmax(1)
        with pytest.raises(CorruptError, match="m version 2 is not signed, and the coordinator is enrolled"):
            catalogue.fetch(ModelVersion("m", 2))

    def test_an_old_version_is_no_new_one(self, signed: MemoryStore, models: MemoryStore) -> None:
        """Who may write in the store, but has not the key, copies a version to a higher number, or to another name."""
        for target in ("m/3", "n/1"):
            for name in ("origin.json", "signature.json", "model.onnx"):
                models.create(f"{target}/{name}", models.read(f"m/1/{name}").data)
        catalogue = looked(place(signed))
        for entry in (ModelVersion("m", 3), ModelVersion("n", 1)):
            with pytest.raises(CorruptError, match=f"the signature does not fit {entry}"):
                catalogue.fetch(entry)

    def test_another_origin_with_its_own_digest(self, signed: MemoryStore, models: MemoryStore) -> None:
        publish(models, "m", 9, softmax(9))
        for name in ("origin.json", "model.onnx"):
            models.replace(f"m/1/{name}", models.read(f"m/9/{name}").data)
        with pytest.raises(CorruptError, match="the signature does not fit m version 1"):
            looked(place(signed)).fetch(ModelVersion("m", 1))

    def test_a_signature_that_is_none(self, signed: MemoryStore, models: MemoryStore) -> None:
        models.replace("m/1/signature.json", b"{}")
        with pytest.raises(CorruptError, match="not a valid signature"):
            looked(place(signed)).fetch(ModelVersion("m", 1))

    def test_who_is_enrolled_cannot_be_read(self, signed: MemoryStore) -> None:
        signed.replace("enrolled", b"spoiled")
        with pytest.raises(CorruptError, match="not a valid enrolled"):
            looked(place(signed)).fetch(ModelVersion("m", 1))

    def test_a_copy_is_checked_again_while_the_store_answers(self, signed: MemoryStore, tmp_path: Path) -> None:
        lost, cache = Lost(), LocalStore(tmp_path)
        catalogue = looked(place(HookedStore(signed, lost)), cache)
        assert catalogue.fetch(ModelVersion("m", 1)) == softmax(1)
        revoked = Enrolment(key=public_key(self.KEY), since=1.0e9, revoked=1.1e9)
        change_enrolled(signed, lambda current: msgspec.structs.replace(current, coordinator=revoked))
        with pytest.raises(CorruptError, match="the coordinator was revoked on 2004-11-09"):
            catalogue.fetch(ModelVersion("m", 1))
        lost.lost = True  # in doubt it goes on: what was verified once answers
        assert catalogue.fetch(ModelVersion("m", 1)) == softmax(1)

    def test_a_store_that_forbids_what_is_missing(self, store: MemoryStore, models: MemoryStore) -> None:
        """AWS S3 does to who may not list the bucket; `enrolled` alone may be listed."""

        def forbid(_number: int, name: str, key: str) -> None:
            if (name, key) == ("read", "enrolled"):
                raise StoreError("the store refuses the credentials")

        publish(models, "m", 1, softmax())
        catalogue = looked(place(HookedStore(store, forbid)))
        assert catalogue.fetch(ModelVersion("m", 1)) == softmax()
        store.create("enrolled", b"{}")
        with pytest.raises(StoreError, match="refuses the credentials"):
            catalogue.fetch(ModelVersion("m", 1))


def test_copies_of_what_is_served_no_more_are_removed(store: MemoryStore, models: MemoryStore, tmp_path: Path) -> None:
    cache = LocalStore(tmp_path)
    for version in (1, 2):
        publish(models, "m", version, softmax(version))
    catalogue = looked(place(store), cache)
    for version in (1, 2):
        catalogue.fetch(ModelVersion("m", version))
    promote(models, "m", Split(kind="pinned", version=2))
    catalogue.settle("m", {2}, read_traffic(models, "m")[0])
    assert sorted(cache.keys()) == ["m/2/model.onnx", "m/2/origin.json", keys.traffic("m")]


def test_a_full_disk_is_no_reason_not_to_serve(
    store: MemoryStore, models: MemoryStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def full(_number: int, name: str, _key: str) -> None:
        if name == "replace":
            raise OSError(28, "No space left on device")

    publish(models, "m", 1, softmax())
    catalogue = looked(place(store), HookedStore(LocalStore(tmp_path), full))
    assert catalogue.fetch(ModelVersion("m", 1)) == softmax()
    assert "m version 1 is not kept on this machine" in caplog.text


def test_places_that_are_wrong(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="models come from one place"):
        locate()
    with pytest.raises(InputError, match="models come from one place"):
        locate(store="file:///x", folder=tmp_path)
    with pytest.raises(InputError, match="there is no such folder"):
        locate(folder=tmp_path / "absent")
    with pytest.raises(StoreError, match="has an unknown scheme"):
        locate(store="ftp://x")


def test_the_federation_file_names_the_store(digits: Path) -> None:
    file = digits / "federation.yaml"
    assert [home.models.uri for home in locate(source=file).homes()] == [f"file://{digits}/store/digits/models"]
    other = locate(source=file, store=str(digits / "other"))
    assert [home.models.uri for home in other.homes()] == [f"file://{digits}/other/digits/models"]


def test_a_store_may_hold_several_federations(store: MemoryStore, tmp_path: Path) -> None:
    publish(store.below("north").below("models"), "m", 1, softmax(1))
    publish(store.below("south").below("models"), "n", 2, softmax(2))
    publish(store.below("west").below("models"), "m", 3, softmax(3))
    store.create("north/HEAD", b"")
    place = Location(store, "any", is_local=False)
    catalogue = Catalogue(place, LocalStore(tmp_path))
    assert {name: numbers for name, (numbers, _) in catalogue.look().items()} == {"m": [1], "n": [2]}
    assert catalogue.troubles == ["memory:///west/models: there is another model 'm', which is not served"]
    assert catalogue.fetch(ModelVersion("n", 2)) == softmax(2)
    assert place.home_of("n").models.uri == "memory:///south/models"
    with pytest.raises(NotFoundError, match=r"there is no model 'o'\. There are: m, m, n"):
        place.home_of("o")
    one = Location(store.below("west"), "any", is_local=False)
    assert {name: numbers for name, (numbers, _) in Catalogue(one).look().items()} == {"m": [3]}
