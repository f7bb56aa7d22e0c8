"""Enrolled learners must sign: the aggregator refuses all other updates, with the reason in the record."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from msgspec.structs import replace

from fedpipe.errors import CorruptError, DroppedError, InputError, StoreError, StoreUnavailableError
from fedpipe.identity.enrolment import NOBODY, Enrolled, Enrolment, change_enrolled, find_enrolled, read_enrolled
from fedpipe.identity.signing import make_key, public_key
from fedpipe.identity.statements import check_signed, signed
from fedpipe.rounds.beginning import begin
from fedpipe.rounds.closing import close_round
from fedpipe.rounds.manifests import Record, Update
from fedpipe.rounds.plan import Plan
from fedpipe.rounds.updates import find_update
from fedpipe.store import MemoryStore, keys
from fedpipe.store.objects import encode
from tests.faults.stores import HookedStore
from tests.federations import PlusOneLearner, fresh, make_federation, make_plan, play_collective, play_round

KEYS = {name: make_key() for name in ("a", "b", "c")}
LEARNERS = {name: PlusOneLearner(k + 1) for k, name in enumerate(KEYS)}


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> Any:
    for name, key in KEYS.items():
        (tmp_path / f"{name}.key").write_text(key)
    monkeypatch.setenv("FEDPIPE_KEYS", str(tmp_path))
    return tmp_path


def put_enrolled(store: MemoryStore, *names: str, **changed: Any) -> None:
    found = {name: Enrolment(key=public_key(KEYS[name]), since=1.0e9) for name in names}
    found = {name: replace(item, **changed) for name, item in found.items()}
    change_enrolled(store, lambda current: replace(current, learners=current.learners | found))


def closed(store: MemoryStore, plan: Plan, number: int = 1, base: str = "") -> Record:
    return close_round(store, plan, number, base or begin(store, plan, fresh).weights)


def why(record: Record, learner: str) -> str:
    return next(d.why for d in record.dropped if d.learner == learner)


def forge(store: MemoryStore, update: Update) -> None:
    """Writes an update with the learner's credentials of the store, but without its key."""
    store.replace(keys.update(update.learner, update.run, update.round), encode(update))


class TestARound:
    def played(self, store: MemoryStore, plan: Plan) -> str:
        base = begin(store, plan, fresh).weights
        play_round(store, plan, 1, base, LEARNERS)
        return base

    def test_takes_what_enrolled_learners_signed(self, store: MemoryStore, folder: Any) -> None:
        put_enrolled(store, *KEYS)
        plan = make_plan()
        record = closed(store, plan, 1, self.played(store, plan))
        assert [u.learner for u in record.updates] == ["a", "b", "c"]
        assert all(u.signature and u.signature.key == public_key(KEYS[u.learner]) for u in record.updates)

    def test_takes_unsigned_ones_where_nobody_is_enrolled(self, store: MemoryStore) -> None:
        plan = make_plan()
        record = closed(store, plan, 1, self.played(store, plan))
        assert [u.signature for u in record.updates] == [None] * 3

    def test_refuses_one_that_was_revoked_after_its_update_was_read(self, store: MemoryStore, folder: Any) -> None:
        put_enrolled(store, *KEYS)
        plan = make_plan()
        base = self.played(store, plan)
        read = {name: found for name in KEYS if (found := find_update(store, name, "r1", 1))}
        put_enrolled(store, "b", revoked=1.0e9)
        record = close_round(store, plan, 1, base, offered=read)
        assert [u.learner for u in record.updates] == ["a", "c"]
        assert "revoked" in why(record, "b")

    def test_refuses_one_that_is_not_signed(self, store: MemoryStore, folder: Any) -> None:
        put_enrolled(store, *KEYS)
        (folder / "b.key").unlink()
        plan = make_plan()
        record = closed(store, plan, 1, self.played(store, plan))
        assert [u.learner for u in record.updates] == ["a", "c"]
        assert why(record, "b") == "its update is not signed, and it is enrolled"

    def test_refuses_another_key(self, store: MemoryStore, folder: Any) -> None:
        put_enrolled(store, *KEYS)
        (folder / "b.key").write_text(KEYS["a"])
        plan = make_plan()
        assert why(closed(store, plan, 1, self.played(store, plan)), "b").startswith(
            "its update is signed with another key"
        )

    def test_refuses_an_update_that_was_changed(self, store: MemoryStore, folder: Any) -> None:
        put_enrolled(store, *KEYS)
        plan = make_plan()
        base = self.played(store, plan)
        update = find_update(store, "b", "r1", 1)
        assert update is not None
        forge(store, replace(update, examples=1000))
        assert why(closed(store, plan, 1, base), "b") == "the signature does not fit its update"

    def test_refuses_one_that_claims_the_key_of_another(self, store: MemoryStore, folder: Any) -> None:
        """Signed by a, who says that it is b's."""
        put_enrolled(store, *KEYS)
        plan = make_plan()
        base = self.played(store, plan)
        update = find_update(store, "b", "r1", 1)
        assert update is not None
        mine = signed(update, KEYS["a"])
        assert mine.signature is not None
        forge(store, replace(mine, signature=replace(mine.signature, key=public_key(KEYS["b"]))))
        assert why(closed(store, plan, 1, base), "b") == "the signature does not fit its update"

    def test_refuses_a_replay_of_an_earlier_round(self, store: MemoryStore, folder: Any) -> None:
        """An unchanged update is refused for its round; with the round changed, the signature does not fit."""
        put_enrolled(store, *KEYS)
        plan = make_plan()
        first = closed(store, plan, 1, self.played(store, plan))
        play_round(store, plan, 2, first.weights, LEARNERS)
        old = find_update(store, "b", "r1", 1)
        assert old is not None
        store.replace(keys.update("b", "r1", 2), encode(old))
        forge(store, replace(first.updates[0], round=2))
        forge(store, replace(first.updates[2], round=2, base=first.weights))
        with pytest.raises(Exception, match="0 of 3 learners took part") as caught:
            closed(store, plan, 2, first.weights)
        message = str(caught.value)
        assert "b: the update's round is 1, the round's is 2" in message
        assert "a: the update's base is" in message
        assert "c: the signature does not fit its update" in message

    def test_refuses_who_was_revoked(self, store: MemoryStore, folder: Any) -> None:
        put_enrolled(store, *KEYS)
        put_enrolled(store, "c", revoked=1.7e9)
        plan = make_plan()
        assert why(closed(store, plan, 1, self.played(store, plan)), "c") == "it was revoked on 2023-11-14 22:13 UTC"

    def test_who_is_not_enrolled_need_not_sign(self, store: MemoryStore, folder: Any) -> None:
        put_enrolled(store, "a")
        (folder / "b.key").unlink()
        plan = make_plan()
        assert len(closed(store, plan, 1, self.played(store, plan)).updates) == 3

    def test_a_proposal_is_checked_too(self, store: MemoryStore, folder: Any) -> None:
        put_enrolled(store, *KEYS)
        (folder / "a.key").write_text(KEYS["b"])
        algorithm = {"name": "collective", "vote": {"threshold": 0.5}}
        federation = make_federation(algorithm=algorithm, training={"rounds": 1, "batch_size": 1})
        record = play_collective(store, make_plan(federation), dict(LEARNERS))
        assert not record.accepted
        assert why(record, "a").startswith("its update is signed with another key")


