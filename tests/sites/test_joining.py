"""Invitations, requests, answers and rotations as bytes: whole ones work, and altered or foreign ones are refused."""

from __future__ import annotations

import hashlib
import hmac
import json
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from fedpipe.errors import CorruptError, DroppedError, InputError
from fedpipe.identity.signing import public_key, signer_of
from fedpipe.sites.invitation import (
    Invitation,
    check_open,
    is_signed,
    make_invitation,
    read_invitation,
    token_of,
    write_invitation,
)
from fedpipe.sites.joining import (
    make_answer,
    make_request,
    make_rotation,
    read_answer,
    read_request,
    read_rotation,
    secret_of,
)
from fedpipe.store.base import Credentials

ADMINISTRATOR, SITE, OTHER = "1a" * 32, "2b" * 32, "3c" * 32
NOW = 1_795_000_000
KEYS = Credentials("access", "the-secret-of-the-store")
PEM = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"


def invited(learner: str = "b", federation: str = "digits", private: str = ADMINISTRATOR) -> Invitation:
    return make_invitation(
        private, federation, learner, "s3://bucket/h?endpoint=https://minio.example.org", created=NOW,
        expires=NOW + 3600, ca=PEM, number="0f" * 16, request="https://host/a?X=1", answer="https://host/b?X=2",
    )  # fmt: skip


INVITATION = invited()
TOKEN = token_of(ADMINISTRATOR, "digits", "b", "0f" * 16)
REQUEST = make_request(INVITATION, SITE, NOW)
ASKED = read_request(REQUEST, INVITATION.terms, TOKEN)
ANSWER = make_answer(ADMINISTRATOR, ASKED, REQUEST, "digits", "b", NOW, mark="3 sha256:ab", credentials=KEYS)
ROTATION = make_rotation(
    "digits", "b", signer_of(SITE), OTHER, NOW, exchange=INVITATION.exchange, secret="s" * 40
)  # fmt: skip
READERS: dict[str, tuple[bytes, Callable[[bytes], Any]]] = {
    "request": (REQUEST, lambda data: read_request(data, INVITATION.terms, TOKEN)),
    "answer": (ANSWER, lambda data: read_answer(data, INVITATION, SITE, REQUEST)),
    "rotation": (ROTATION, lambda data: read_rotation(data, "digits", "b", public_key(SITE))),
}


def test_a_site_gets_what_the_administrator_gives() -> None:
    assert ASKED.key == public_key(SITE)
    assert read_answer(ANSWER, INVITATION, SITE, REQUEST) == (KEYS, "3 sha256:ab")
    for secret in (b"the-secret-of-the-store", b"access", TOKEN.encode(), SITE.encode()):
        assert secret not in REQUEST + ANSWER + ROTATION


def test_a_folder_needs_no_keys() -> None:
    answer = make_answer(ADMINISTRATOR, ASKED, REQUEST, "digits", "b", NOW)
    assert read_answer(answer, INVITATION, SITE, REQUEST) == (None, "")


def test_the_token_binds_the_request_by_an_hmac() -> None:
    content = json.loads(REQUEST)
    mac = content["mac"]
    bare = json.dumps(content | {"mac": "0" * 64, "signature": None}, sort_keys=True, separators=(",", ":"))
    expected = hmac.new(bytes.fromhex(INVITATION.token), b"fedpipe joining token\n" + bare.encode(), hashlib.sha256)
    assert mac == expected.hexdigest()


@pytest.mark.parametrize("kind", READERS)
@settings(max_examples=150)
@given(data=st.data())
def test_no_byte_can_be_changed(kind: str, data: st.DataObject) -> None:
    whole, read = READERS[kind]
    at = data.draw(st.integers(0, len(whole) - 1))
    other = data.draw(st.integers(0, 255).filter(lambda byte: byte != whole[at]))
    with pytest.raises((CorruptError, DroppedError)):
        read(whole[:at] + bytes([other]) + whole[at + 1 :])


