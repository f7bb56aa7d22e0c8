"""Parties of a cut network find their common rows: the weights of the joined table, and no id leaves."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from fedpipe.data.shards import Indices, split
from fedpipe.errors import DataError, QuorumError
from fedpipe.federation.federation import Federation
from fedpipe.identity.enrolment import Enrolment, change_enrolled, read_enrolled
from fedpipe.identity.signing import KEYS, make_key, public_key
from fedpipe.identity.statements import check_signed, signed_by
from fedpipe.learners.party import Held, Parts, rows_of
from fedpipe.rounds.history import history, read_head
from fedpipe.rounds.manifests import Aligned, Record
from fedpipe.rounds.plan import Plan
from fedpipe.rounds.pruning import remove
from fedpipe.rounds.retention import Rules, find_loss
from fedpipe.store import Store
from fedpipe.store.objects import digest_of, encode
from fedpipe.weights import Array, dumps, loads
from tests.faults.stores import HookedStore
from tests.sessions import halves
from tests.sessions.test_split import parcels_in, weights_in
from tests.simulation import Actor, Killed, World, coordinator

COUNT = 60
PARTIES = ("alice", "carol", "labels")
LACKS = {"alice": range(6), "carol": range(4, 12), "labels": range(50, 54)}
COMMON = [*range(12, 50), *range(54, 60)]
ROWS = {"alice": 54, "carol": 52, "labels": 56}


def table() -> dict[str, Array]:
    """The joined table that nobody has."""
    random = np.random.default_rng(6)
    found: dict[str, Array] = {name: random.normal(size=(COUNT, 4)).astype(np.float32) for name in PARTIES[:-1]}
    return found | {"labels": (found["alice"][:, 0] + found["carol"][:, 0] > 0).astype(np.int64)}


def patients(party: str) -> Indices:
    """The patients of a party, in an order of its own."""
    rows = [number for number in range(COUNT) if number not in LACKS[party]]
    return np.random.default_rng(len(party)).permutation(rows)


def ids_of(party: str) -> list[str]:
    return [f"p{number:02}" for number in patients(party)]


def written(folder: Path, ids: Mapping[str, Any] | None = None, **more: Any) -> Federation:
    """Writes the files of the parties; returns their federation."""
    for party in PARTIES:
        named = (ids or {}).get(party, ids_of(party))
        values = table()[party][patients(party)][: len(named)]
        np.savez(folder / f"{party}.npz", **{"y" if party == "labels" else "x": values, "id": named})
    federation = halves.federation_of(PARTIES, algorithm={"ids": "id", "align": "intersection"}, **more)
    learners = tuple(replace(one, data=str(folder / one.data)) for one in federation.learners)
    return replace(federation, learners=learners)


def begun(world: World, federation: Federation) -> Plan:
    return halves.begun(world.store, federation, b"# reads no data")


def attend(world: World, plan: Plan, party: str, **given: Any) -> Actor:
    def make() -> tuple[Held, Parts]:
        return rows_of(world.store, plan, party), halves.parts_of(plan.federation, party)

    return halves.attendance(world, plan, party, make=make, **given)


def session(world: World, plan: Plan, **changed: Actor) -> None:
    world.spawn("coordinator", coordinator(world, plan))
    for party in PARTIES:
        world.spawn(party, changed.get(party) or attend(world, plan, party))
    world.run()


def joined(federation: Federation) -> dict[str, Held]:
    """The joined table, sorted by id, as a central party would split it."""
    parts = split(len(COMMON), federation.data.parts, [federation.training.seed, 4])
    return {
        name: Held(None if name == "labels" else values[COMMON], values[COMMON] if name == "labels" else None, parts)
        for name, values in table().items()
    }  # fmt: skip


def stated(record: Record) -> dict[str, tuple[int, int, int]]:
    assert record.aligned
    return {one.learner: (one.rows, one.common, one.dropped) for one in record.aligned}


def test_the_weights_are_those_of_the_joined_table(tmp_path: Path) -> None:
    world = World()
    plan = begun(world, written(tmp_path))
    seen: dict[str, bytes] = {}

    def note(_number: int, name: str, key: str) -> None:
        if "/parcels/" in key and name == "create":
            seen[key] = world.store.read(key).data

    watched = {p: attend(world, plan, p, store=HookedStore(world.store, after=note)) for p in PARTIES}
    session(world, plan, **watched)
    expected, found = halves.trained_uncut(plan.federation, joined(plan.federation)), weights_in(world.store)
    assert found.keys() == expected.keys()
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], atol=1e-5, rtol=0)

    records = history(world.store, plan.run)
    assert stated(records[1]) == {name: (rows, 44, rows - 44) for name, rows in ROWS.items()}
    assert not records[0].aligned
    assert not records[2].aligned
    assert not parcels_in(world.store), "parcels are removed when a round is over"
    kinds = {json.loads(data.partition(b"\n")[0])["kind"] for data in seen.values()}
    assert kinds >= {"ids", "blinded", "evaluated", "table", "common", "marks", "activations"}
    everything = b"".join([*seen.values(), *(world.store.read(key).data for key in world.store.keys())])
    assert b"p13" not in everything, "no id leaves its party"


def test_ids_of_other_types_are_the_same_ids(tmp_path: Path) -> None:
    """Whole numbers, numbers of a column with a missing value elsewhere, and texts with spaces."""
    numbers = {party: patients(party) for party in PARTIES}
    ids = {
        "alice": numbers["alice"], "carol": numbers["carol"].astype(float),
        "labels": [f" {number} " for number in numbers["labels"]],
    }  # fmt: skip
    world = World()
    plan = begun(world, written(tmp_path, ids))
    session(world, plan)
    assert stated(history(world.store, plan.run)[1])["alice"] == (54, 44, 10)


def no_ids_in_common(folder: Path) -> Federation:
    return written(folder, {"carol": [f"q{number}" for number in patients("carol")]})


def too_few(folder: Path) -> Federation:
    return written(folder, {"carol": [*(f"q{n}" for n in range(51)), "p13"]})


def duplicated(folder: Path) -> Federation:
    return written(folder, {"alice": ["p13", "p13", *ids_of("alice")[2:]]})


def missing(folder: Path) -> Federation:
    return written(folder, {"alice": ["", *ids_of("alice")[1:]]})


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (no_ids_in_common, "no id is common to all parties (alice has 54, carol has 52, labels has 56)"),
        (too_few, "1 rows are common to all parties (alice has 54, carol has 52, labels has 56), so 1 are train rows"),
        (duplicated, "2 ids are duplicates"),
        (missing, "1 row has no id"),
    ],
)
def test_rows_that_cannot_be_aligned_end_the_run_before_it_trains(
    tmp_path: Path, make: Callable[[Path], Federation], why: str
) -> None:
    world = World()
    plan = begun(world, make(tmp_path))
    session(world, plan)
    error = world.results["coordinator"]
    assert isinstance(error, QuorumError)
    assert why in str(error), error
    assert read_head(world.store) is None
    assert world.now < 300, "nobody waits for a deadline, and nothing is tried again"


def test_the_same_command_aligns_files_that_were_mended(tmp_path: Path) -> None:
    """The statements of a session that ended without a round count no more."""
    world = World()
    plan = begun(world, no_ids_in_common(tmp_path))
    session(world, plan)
    assert isinstance(world.results["coordinator"], QuorumError)
    written(tmp_path)
    world.spawn("coordinator", coordinator(world, plan, session="again"))
    for party in PARTIES:
        world.spawn(party, attend(world, plan, party, session="again"))
    world.run()
    assert stated(history(world.store, plan.run)[1])["carol"] == (52, 44, 8)
    expected = halves.trained_uncut(plan.federation, joined(plan.federation))
    assert all(np.allclose(value, expected[name], atol=1e-5) for name, value in weights_in(world.store).items())


def test_statements_of_an_earlier_session_do_not_close_the_phase(tmp_path: Path) -> None:
    """All parties have one. Then one of them cannot read its file, and the reason is that, and not the old result."""
    world, read = World(), list[str]()
    plan = begun(world, no_ids_in_common(tmp_path))

    def end(_number: int, _name: str, key: str) -> None:
        read.extend([key] if key.endswith("/aligned") else [])
        if len(read) > len(PARTIES):  # it has seen that all are there, and begins to close
            raise Killed

    world.spawn("coordinator", coordinator(world, plan, store=HookedStore(world.store, before=end)))
    for party in PARTIES:
        world.spawn(party, attend(world, plan, party))
    world.run()
    assert world.kills == 1
    written(tmp_path)
    (tmp_path / "alice.npz").unlink()
    world.spawn("coordinator", coordinator(world, plan, session="again"))
    for party in PARTIES:
        world.spawn(party, attend(world, plan, party, session="again"))
    world.run()
    error = world.results["coordinator"]
    assert isinstance(error, QuorumError)
    assert "alice: there is no such file" in str(error)
    assert read_head(world.store) is None


class Lying(HookedStore):
    """The store of a party that writes other numbers than it has.

    Args:
        inner: the store.
        kind: of the parcels, or `aligned` for its statement.
        field: of the number.
        change: of the number.
    """

    def __init__(self, inner: Store, kind: str, field: str, change: int) -> None:
        super().__init__(inner)
        self.kind, self.field, self.change = kind, field, change

    def create(self, key: str, data: bytes) -> bool:
        head, _, rest = data.partition(b"\n")
        if "/parcels/" in key and json.loads(head)["kind"] == self.kind:
            arrays = loads(rest)
            rest = dumps({**arrays, self.field: arrays[self.field] + self.change})
            data = encode({**json.loads(head), "digest": digest_of(rest)}) + b"\n" + rest
        return super().create(key, data)

    def replace(self, key: str, data: bytes) -> None:
        if key.endswith(f"/{self.kind}"):
            statement = json.loads(data)
            data = encode({**statement, self.field: statement[self.field] + self.change})
        super().replace(key, data)


@pytest.mark.parametrize(
    ("liar", "kind", "field", "change", "why"),
    [
        ("alice", "ids", "rows", 700, "parcel of table 0 from alice does not fit"),
        ("alice", "ids", "rows", -54, "alice states that it has 0 rows"),
        ("labels", "ids", "rows", 700, "parcel of blinded 0 from labels does not fit"),
        ("labels", "common", "rows", 1, "parcel of marks 0 from labels does not fit"),
        ("labels", "common", "rows", 70000, "labels names 70044 common rows, of at most"),
        ("labels", "marks", "words", 1, "the leader names common ids that are not among this party's"),
        ("carol", "aligned", "common", -1, "their numbers of common rows differ: alice 44, carol 43, labels 44"),
        ("carol", "aligned", "rows", 8, "carol states 60 rows, and 52 to alice"),
    ],
)
def test_a_party_that_lies_about_its_rows_is_found(
    tmp_path: Path, liar: str, kind: str, field: str, change: int, why: str
) -> None:
    world = World()
    plan = begun(world, written(tmp_path, quorum={"retries": 0}))
    session(world, plan, **{liar: attend(world, plan, liar, store=Lying(world.store, kind, field, change))})
    error = world.results["coordinator"]
    assert isinstance(error, QuorumError)
    assert why in str(error), error
    assert read_head(world.store) is None
    assert world.now < 300


def enrolled(world: World, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    private = {name: make_key() for name in PARTIES}
    for name, key in private.items():
        (folder / f"{name}.key").write_text(key)
    monkeypatch.setenv(KEYS, str(folder))
    known = {name: Enrolment(key=public_key(key), since=0.0) for name, key in private.items()}
    change_enrolled(world.store, lambda found: type(found)(learners=known))


def test_statements_are_signed_and_parcels_are_sealed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    enrolled(world, tmp_path, monkeypatch)
    plan = begun(world, written(tmp_path, training={"rounds": 1}))
    seen: list[bytes] = []
    watched = HookedStore(world.store, after=lambda _, __, key: seen.extend(read(world.store, key)))
    session(world, plan, alice=attend(world, plan, "alice", store=watched))
    record = history(world.store, plan.run)[1]
    assert stated(record)["labels"] == (56, 44, 12)
    for one in record.aligned or ():
        assert isinstance(one, Aligned)
        check_signed(one, read_enrolled(world.store))
        assert signed_by(replace(one, signature=None), one.learner).signature.key == one.signature.key  # type: ignore[union-attr]
    kinds = {json.loads(data.partition(b"\n")[0])["kind"]: data for data in seen}
    assert {"evaluated", "table", "ids"} <= kinds.keys()
    assert b'"words"' not in kinds["table"], "tensors have their names in the clear when they are not sealed"


def read(store: Store, key: str) -> list[bytes]:
    return (
        [store.read(key).data]
        if "/parcels/alice" not in key and "learners/alice/parcels/" in key and store.size(key)
        else []
    )


def test_rows_that_change_after_the_alignment_are_refused(tmp_path: Path) -> None:
    """A later session of the run, whose party reads its file again."""
    world = World()
    plan = begun(world, written(tmp_path))
    session(world, plan)
    assert rows_of(world.store, plan, "alice").parts.keys() == {"train", "vote", "test"}
    written(tmp_path, {"alice": [*ids_of("alice")[1:], "p99"]})
    with pytest.raises(DataError, match="its rows have changed since the parties of this run found their common ones"):
        rows_of(world.store, plan, "alice")


def test_what_a_removal_keeps_is_enough_to_resume(tmp_path: Path) -> None:
    world = World()
    plan = begun(world, written(tmp_path))
    session(world, plan)
    world.now += 3 * 86400
    world.store.create("objects/" + "1" * 64, b"now")
    remove(world.store, find_loss(world.store, Rules(abandoned=(plan.run,))), lambda: None)
    assert len(rows_of(world.store, plan, "carol").parts["train"]) == 35