def test_any_field_is_signed() -> None:
    update = Update(
        federation="tiny", run="r1", round=3, learner="a", base="sha256:" + "0" * 64, weights="sha256:" + "1" * 64,
        size=7, examples=5, metrics={"loss": 1.0},
    )  # fmt: skip
    enrolled = Enrolled(learners={"a": Enrolment(key=public_key(KEYS["a"]), since=0.0)})
    good = signed(update, KEYS["a"], lambda: 5.0)
    assert good == signed(update, KEYS["a"], lambda: 5.0)
    check_signed(good, enrolled)
    assert good.signature is not None
    changes: list[dict[str, Any]] = [
        {"run": "r2"}, {"round": 4}, {"base": "sha256:" + "2" * 64}, {"weights": "sha256:" + "2" * 64}, {"examples": 6},
        {"metrics": {}}, {"federation": "huge"}, {"size": 8}, {"signature": replace(good.signature, time=6.0)},
    ]  # fmt: skip
    for change in changes:
        with pytest.raises(DroppedError, match="the signature does not fit"):
            check_signed(replace(good, **change), enrolled)


class TestTheObject:
    def test_two_that_enroll_at_once_are_both_there(self, store: MemoryStore) -> None:
        threads = [threading.Thread(target=put_enrolled, args=(store, name)) for name in KEYS]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert set(read_enrolled(store).learners) == set(KEYS)

    def test_a_change_that_fails_changes_nothing(self, store: MemoryStore) -> None:
        def fail(current: Enrolled) -> Enrolled:
            raise InputError("no")

        with pytest.raises(InputError):
            change_enrolled(store, fail)
        assert list(store.keys()) == []

    def test_what_is_none(self, store: MemoryStore) -> None:
        store.create("enrolled", b"{")
        with pytest.raises(CorruptError, match="not a valid enrolled"):
            read_enrolled(store)

    def test_another_format_is_refused(self, store: MemoryStore) -> None:
        store.create(keys.ENROLLED, encode(Enrolled(format=2)))
        with pytest.raises(CorruptError, match="unknown format 2"):
            read_enrolled(store)


def refusing(store: MemoryStore, error: StoreError) -> HookedStore:
    """A store that answers a read with an error, as S3 does where a user may not list a bucket."""

    def before(_number: int, name: str, _key: str) -> None:
        if name == "read":
            raise error

    return HookedStore(store, before)


class TestAReaderThatMayListOneKey:
    def test_finds_nobody_where_a_missing_object_is_forbidden(self, store: MemoryStore) -> None:
        assert find_enrolled(refusing(store, StoreError("forbidden"))) == NOBODY

    def test_fails_where_the_object_is_there(self, store: MemoryStore) -> None:
        store.create(keys.ENROLLED, b"{}")
        with pytest.raises(StoreError, match="forbidden"):
            find_enrolled(refusing(store, StoreError("forbidden")))

    def test_fails_where_the_store_does_not_answer(self, store: MemoryStore) -> None:
        with pytest.raises(StoreUnavailableError):
            find_enrolled(refusing(store, StoreUnavailableError("down")))