@pytest.mark.parametrize("kind", READERS)
@given(st.binary(max_size=200))
def test_junk_is_refused(kind: str, junk: bytes) -> None:
    whole, read = READERS[kind]
    for data in (junk, whole + junk, junk + whole, whole[: len(junk)]):
        if data != whole:
            with pytest.raises(CorruptError, match="is malformed, because"):
                read(data)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (invited(federation="other"), "is for the federation 'other'"),
        (invited("c"), "is of 'c', who was not invited by this file"),
        (replace(INVITATION, token="0" * 64), "was made from an altered invitation"),
        (replace(INVITATION, store="s3://theirs"), "was made from an altered invitation"),
        (invited(private=OTHER), "was made from an altered invitation"),
    ],
)
def test_a_request_by_another_invitation_is_refused(other: Invitation, message: str) -> None:
    with pytest.raises(CorruptError, match=message):
        read_request(make_request(other, SITE, NOW), INVITATION.terms, TOKEN)


def test_the_store_does_not_know_the_token() -> None:
    """With the terms, which the store has, no request can be made."""
    for known in (INVITATION.terms, replace(INVITATION.terms, token=hashlib.sha256(b"").hexdigest())):
        guessed = replace(INVITATION, token=known.token)
        forged = json.loads(make_request(guessed, OTHER, NOW)) | {"terms": ASKED.terms}
        with pytest.raises(CorruptError, match="was not made with the token"):
            read_request(json.dumps(forged, sort_keys=True, separators=(",", ":")).encode(), INVITATION.terms, TOKEN)
    assert TOKEN not in repr(INVITATION.terms)


@pytest.mark.parametrize("part", ["federation", "learner", "number", "private"])
def test_each_invitation_has_a_token_of_its_own(part: str) -> None:
    given = {"private": ADMINISTRATOR, "federation": "digits", "learner": "b", "number": "0f" * 16}
    other = {"private": OTHER, "federation": "other", "learner": "c", "number": "0e" * 16}
    assert token_of(**(given | {part: other[part]})) != token_of(**given) == INVITATION.token


def test_only_the_administrator_answers() -> None:
    forged = make_answer(OTHER, ASKED, REQUEST, "digits", "b", NOW, credentials=KEYS)
    with pytest.raises(CorruptError, match="the answer is signed with another key"):
        read_answer(forged, INVITATION, SITE, REQUEST)
    with pytest.raises(CorruptError, match="the answer is for 'c' of 'digits'"):
        read_answer(make_answer(ADMINISTRATOR, ASKED, REQUEST, "digits", "c", NOW), INVITATION, SITE, REQUEST)


def test_an_answer_to_somebody_else_is_noticed() -> None:
    with pytest.raises(DroppedError, match="somebody else has used this invitation"):
        read_answer(ANSWER, INVITATION, OTHER, make_request(INVITATION, OTHER, NOW))


def test_the_keys_of_the_store_open_for_the_site_alone() -> None:
    """The other one has the request and the answer, but not the site's key."""
    with pytest.raises(DroppedError, match="was not sealed by its sender for this party"):
        read_answer(ANSWER, INVITATION, OTHER, REQUEST)


def test_a_refusal_has_its_reason() -> None:
    answer = make_answer(ADMINISTRATOR, None, REQUEST, "digits", "b", NOW, why="not this year")
    with pytest.raises(DroppedError, match="the administrator refused: not this year"):
        read_answer(answer, INVITATION, SITE, REQUEST)


