"""The roster: signed by the administrator, of one federation, and trusted by the key that came another way."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace

from fedpipe.errors import DroppedError, InputError
from fedpipe.identity.enrolment import Enrolled, Enrolment
from fedpipe.identity.roster import Roster, check_members, put_roster, read_roster
from fedpipe.identity.signing import (
    ADMINISTRATOR,
    ADMINISTRATOR_KEY,
    KEYS,
    find_administrator,
    key_answers,
    make_key,
    public_key,
)
from fedpipe.store import MemoryStore, keys
from fedpipe.store.objects import decode, encode

PRIVATE, LEARNER = make_key(), public_key(make_key())
ENROLLED = Enrolled(
    learners={"a": Enrolment(key=LEARNER, since=1.0), "b": Enrolment(key=LEARNER, since=1.0, revoked=2.0)}
)


def test_a_roster_has_the_keys_of_those_who_are_enrolled(store: MemoryStore) -> None:
    put_roster(store, "tiny", ENROLLED, PRIVATE)
    assert read_roster(store, "tiny", public_key(PRIVATE)) == {"a": LEARNER}


def test_no_roster(store: MemoryStore) -> None:
    with pytest.raises(InputError, match="there is no roster"):
        read_roster(store, "tiny", public_key(PRIVATE))


def test_of_another_administrator(store: MemoryStore) -> None:
    put_roster(store, "tiny", ENROLLED, make_key())
    with pytest.raises(InputError, match="the roster is signed with another key"):
        read_roster(store, "tiny", public_key(PRIVATE))


def test_of_another_federation(store: MemoryStore) -> None:
    put_roster(store, "other", ENROLLED, PRIVATE)
    with pytest.raises(InputError, match="the roster is of the federation 'other'"):
        read_roster(store, "tiny", public_key(PRIVATE))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"learners": {"a": "0" * 64}}, "the signature does not fit"),
        ({"learners": {"a": LEARNER, "c": LEARNER}}, "the signature does not fit"),
        ({"signature": None}, "is not signed"),
    ],
)
def test_that_was_changed(store: MemoryStore, change: dict[str, object], match: str) -> None:
    put_roster(store, "tiny", ENROLLED, PRIVATE)
    roster = decode(store.read(keys.ROSTER).data, Roster, where="")
    store.replace(keys.ROSTER, encode(replace(roster, **change)))
    with pytest.raises(InputError, match=match):
        read_roster(store, "tiny", public_key(PRIVATE))


def test_members() -> None:
    check_members({"a": LEARNER, "b": LEARNER}, ("b", "a"))
    with pytest.raises(DroppedError, match="the roster has no key of c"):
        check_members({"a": LEARNER}, ("a", "c"))
    with pytest.raises(DroppedError, match="the roster has b, but the plan does not"):
        check_members({"a": LEARNER, "b": LEARNER}, ("a",))


class TestTheAdministratorsKey:
    def test_in_the_environment(self) -> None:
        assert find_administrator({ADMINISTRATOR_KEY: f"{LEARNER}\n"}) == LEARNER
        assert find_administrator({}) is None

    def test_in_a_mounted_secret_or_a_folder_of_keys(self, tmp_path: Path) -> None:
        (tmp_path / "administrator").write_text(LEARNER)
        assert find_administrator({"FEDPIPE_SECRET_DIR": str(tmp_path)}) == LEARNER
        (tmp_path / f"{ADMINISTRATOR}.pub").write_text(f"{LEARNER}\n")
        assert find_administrator({KEYS: str(tmp_path)}) == LEARNER

    @pytest.mark.parametrize("text", ["x", "0" * 63, "0" * 65])
    def test_malformed(self, tmp_path: Path, text: str) -> None:
        (tmp_path / f"{ADMINISTRATOR}.pub").write_text(text)
        for environment in ({KEYS: str(tmp_path)}, {ADMINISTRATOR_KEY: text}):
            with pytest.raises(InputError, match="the administrator's public key is malformed"):
                find_administrator(environment)

    def test_from_the_process_that_holds_the_keys(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(ADMINISTRATOR_KEY, LEARNER)
        assert key_answers()["administrator"]("", b"") == LEARNER
