"""Tests the models of a store: listed, verified, and copied to this machine."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from fedpipe.errors import CorruptError, InputError, NotFoundError, StoreError, StoreUnavailableError, TooLargeError
from fedpipe.identity.enrolment import Enrolment, change_enrolled
from fedpipe.identity.signing import make_key, public_key, signer_of
from fedpipe.registry.publication import ModelVersion, Origin, sign_publication, versions
from fedpipe.serving.catalogue import Catalogue, Location, locate
from fedpipe.serving.promotion import promote
from fedpipe.serving.traffic import Split, read_traffic
from fedpipe.store import LocalStore, MemoryStore, Store, keys
from fedpipe.store.objects import decode
from tests.faults.stores import HookedStore
from tests.served import publish, softmax


class Outage:
    """Makes a store unreachable, and reachable again."""

    def __init__(self) -> None:
        self.active = False

    def __call__(self, *_: object) -> None:
        if self.active:
            raise StoreUnavailableError("the store cannot be reached")


def located(models: object) -> Location:
    return Location(models, "federation", is_local=False)  # type: ignore[arg-type]


def listed(location: Location, cache: Store | None = None) -> Catalogue:
    """Returns a catalogue that has listed its models."""
    catalogue = Catalogue(location, cache)
    catalogue.list_models()
    return catalogue


@pytest.fixture
def models(store: MemoryStore) -> MemoryStore:
    """Returns the folder of a federation with its models."""
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


def test_a_claim_without_a_model_is_not_a_version(models: MemoryStore) -> None:
    publish(models, "m", 1, softmax())
    models.delete("m/1/model.onnx")
    assert versions(models) == {}


def test_bytes_have_the_digest_of_their_origin(store: MemoryStore, models: MemoryStore) -> None:
    publish(models, "m", 1, softmax())
    assert listed(located(store)).fetch(ModelVersion("m", 1)) == softmax()
    models.replace("m/1/model.onnx", softmax(2))
    with pytest.raises(CorruptError, match="the model has the digest"):
        listed(located(store)).fetch(ModelVersion("m", 1))
    models.delete("m/1/origin.json")
    with pytest.raises(CorruptError, match="has no origin"):
        listed(located(store)).fetch(ModelVersion("m", 1))


def test_a_folder_of_ones_own_needs_no_origin(tmp_path: Path) -> None:
    (tmp_path / "m" / "1").mkdir(parents=True)
    (tmp_path / "m" / "1" / "model.onnx").write_bytes(softmax())
    assert listed(locate(folder=tmp_path)).fetch(ModelVersion("m", 1)) == softmax()


def test_copies_serve_while_the_store_is_unreachable(store: MemoryStore, models: MemoryStore, tmp_path: Path) -> None:
    outage, cache = Outage(), LocalStore(tmp_path)
    publish(models, "m", 1, softmax(1))
    publish(models, "m", 2, softmax(2))
    promote(models, "m", Split(kind="pinned", version=1))
    catalogue = listed(located(HookedStore(store, outage)), cache)
    catalogue.fetch(ModelVersion("m", 1))
    outage.active = True
    again = Catalogue(located(HookedStore(store, outage)), cache)
    found = again.list_models()
    assert found["m"][0] == [1]
    assert found["m"][1].split == Split(kind="pinned", version=1)
    assert again.is_unreachable
    assert "cannot be reached" in again.problems[0]
    assert again.fetch(ModelVersion("m", 1)) == softmax(1)
    with pytest.raises(StoreUnavailableError):
        again.fetch(ModelVersion("m", 2))
    outage.active = False
    assert again.list_models()["m"][0] == [1, 2]
    assert not again.is_unreachable
    assert not again.problems


@pytest.mark.parametrize(
    "error", [CorruptError("content encoding"), TooLargeError("17 MiB"), StoreError("InvalidRequest")]
)
def test_the_traffic_of_one_model_stops_no_other(
    store: MemoryStore, models: MemoryStore, tmp_path: Path, error: Exception
) -> None:
    def refusing(_number: int, name: str, key: str) -> None:
        if key.endswith("odd/traffic.json") and name == "read":
            raise error

    publish(models, "m", 1, softmax())
    publish(models, "odd", 1, softmax())
    promote(models, "odd", Split(kind="pinned", version=1))
    catalogue = Catalogue(located(HookedStore(store, refusing)), LocalStore(tmp_path))
    found = catalogue.list_models()
    assert not catalogue.is_unreachable
    assert found["odd"] == ([1], None)
    assert found["m"][1] is not None
    assert len(catalogue.problems) == 1
    assert catalogue.fetch(ModelVersion("odd", 1)) == softmax()


def test_a_copy_that_was_spoiled_is_fetched_again(store: MemoryStore, models: MemoryStore, tmp_path: Path) -> None:
    publish(models, "m", 1, softmax())
    cache = LocalStore(tmp_path)
    catalogue = listed(located(store), cache)
    catalogue.fetch(ModelVersion("m", 1))
    cache.replace("m/1/model.onnx", b"spoiled")
    assert catalogue.fetch(ModelVersion("m", 1)) == softmax()
    assert cache.read("m/1/model.onnx").data == softmax()


class TestAFederationWhoseCoordinatorIsEnrolled:
    KEY = make_key()

    @pytest.fixture
    def signed(self, store: MemoryStore, models: MemoryStore) -> MemoryStore:
        """Publishes two versions, and signs the first."""
        for version in (1, 2):
            publish(models, "m", version, softmax(version))
        self.sign(models, 1)
        enrolment = Enrolment(key=public_key(self.KEY), since=1.0e9)
        change_enrolled(store, lambda current: msgspec.structs.replace(current, coordinator=enrolment))
        return store

    def sign(self, models: Store, version: int) -> None:
        entry = ModelVersion("m", version)
        origin = decode(models.read(keys.origin(*entry)).data, Origin, where="")
        sign_publication(models, entry, origin, signer_of(self.KEY))

    def test_serves_what_it_signed(self, signed: MemoryStore) -> None:
        catalogue = listed(located(signed))
        assert catalogue.fetch(ModelVersion("m", 1)) == softmax(1)
        with pytest.raises(CorruptError, match="m version 2 is not signed, and the coordinator is enrolled"):
            catalogue.fetch(ModelVersion("m", 2))

    def test_an_old_version_cannot_become_a_new_one(self, signed: MemoryStore, models: MemoryStore) -> None:
        """Somebody who can write to the store, but lacks the key, copies a version to a higher number, or to another name."""
        for target in ("m/3", "n/1"):
            for name in ("origin.json", "signature.json", "model.onnx"):
                models.create(f"{target}/{name}", models.read(f"m/1/{name}").data)
        catalogue = listed(located(signed))
        for entry in (ModelVersion("m", 3), ModelVersion("n", 1)):
            with pytest.raises(CorruptError, match=f"the signature does not fit {entry}"):
                catalogue.fetch(entry)

    def test_another_origin_with_its_own_digest(self, signed: MemoryStore, models: MemoryStore) -> None:
        publish(models, "m", 9, softmax(9))
        for name in ("origin.json", "model.onnx"):
            models.replace(f"m/1/{name}", models.read(f"m/9/{name}").data)
        with pytest.raises(CorruptError, match="the signature does not fit m version 1"):
            listed(located(signed)).fetch(ModelVersion("m", 1))

    def test_an_invalid_signature(self, signed: MemoryStore, models: MemoryStore) -> None:
        models.replace("m/1/signature.json", b"{}")
        with pytest.raises(CorruptError, match="not a valid signature"):
            listed(located(signed)).fetch(ModelVersion("m", 1))

    def test_enrolments_that_cannot_be_read(self, signed: MemoryStore) -> None:
        signed.replace("enrolled", b"spoiled")
        with pytest.raises(CorruptError, match="not a valid enrolled"):
            listed(located(signed)).fetch(ModelVersion("m", 1))

    def test_a_copy_is_checked_again_while_the_store_answers(self, signed: MemoryStore, tmp_path: Path) -> None:
        outage, cache = Outage(), LocalStore(tmp_path)
        catalogue = listed(located(HookedStore(signed, outage)), cache)
        assert catalogue.fetch(ModelVersion("m", 1)) == softmax(1)
        revoked = Enrolment(key=public_key(self.KEY), since=1.0e9, revoked=1.1e9)
        change_enrolled(signed, lambda current: msgspec.structs.replace(current, coordinator=revoked))
        with pytest.raises(CorruptError, match="the coordinator was revoked on 2004-11-09"):
            catalogue.fetch(ModelVersion("m", 1))
        outage.active = True  # a version that was verified once keeps answering
        assert catalogue.fetch(ModelVersion("m", 1)) == softmax(1)

    def test_a_store_that_forbids_what_is_missing(self, store: MemoryStore, models: MemoryStore) -> None:
        """AWS S3 does so for users that may not list the bucket; `enrolled` alone may be listed."""

        def forbid(_number: int, name: str, key: str) -> None:
            if (name, key) == ("read", "enrolled"):
                raise StoreError("the store refuses the credentials")

        publish(models, "m", 1, softmax())
        catalogue = listed(located(HookedStore(store, forbid)))
        assert catalogue.fetch(ModelVersion("m", 1)) == softmax()
        store.create("enrolled", b"{}")
        with pytest.raises(StoreError, match="refuses the credentials"):
            catalogue.fetch(ModelVersion("m", 1))


def test_copies_of_versions_that_are_no_longer_served_are_removed(
    store: MemoryStore, models: MemoryStore, tmp_path: Path
) -> None:
    cache = LocalStore(tmp_path)
    for version in (1, 2):
        publish(models, "m", version, softmax(version))
    catalogue = listed(located(store), cache)
    for version in (1, 2):
        catalogue.fetch(ModelVersion("m", version))
    promote(models, "m", Split(kind="pinned", version=2))
    catalogue.prune_copies("m", {2}, read_traffic(models, "m")[0])
    assert sorted(cache.keys()) == ["m/2/model.onnx", "m/2/origin.json", keys.traffic("m")]


def test_a_full_disk_does_not_prevent_serving(
    store: MemoryStore, models: MemoryStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def full(_number: int, name: str, _key: str) -> None:
        if name == "replace":
            raise OSError(28, "No space left on device")

    publish(models, "m", 1, softmax())
    catalogue = listed(located(store), HookedStore(LocalStore(tmp_path), full))
    assert catalogue.fetch(ModelVersion("m", 1)) == softmax()
    assert "m version 1 was not copied to this machine" in caplog.text


def test_invalid_locations(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="models come from exactly one location"):
        locate()
    with pytest.raises(InputError, match="models come from exactly one location"):
        locate(store="file:///x", folder=tmp_path)
    with pytest.raises(InputError, match="there is no such folder"):
        locate(folder=tmp_path / "absent")
    with pytest.raises(StoreError, match="has an unknown scheme"):
        locate(store="ftp://x")


def test_the_federation_file_names_the_store(digits: Path) -> None:
    file = digits / "federation.yaml"
    assert [folder.models.uri for folder in locate(source=file).folders()] == [f"file://{digits}/store/digits/models"]
    other = locate(source=file, store=str(digits / "other"))
    assert [folder.models.uri for folder in other.folders()] == [f"file://{digits}/other/digits/models"]


def test_a_store_may_hold_several_federations(store: MemoryStore, tmp_path: Path) -> None:
    publish(store.below("north").below("models"), "m", 1, softmax(1))
    publish(store.below("south").below("models"), "n", 2, softmax(2))
    publish(store.below("west").below("models"), "m", 3, softmax(3))
    store.create("north/HEAD", b"")
    location = Location(store, "any", is_local=False)
    catalogue = Catalogue(location, LocalStore(tmp_path))
    assert {name: numbers for name, (numbers, _) in catalogue.list_models().items()} == {"m": [1], "n": [2]}
    assert catalogue.problems == ["memory:///west/models: a second model 'm' is not served"]
    assert catalogue.fetch(ModelVersion("n", 2)) == softmax(2)
    assert location.find_folder("n").models.uri == "memory:///south/models"
    with pytest.raises(NotFoundError, match=r"there is no model 'o'\. Choose one of: m, m, n"):
        location.find_folder("o")
    one = Location(store.below("west"), "any", is_local=False)
    assert {name: numbers for name, (numbers, _) in Catalogue(one).list_models().items()} == {"m": [3]}
