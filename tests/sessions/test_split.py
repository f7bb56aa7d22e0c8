"""Split learning as a session: the weights of the uncut network, whatever is killed, and one reason when it fails."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedpipe.errors import DroppedError, QuorumError
from fedpipe.identity.enrolment import Enrolment, change_enrolled
from fedpipe.identity.sealing import TAG, Seal, find_exchange
from fedpipe.identity.signing import KEYS, make_key, public_key
from fedpipe.learners.party import Parts
from fedpipe.rounds.cut import read_digests
from fedpipe.rounds.history import history, read_head
from fedpipe.rounds.parcels import packed, send, unpacked
from fedpipe.rounds.pruning import remove
from fedpipe.rounds.retention import Rules, find_loss
from fedpipe.sessions.board import Board
from fedpipe.sessions.taking_part import meeting_of
from fedpipe.store import Blob, MemoryStore, Store, keys
from fedpipe.store.objects import digest_of, encode
from fedpipe.weights import Array, dumps, loads
from tests.faults.stores import HookedStore, killing
from tests.sessions.halves import (
    NumpyBottom,
    NumpyTop,
    attendance,
    begun,
    federation_of,
    rows_of,
    session,
    trained_behind,
    trained_uncut,
)
from tests.simulation import World


def weights_in(store: Store) -> dict[str, Array]:
    head = read_head(store)
    assert head
    found: dict[str, Array] = {}
    for party, digest in read_digests(store, head[0].weights).items():
        found |= loads(store.read(keys.content(digest, party)).data)
    return found


def played(**given: Any) -> tuple[World, Any]:
    world = World()
    plan = begun(world.store, federation_of(**given))
    session(world, plan)
    return world, plan


def parcels_in(store: Store) -> list[str]:
    return [key for key in store.keys() if "/parcels/" in key]


@pytest.mark.parametrize(
    ("names", "label_features"),
    [(("alice", "bob"), False), (("alice", "carol", "bob"), False), (("alice", "carol", "bob"), True)],
)
def test_a_session_gives_the_weights_of_the_uncut_network(names: tuple[str, ...], label_features: bool) -> None:
    world, plan = played(names=names, algorithm={"label_party_features": label_features}, training={"local_epochs": 2})
    expected = trained_uncut(plan.federation)
    found = weights_in(world.store)
    assert found.keys() == expected.keys()
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], atol=1e-5, rtol=0)
    records = history(world.store, plan.run)
    assert [record.rule for record in records[1:]] == ["split", "split"]
    assert records[2].metrics["loss"] < records[1].metrics["loss"]
    assert [[update.learner for update in record.updates] for record in records[1:]] == [sorted(names)] * 2
    tests = [{u.learner: u.tested.metrics["loss"] for u in record.updates if u.tested} for record in records[1:]]
    assert tests[1]["bob"] < tests[0]["bob"]
    assert not parcels_in(world.store), "parcels are removed when a round is over"


@pytest.mark.parametrize(
    "training",
    [{}, {"optimizer": "keep"}, {"learning_rate": 0.4, "schedule": {"name": "step", "every": 1, "by": 0.5}}],
)
def test_optimizers_begin_a_round_as_the_training_says(training: dict[str, Any]) -> None:
    world, plan = played(training={"rounds": 3, **training})
    expected, found = trained_uncut(plan.federation), weights_in(world.store)
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], atol=1e-5, rtol=0)


@pytest.mark.parametrize("ahead", [1, 3, 16])
def test_a_party_that_is_ahead_moves_by_old_gradients(ahead: int) -> None:
    """16 batches are more than a round has: all activations are sent before the first gradient comes."""
    world, plan = played(algorithm={"ahead": ahead}, training={"local_epochs": 2})
    expected, exact, found = (
        trained_behind(plan.federation, ahead),
        trained_uncut(plan.federation),
        weights_in(world.store),
    )
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], atol=1e-5, rtol=0)
    assert max(np.abs(found[name] - exact[name]).max() for name in exact) > 1e-3
    assert not parcels_in(world.store)


@pytest.mark.parametrize(("exchange", "most"), [("float16", 2e-3), ("int8", 0.05)])
def test_a_rounded_exchange_stays_near_the_exact_one(exchange: str, most: float) -> None:
    world, plan = played(algorithm={"exchange": exchange})
    expected, found = trained_uncut(plan.federation), weights_in(world.store)
    difference = max(float(np.abs(found[name] - expected[name]).max()) for name in expected)
    assert 0 < difference < most


def test_packed_numbers_are_as_near_as_their_type_allows() -> None:
    values = np.random.default_rng(0).normal(size=(7, 5)).astype(np.float32) * 1e-9
    assert np.array_equal(unpacked(packed(values, "float32")), values)
    largest = np.abs(values).max(axis=1, keepdims=True)
    assert (np.abs(unpacked(packed(values, "float16")) - values) <= largest * 2**-11).all()
    assert (np.abs(unpacked(packed(values, "int8")) - values) <= largest / 253).all()
    assert not unpacked(packed(np.zeros((2, 3), np.float32), "int8")).any()


@pytest.mark.parametrize("exchange", ["float32", "float16", "int8"])
@pytest.mark.parametrize("value", [0.0, 1e-45, 1e-43, -1e-38, 3e-38, 0.25, -7.5, 3.4e38])
def test_a_constant_is_the_same_after_the_exchange(exchange: Any, value: float) -> None:
    """Numbers below those with all bits of float32 become zero, if not themselves; none becomes a large one."""
    values = np.full((3, 4), value, np.float32)
    np.testing.assert_allclose(unpacked(packed(values, exchange)), values, rtol=1e-3, atol=1e-35)


@pytest.mark.parametrize("exchange", ["float32", "float16", "int8"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_are_sent_in_no_type(exchange: Any, value: float) -> None:
    values = np.ones((3, 4), np.float32)
    values[1, 2] = value
    meeting = meeting_of(MemoryStore(), begun(World().store, federation_of()), BOARD)
    with pytest.raises(DroppedError, match="the gradients of batch 5 are not finite"):
        send(meeting, "gradients", 5, "labels", "alice", packed(values, exchange))
    assert not parcels_in(meeting.store)


class Lying(NumpyBottom):
    """Sends what others do not expect.

    Args:
        change: of its activations.
    """

    def __init__(self, change: Callable[[Array], Array]) -> None:
        self.change = change

    def forward(self, x: Array) -> Array:
        return self.change(super().forward(x))


class NotFinite(NumpyTop):
    def step(self, activations: Any, y: Array) -> list[Array]:
        return [np.full_like(each, np.nan) for each in super().step(activations, y)]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda a: a[:, :2], "tensor 'values' is F32[8, 2] where the model has F32[8, 3]"),
        (lambda a: a[:5], "tensor 'values' is F32[5, 3] where the model has F32[8, 3]"),
        (lambda a: np.tile(a, (1, 4000)), "parcel of activations 0 from alice cannot be used: the object has 384495 bytes, the limit is 4264"),
        (lambda a: a * np.float32("nan"), "the activations of batch 0 are not finite"),
    ],
)  # fmt: skip
def test_a_party_that_lies_ends_the_round_with_the_reason(change: Callable[[Array], Array], why: str) -> None:
    world = World()
    plan = begun(world.store, federation_of(quorum={"retries": 1}))
    rows = rows_of(plan.federation)["alice"]
    session(world, plan, alice=attendance(world, plan, "alice", make=lambda: (rows, Parts(Lying(change), None))))
    error = world.results["coordinator"]
    assert isinstance(error, QuorumError)
    assert why in str(error), error
    assert world.now < 600, "nobody waits for the deadline"
    assert read_head(world.store) is None


def test_gradients_that_are_not_finite_are_not_sent() -> None:
    world = World()
    plan = begun(world.store, federation_of())
    rows = rows_of(plan.federation)["labels"]
    session(world, plan, labels=attendance(world, plan, "labels", make=lambda: (rows, Parts(None, NotFinite(2)))))
    error = world.results["coordinator"]
    assert "labels: the gradients of batch 0 are not finite. Lower the learning rate" in str(error)
    assert "alice, carol: labels has left the round" in str(error)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"count": 49}, "alice has 49 rows, but the label party has 50"),
        ({"order": b"1" * 32}, "the ids of alice are not those"),
    ],
)
def test_parties_with_other_rows_exchange_nothing(change: Mapping[str, Any], why: str) -> None:
    world = World()
    plan = begun(world.store, federation_of())
    sent = HookedStore(world.store)
    count = change.get("count", 50)
    rows = rows_of(plan.federation, count)["alice"]._replace(**{k: v for k, v in change.items() if k == "order"})
    session(world, plan, alice=attendance(world, plan, "alice", store=sent, held=rows))
    assert why in str(world.results["coordinator"])
    assert len(parcels_in(world.store)) <= 4, "numbers of rows, and reasons: no activations"


def test_a_party_that_never_comes_back_ends_the_run_after_the_deadline() -> None:
    world = World()
    plan = begun(world.store, federation_of(quorum={"deadline": 60, "retries": 1}))
    dead = killing(world.store, 20, "before", real=False)
    session(world, plan, carol=attendance(world, plan, "carol", store=dead))
    error = world.results["coordinator"]
    assert isinstance(error, QuorumError)
    assert "carol: late: no update within 60 s" in str(error)
    assert "of carol did not come in time" in str(error), "the others name the party that is missing"


def enrolled_world(folder: Path, monkeypatch: pytest.MonkeyPatch, **known: str) -> tuple[World, Any]:
    """Parties with signing keys, and what the administrator has enrolled: their own public keys, or others."""
    private = {name: make_key() for name in ("alice", "carol", "labels")}
    for name, key in private.items():
        (folder / f"{name}.key").write_text(key)
    monkeypatch.setenv(KEYS, str(folder))
    world = World()
    enrolled = {name: Enrolment(key=public_key(known.get(name) or key), since=0.0) for name, key in private.items()}
    change_enrolled(world.store, lambda e: type(e)(learners={n: k for n, k in enrolled.items() if known.get(n) != ""}))
    return world, begun(world.store, federation_of(training={"rounds": 1}))


def test_parcels_of_enrolled_parties_are_signed_and_sealed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world, plan = enrolled_world(tmp_path, monkeypatch)
    seen: dict[str, bytes] = {}

    def note(_number: int, name: str, key: str) -> None:
        if "/parcels/" in key and name == "create":
            seen[key] = world.store.read(key).data

    watched = HookedStore(world.store, after=note)
    session(world, plan, alice=attendance(world, plan, "alice", store=watched))
    expected, found = trained_uncut(plan.federation), weights_in(world.store)
    assert all(np.allclose(found[name], expected[name], atol=1e-5) for name in expected)
    kinds = {key: json.loads(data.partition(b"\n")[0])["kind"] for key, data in seen.items()}
    assert set(kinds.values()) == {"key", "rows", "test", "activations"}
    for key, data in seen.items():
        readable = b"values" in data or b"order" in data
        assert not readable, kinds[key]


Changed = Callable[[dict[str, Any], bytes, list[bytes]], bytes]


class Changing(HookedStore):
    """The store of a party to which activations of others come changed.

    Args:
        inner: the store.
        change: of the line and the arrays of a parcel; gets all parcels that came.
    """

    def __init__(self, inner: Store, change: Changed) -> None:
        super().__init__(inner)
        self.change, self.came = change, list[bytes]()

    def poll(self, key: str, version: str = "", **more: Any) -> Blob | None:
        blob = super().poll(key, version, **more)
        if blob is None or b'"kind":"activations"' not in blob.data.partition(b"\n")[0]:
            return blob
        self.came.append(blob.data)
        line, _, data = blob.data.partition(b"\n")
        return Blob(self.change(json.loads(line), data, self.came), blob.version)


def written(line: Mapping[str, Any], data: bytes) -> bytes:
    return encode({**line, "digest": digest_of(data)}) + b"\n" + data


def another_byte(line: dict[str, Any], data: bytes, _: list[bytes]) -> bytes:
    return encode(line) + b"\n" + data[:-1] + bytes([data[-1] ^ 1])


def an_earlier_one(_: dict[str, Any], __: bytes, came: list[bytes]) -> bytes:
    return came[0]


def another_round(line: dict[str, Any], data: bytes, _: list[bytes]) -> bytes:
    return written({**line, "round": line["round"] + 1}, data)


def not_finite(line: dict[str, Any], data: bytes, _: list[bytes]) -> bytes:
    return written(line, dumps({"values": np.full_like(loads(data)["values"], np.nan)}))


def an_earlier_batch(line: dict[str, Any], _: bytes, came: list[bytes]) -> bytes:
    """The first parcel of the same party, which was the right one then."""
    return next(data for data in came if json.loads(data.partition(b"\n")[0])["learner"] == line["learner"])


def an_earlier_attempt(line: dict[str, Any], data: bytes, _: list[bytes]) -> bytes:
    return written({**line, "attempt": line["attempt"] - 1}, data)


def for_another_party(line: dict[str, Any], data: bytes, _: list[bytes]) -> bytes:
    return written({**line, "to": "carol"}, data)


def gradients_instead(line: dict[str, Any], data: bytes, _: list[bytes]) -> bytes:
    return written({**line, "kind": "gradients"}, data)


def in_another_type(line: dict[str, Any], data: bytes, _: list[bytes]) -> bytes:
    return written(line, dumps({"values": loads(data)["values"].astype(np.float16)}))


def under_another_name(line: dict[str, Any], data: bytes, _: list[bytes]) -> bytes:
    return written(line, dumps({"numbers": loads(data)["values"]}))


def with_another_array(line: dict[str, Any], data: bytes, _: list[bytes]) -> bytes:
    return written(line, dumps({**loads(data), "more": np.zeros(1, np.float32)}))


def infinite(line: dict[str, Any], data: bytes, _: list[bytes]) -> bytes:
    return written(line, dumps({"values": np.full_like(loads(data)["values"], np.inf)}))


def nothing(line: dict[str, Any], _: bytes, __: list[bytes]) -> bytes:
    return encode(line)


def another_content(line: dict[str, Any], data: bytes, _: list[bytes]) -> bytes:
    return written(line, data[:-1] + bytes([data[-1] ^ 1]))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (another_byte, "parcel of activations 0 from alice has the digest"),
        (an_earlier_one, "parcel of activations 0 from carol has the learner alice"),
        (another_round, "parcel of activations 0 from alice has the round 2"),
        (not_finite, "parcel of activations 0 from alice cannot be used: tensor 'values' holds NaN or infinity"),
        (infinite, "parcel of activations 0 from alice cannot be used: tensor 'values' holds NaN or infinity"),
        (an_earlier_batch, "parcel of activations 1 from alice has the number 0"),
        (an_earlier_attempt, "parcel of activations 0 from alice has the attempt 0"),
        (for_another_party, "parcel of activations 0 from alice has the to carol"),
        (gradients_instead, "parcel of activations 0 from alice has the kind gradients"),
        (in_another_type, "parcel of activations 0 from alice does not fit: tensor 'values' is F16[8, 3] where"),
        (under_another_name, "parcel of activations 0 from alice does not fit: "),
        (with_another_array, "parcel of activations 0 from alice "),
        (nothing, "parcel of activations 0 from alice "),
    ],
)
def test_a_parcel_that_is_not_the_expected_one_is_refused(change: Changed, why: str) -> None:
    world = World()
    plan = begun(world.store, federation_of(quorum={"retries": 0}))
    session(world, plan, labels=attendance(world, plan, "labels", store=Changing(world.store, change)))
    assert why in str(world.results["coordinator"])
    assert read_head(world.store) is None


def test_a_scale_that_makes_numbers_infinite_is_refused_with_its_sender() -> None:
    """Both arrays are finite, and their product is not: the label party would blame its own learning rate."""

    def too_large(line: dict[str, Any], data: bytes, _: list[bytes]) -> bytes:
        arrays = loads(data)
        return written(line, dumps({**arrays, "scale": np.full_like(arrays["scale"], 3e38)}))

    world = World()
    plan = begun(world.store, federation_of(quorum={"retries": 0}, algorithm={"exchange": "int8"}))
    session(world, plan, labels=attendance(world, plan, "labels", store=Changing(world.store, too_large)))
    assert "activations of batch 0 from alice are too large for float32" in str(world.results["coordinator"])


def test_a_parcel_that_its_sender_did_not_sign_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world, plan = enrolled_world(tmp_path, monkeypatch)
    session(world, plan, labels=attendance(world, plan, "labels", store=Changing(world.store, another_content)))
    assert "the signature does not fit its parcel" in str(world.results["coordinator"])


@pytest.mark.parametrize("kept", ["", "another"])
def test_a_party_that_is_not_the_enrolled_one_exchanges_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: str
) -> None:
    world, plan = enrolled_world(tmp_path, monkeypatch, alice=make_key() if kept else "")
    session(world, plan)
    why = "its parcel is signed with another key than the enrolled one" if kept else "but alice is not enrolled"
    assert why in str(world.results["coordinator"])
    assert read_head(world.store) is None


def test_a_sealed_object_opens_only_under_its_name_and_for_its_reader(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("alice", "bob", "carol"):
        (tmp_path / f"{name}.key").write_text(make_key())
    monkeypatch.setenv(KEYS, str(tmp_path))
    alice, bob, carol = (find_exchange(name, "f/r") for name in ("alice", "bob", "carol"))
    assert alice and bob and carol  # noqa: PT018
    sealed = Seal(alice.agree(bob.public)).close("x", b"numbers")
    assert len(sealed) == len(b"numbers") + TAG
    assert Seal(bob.agree(alice.public)).open("x", sealed) == b"numbers"
    assert find_exchange("alice", "f/r") != find_exchange("alice", "f/other")
    for seal, name, data in (
        (Seal(bob.agree(alice.public)), "y", sealed), (Seal(carol.agree(alice.public)), "x", sealed),
        (Seal(bob.agree(alice.public)), "x", sealed[:-1] + b"0"), (Seal(bob.agree(alice.public)), "x", b""),
    ):  # fmt: skip
        with pytest.raises(DroppedError, match="was not sealed by its sender for this party"):
            seal.open(name, data)
    with pytest.raises(DroppedError, match="its key of the exchange is not valid"):
        alice.agree(bytes(32))


def test_the_exchange_needs_a_store_and_nothing_else() -> None:
    world, plan = played()
    assert isinstance(world.store, MemoryStore)
    assert world.results["alice"] == {"exchange": plan.federation.training.rounds}


def test_a_removal_keeps_the_parts_of_head_and_no_old_parcels() -> None:
    """The global weights name the parts by digests, which no other object of an ended run does."""
    world, plan = played(training={"rounds": 3})
    store, expected = world.store, trained_uncut(plan.federation)
    store.create(keys.summary(plan.run), b"{}")
    store.create(keys.parcel("alice", "0f" * 32), b"of a session that was killed")
    before = list(store.keys("learners/alice/objects/"))
    assert len(before) == 3
    world.now += 3 * 86400
    store.create("objects/" + "1" * 64, b"now")
    remove(store, find_loss(store, Rules(replays=False)), lambda: None)
    found = weights_in(store)
    assert all(np.allclose(found[name], expected[name], atol=1e-5) for name in expected)
    assert len(list(store.keys("learners/alice/objects/"))) == 1, "earlier parts are not needed"
    assert not parcels_in(store)


@pytest.mark.parametrize(("exchange", "numbers"), [("float32", 16384), ("float16", 8448), ("int8", 4352)])
def test_a_parcel_is_as_large_as_computed(exchange: Any, numbers: int) -> None:
    """64 rows of 64 numbers, with a scale a row if they are rounded, and a line and a header of less than 600 bytes."""
    meeting = meeting_of(MemoryStore(), begun(World().store, federation_of()), BOARD)
    size = send(meeting, "activations", 0, "alice", "labels", packed(np.ones((64, 64), np.float32), exchange))
    assert numbers < size < numbers + 600


BOARD = Board(federation="tiny", run="r1", session="s", round=1, phase="exchange", base="sha256:" + "0" * 64)