class TestRotation:
    def test_the_site_chooses_its_secret(self) -> None:
        rotation = read_rotation(ROTATION, "digits", "b", public_key(SITE))
        assert rotation.key == public_key(OTHER)
        assert secret_of(rotation, ADMINISTRATOR) == "s" * 40
        with pytest.raises(DroppedError):
            secret_of(rotation, SITE)

    def test_the_current_key_must_sign(self) -> None:
        with pytest.raises(CorruptError, match="signed with another key"):
            read_rotation(ROTATION, "digits", "b", public_key(ADMINISTRATOR))

    def test_a_granted_request_may_be_granted_again(self) -> None:
        assert read_rotation(ROTATION, "digits", "b", public_key(OTHER)).key == public_key(OTHER)

    def test_nobody_takes_a_key_that_is_not_theirs(self) -> None:
        """A new key proves itself, so a site cannot enrol the key of another one."""
        content = json.loads(ROTATION) | {"key": public_key(ADMINISTRATOR)}
        with pytest.raises(CorruptError, match="the new key does not sign the request"):
            read_rotation(json.dumps(content, sort_keys=True, separators=(",", ":")).encode(), "digits", "b", "0" * 64)

    @pytest.mark.parametrize(("federation", "learner"), [("other", "b"), ("digits", "c")])
    def test_it_is_of_one_site(self, federation: str, learner: str) -> None:
        with pytest.raises(CorruptError, match="the request is of 'b' in the federation 'digits'"):
            read_rotation(ROTATION, federation, learner, public_key(SITE))

    @pytest.mark.parametrize("secret", ["short", "x" * 41, "s" * 19 + "\n" + "s" * 19, "ü" * 30])
    def test_a_secret_that_a_store_may_not_take_is_refused(self, secret: str) -> None:
        data = make_rotation(
            "digits", "b", signer_of(SITE), OTHER, NOW, exchange=INVITATION.exchange, secret=secret
        )  # fmt: skip
        with pytest.raises(DroppedError, match="20 to 40 letters and digits"):
            secret_of(read_rotation(data, "digits", "b", public_key(SITE)), ADMINISTRATOR)


class TestTheFile:
    def test_it_comes_back_and_others_cannot_read_it(self, tmp_path: Path) -> None:
        write_invitation(tmp_path / "b.yaml", INVITATION)
        assert read_invitation(tmp_path / "b.yaml") == INVITATION
        assert stat.S_IMODE((tmp_path / "b.yaml").stat().st_mode) == 0o600
        assert "until 2026-11-18" in (tmp_path / "b.yaml").read_text()

    def test_it_expires(self, tmp_path: Path) -> None:
        write_invitation(tmp_path / "b.yaml", INVITATION)
        invitation = read_invitation(tmp_path / "b.yaml")
        check_open(invitation, NOW + 3599, "b.yaml")
        with pytest.raises(InputError, match=r"b\.yaml: the invitation expired on .* UTC; here it is .* UTC") as caught:
            check_open(invitation, NOW + 3600, "b.yaml")
        assert caught.value.remedy == "Ask the federation's administrator for a new invitation."

    @settings(max_examples=200)
    @given(st.data())
    def test_an_altered_one_is_refused(self, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
        """Or says the same: spaces and comments do not count."""
        path = tmp_path_factory.mktemp("altered") / "b.yaml"
        write_invitation(path, INVITATION)
        whole = path.read_bytes()
        at = data.draw(st.integers(0, len(whole) - 1))
        other = data.draw(st.integers(0, 255).filter(lambda byte: byte != whole[at]))
        path.write_bytes(whole[:at] + bytes([other]) + whole[at + 1 :])
        try:
            found = read_invitation(path)
        except InputError:
            return
        assert found == INVITATION

    @pytest.mark.parametrize(
        "key", ["store", "ca", "administrator", "exchange", "expires", "token", "request", "learner"]
    )
    def test_no_value_can_be_changed(self, key: str, tmp_path: Path) -> None:
        path = tmp_path / "b.yaml"
        write_invitation(path, INVITATION)
        content = json.loads(path.read_text().split("\n", 2)[2])
        value = content[key]
        content[key] = value + 1 if isinstance(value, int) else value[:-1] + ("0" if value[-1] != "0" else "1")
        path.write_text(json.dumps(content))
        with pytest.raises(InputError, match="the invitation was altered: its signature does not fit"):
            read_invitation(path)

    def test_another_administrator_cannot_sign_for_this_one(self) -> None:
        theirs = invited(private=OTHER)
        assert is_signed(theirs.terms, public_key(OTHER))
        assert not is_signed(theirs.terms, public_key(ADMINISTRATOR))
        assert not is_signed(replace(theirs.terms, administrator=public_key(ADMINISTRATOR)), public_key(OTHER))

    @pytest.mark.parametrize("text", ["", "name: x", "[1, 2]", "{", "\0", "format: 2"])
    def test_a_file_that_is_none(self, text: str, tmp_path: Path) -> None:
        (tmp_path / "b.yaml").write_text(text)
        with pytest.raises(InputError) as caught:
            read_invitation(tmp_path / "b.yaml")
        assert caught.value.remedy == "Name the file that `fedpipe invite` wrote."
