"""Ed25519: the vectors of RFC 8032, and where a learner's key is found."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpipe.errors import InputError
from fedpipe.identity.sealing import exchange_of
from fedpipe.identity.signing import Signer, find_key, key_answers, make_key, public_key, sign, verify
from fedpipe.identity.statements import signed_with
from fedpipe.sites.approval import Approval, Review
from fedpipe.sites.invitation import place_of
from fedpipe.sites.joining import make_rotation
from fedpipe.sites.journal import JournalHead

VECTORS = [  # RFC 8032, section 7.1, tests 1 to 3: private key, public key, message, signature
    ("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
     "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a", "",
     "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655"
     "141438e7a100b"),
    ("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
     "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c", "72",
     "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d"
     "291612bb0c00"),
    ("c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7",
     "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025", "af82",
     "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027"
     "beceea1ec40a"),
]  # fmt: skip


@pytest.mark.parametrize(("private", "public", "message", "signature"), VECTORS)
def test_the_vectors_of_the_rfc(private: str, public: str, message: str, signature: str) -> None:
    assert public_key(private) == public
    assert sign(private, bytes.fromhex(message)) == signature
    assert verify(public, bytes.fromhex(message), signature)


@given(st.binary(max_size=100), st.integers(0, 511), st.data())
def test_one_other_bit_is_found(message: bytes, bit: int, data: st.DataObject) -> None:
    private = make_key()
    signature = bytearray.fromhex(sign(private, message))
    assert verify(public_key(private), message, signature.hex())
    signature[bit // 8] ^= 1 << bit % 8
    assert not verify(public_key(private), message, signature.hex())
    assert not verify(public_key(make_key()), message, sign(private, message))
    assert not verify(public_key(private), message + b"x", sign(private, message))


@given(st.text(max_size=140), st.text(max_size=140))
def test_what_is_neither_key_nor_signature_verifies_nothing(public: str, signature: str) -> None:
    assert not verify(public, b"", signature)


@pytest.mark.parametrize("text", ["", "ab", "g" * 64, "0" * 63])
def test_what_is_no_private_key(text: str) -> None:
    with pytest.raises(InputError, match="64 hexadecimal digits"):
        sign(text, b"")


class TestWhereAKeyIs:
    def test_the_variable_comes_first(self, tmp_path: Path) -> None:
        (tmp_path / "a.key").write_text("two\n")
        (tmp_path / "signingkey").write_text("three")
        found = {"FEDPIPE_SIGNING_KEY": "one", "FEDPIPE_KEYS": str(tmp_path), "FEDPIPE_SECRET_DIR": str(tmp_path)}
        assert find_key("a", found) == "one"
        assert find_key("a", {k: v for k, v in found.items() if k != "FEDPIPE_SIGNING_KEY"}) == "three"
        assert find_key("a", {"FEDPIPE_KEYS": str(tmp_path)}) == "two"

    def test_or_there_is_none(self, tmp_path: Path) -> None:
        assert find_key("a", {}) is None
        assert find_key("b", {"FEDPIPE_KEYS": str(tmp_path), "FEDPIPE_SECRET_DIR": str(tmp_path)}) is None


def sites_statements() -> list[bytes]:
    """The bytes of each statement that a site signs for itself."""
    seen: list[bytes] = []

    def keep(data: bytes) -> str:
        seen.append(data)
        return sign("1a" * 32, data)

    signer = Signer(public_key("1a" * 32), keep)
    make_rotation("digits", "b", signer, "2b" * 32, 0.0)
    exchange_of(signer, place_of("digits", "b"))
    for statement in (
        JournalHead(), Review(plan="sha256:" + "0" * 64),
        Approval(learner="b", plan="sha256:" + "0" * 64, code="sha256:" + "0" * 64, verdict="approved", since=0.0),
    ):  # fmt: skip
        signed_with(statement, signer)
    return seen


def test_code_of_others_gets_no_statement_by_which_a_site_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process that holds the keys signs for `model.py`, which could enrol a key of its own otherwise."""
    monkeypatch.setenv("FEDPIPE_SIGNING_KEY", "1a" * 32)
    ask, statements = key_answers()["sign"], sites_statements()
    assert len(statements) == 5
    for data in (*statements, b"fedpipe request to join\n{}", b"anything"):
        with pytest.raises(InputError, match="only statements of a learner in a run are signed"):
            ask("b", data)
    assert ask("b", b"fedpipe update\n{}") == sign("1a" * 32, b"fedpipe update\n{}")
    assert ask("b", b"fedpipe exchange\ndigits/first")
