"""How a site joins: a request, which its new key signs and the token of its invitation binds, and the answer to it.

    Request     the site's public keys; its HMAC by the token shows that it comes from the one who was invited
    Answer      accepted or refused, signed by the administrator; the keys of the store in it are sealed to the site
    Rotation    a request for a new key, which the current one signs, with a new secret of the store sealed inside

Everything here is bytes in and bytes out. Bytes that are not in canonical form are refused, so no byte can be changed.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import Annotated, NamedTuple, TypeVar

import msgspec
from msgspec import Meta, Struct
from msgspec.structs import replace

from fedpipe.codec import from_json
from fedpipe.errors import CorruptError, DroppedError, FedpipeError, one_line
from fedpipe.federation.names import Name
from fedpipe.identity.enrolment import PublicKey
from fedpipe.identity.sealing import Seal, exchange_of
from fedpipe.identity.signing import Signature, Signer, signer_of, verify
from fedpipe.identity.statements import is_signed_by, signed_with
from fedpipe.sites.invitation import Invitation, place_of
from fedpipe.store.base import Credentials
from fedpipe.store.objects import Digest, canonical, digest_of, encode

LIMIT = 2**16
"""Largest request or answer, in bytes."""
_Key = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
_Sealed = Annotated[str, Meta(pattern=r"^([0-9a-f]{2}){0,2000}\Z")]
_NO_MAC = "0" * 64
T = TypeVar("T", "Request", "Answer", "Rotation", "StoreKeys")


class Request(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A site's request to join. `terms` is the digest of the terms of its invitation."""

    format: Annotated[int, Meta(ge=1, le=1)] = 1
    federation: Name
    learner: Name
    terms: Digest
    key: PublicKey
    exchange: _Key
    mac: _Key
    signature: Signature | None = None


class Answer(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The administrator's answer to the request with a digest. `mark` is the state of the site's privacy ledger."""

    format: Annotated[int, Meta(ge=1, le=1)] = 1
    federation: Name
    learner: Name
    request: Digest
    accepted: bool
    why: Annotated[str, Meta(max_length=500)] = ""
    mark: Annotated[str, Meta(max_length=100)] = ""
    sealed: _Sealed = ""
    signature: Signature | None = None


class Rotation(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A site's request for a new key. `proof` is made with the new key, `signature` with the current one."""

    format: Annotated[int, Meta(ge=1, le=1)] = 1
    federation: Name
    learner: Name
    key: PublicKey
    exchange: _Key
    sealed: _Sealed = ""
    proof: Annotated[str, Meta(pattern=r"^[0-9a-f]{128}\Z")]
    signature: Signature | None = None


class StoreKeys(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The sealed part of an answer."""

    accesskey: Annotated[str, Meta(min_length=1, max_length=200)]
    secretkey: Annotated[str, Meta(min_length=1, max_length=200)]


def fingerprint(key: str) -> str:
    """Return a short form of a public key, for people who compare it.

    >>> fingerprint("00" * 32)
    '66687aad-f862bd77-6c8fc18b'
    """
    found = hashlib.sha256(bytes.fromhex(key)).hexdigest()
    return "-".join(found[start : start + 8] for start in (0, 8, 16))


def make_request(invitation: Invitation, private: str, now: float) -> bytes:
    """Make a site's request to join.

    Args:
        invitation: with its token.
        private: the site's key.
        now: seconds since 1970.
    """
    signer = signer_of(private)
    exchange = exchange_of(signer, place_of(invitation.federation, invitation.learner))
    request = Request(
        federation=invitation.federation, learner=invitation.learner, terms=_terms_of(invitation.terms),
        key=signer.public, exchange=exchange.public.hex(), mac=_NO_MAC,
    )  # fmt: skip
    return encode(signed_with(replace(request, mac=_mac(request, invitation.token)), signer, lambda: now))


def read_request(data: bytes, terms: Invitation, token: str) -> Request:
    """Return a request that fits an invitation.

    Args:
        data: of the request.
        terms: of the invitation, which the administrator signed.
        token: of the invitation.

    Raises:
        CorruptError: it does not fit; `what` is the reason.
    """
    request = _read(data, Request, "the request")
    if request.federation != terms.federation:
        raise CorruptError(f"the request is for the federation {request.federation!r}")
    if request.learner != terms.learner:
        raise CorruptError(f"the request is of {request.learner!r}, who was not invited by this file")
    if request.terms != _terms_of(terms):
        raise CorruptError("the request was made from an altered invitation")
    if not hmac.compare_digest(request.mac, _mac(request, token)):
        raise CorruptError("the request was not made with the token of the invitation, or was altered")
    _check_signed(request, request.key, "the request")
    return request


def make_answer(
    private: str, request: Request | None, data: bytes, federation: str, learner: str, now: float, *,
    why: str = "", mark: str = "", credentials: Credentials | None = None,
) -> bytes:  # fmt: skip
    """Make the administrator's answer to a request.

    Args:
        private: the administrator's key.
        request: the accepted one; None to refuse it.
        data: its bytes.
        federation: its name.
        learner: the site's name.
        now: seconds since 1970.
        why: the reason of a refusal.
        mark: the state of the site's privacy ledger.
        credentials: the site's keys of the store; none for a folder.
    """
    signer, sealed = signer_of(private), b""
    if request is not None and credentials is not None:
        seal = _seal(signer, federation, learner, request.exchange)
        content = StoreKeys(accesskey=credentials.access_key, secretkey=credentials.secret_key)
        sealed = seal.close(f"answer {digest_of(data)}", encode(content))
    answer = Answer(
        federation=federation, learner=learner, request=digest_of(data), accepted=request is not None,
        why=one_line(why, 500), mark=mark, sealed=sealed.hex(),
    )  # fmt: skip
    return encode(signed_with(answer, signer, lambda: now))


class Accepted(NamedTuple):
    """The gifts of an answer: keys of the store, none for a folder, and the mark of the privacy ledger."""

    credentials: Credentials | None
    mark: str


def read_answer(data: bytes, invitation: Invitation, private: str, request: bytes) -> Accepted:
    """Return what an answer gives to the site.

    Args:
        data: of the answer.
        invitation: whose administrator must have signed it.
        private: the site's key.
        request: the bytes of its request.

    Raises:
        CorruptError: it is not the administrator's answer.
        DroppedError: the administrator refused; `what` is the reason.
    """
    answer = _read(data, Answer, "the answer")
    _check_signed(answer, invitation.administrator, "the answer")
    if (answer.federation, answer.learner) != (invitation.federation, invitation.learner):
        raise CorruptError(f"the answer is for {answer.learner!r} of {answer.federation!r}")
    if not answer.accepted:
        raise DroppedError(f"the administrator refused: {answer.why}", lasting=True)
    if answer.request != digest_of(request):
        raise DroppedError("somebody else has used this invitation: another request was accepted", lasting=True)
    if not answer.sealed:
        return Accepted(None, answer.mark)
    seal = _seal(signer_of(private), invitation.federation, invitation.learner, invitation.exchange)
    content = seal.open(f"answer {digest_of(request)}", bytes.fromhex(answer.sealed))
    found = _read(content, StoreKeys, "the sealed part of the answer")
    return Accepted(Credentials(found.accesskey, found.secretkey), answer.mark)


def make_rotation(
    federation: str, learner: str, current: Signer, new: str, now: float, *, exchange: str = "", secret: str = ""
) -> bytes:
    """Make a site's request for a new key.

    Args:
        federation: its name.
        learner: the site's name.
        current: signs with the current key.
        new: the new private key.
        now: seconds since 1970.
        exchange: the administrator's key of the exchange; needed for a secret.
        secret: the new secret key of the store's user; none keeps the present one.
    """
    signer = signer_of(new)
    public = exchange_of(signer, place_of(federation, learner)).public.hex()
    sealed = b""
    if secret:
        sealed = _seal(signer, federation, learner, exchange).close(f"rotation {signer.public}", secret.encode())
    empty = Rotation(
        federation=federation, learner=learner, key=signer.public, exchange=public, sealed=sealed.hex(), proof="0" * 128
    )
    rotation = replace(empty, proof=signer.sign(_proven(empty)))
    return encode(signed_with(rotation, current, lambda: now))


def read_rotation(data: bytes, federation: str, learner: str, enrolled: str) -> Rotation:
    """Return a request for a new key that the holder of the enrolled key made, or the holder of the new one.

    Args:
        data: of the request.
        federation: its name.
        learner: the site's name.
        enrolled: its enrolled public key; it is the new one when the request was granted before.

    Raises:
        CorruptError: it does not fit; `what` is the reason.
    """
    rotation = _read(data, Rotation, "the request")
    if (rotation.federation, rotation.learner) != (federation, learner):
        raise CorruptError(f"the request is of {rotation.learner!r} in the federation {rotation.federation!r}")
    if not verify(rotation.key, _proven(replace(rotation, signature=None)), rotation.proof):
        raise CorruptError("the new key does not sign the request, or it was altered")
    if rotation.key != enrolled:
        _check_signed(rotation, enrolled, "the request")
    return rotation


def secret_of(rotation: Rotation, private: str) -> str:
    """Return the secret key of the store's user that the site chose; empty without one. Raises DroppedError.

    Args:
        rotation: the request.
        private: the administrator's key.
    """
    if not rotation.sealed:
        return ""
    seal = _seal(signer_of(private), rotation.federation, rotation.learner, rotation.exchange)
    secret = seal.open(f"rotation {rotation.key}", bytes.fromhex(rotation.sealed)).decode(errors="replace")
    if not (secret.isascii() and secret.isalnum() and 20 <= len(secret) <= 40):
        raise DroppedError("the secret key that it chose does not have 20 to 40 letters and digits")
    return secret


def _seal(signer: Signer, federation: str, learner: str, theirs: str) -> Seal:
    return Seal(exchange_of(signer, place_of(federation, learner)).agree(bytes.fromhex(theirs)))


def _terms_of(terms: Invitation) -> str:
    return digest_of(canonical(terms))


def _proven(rotation: Rotation) -> bytes:
    return b"fedpipe rotation proof\n" + canonical(replace(rotation, proof="0" * 128))


def _mac(request: Request, token: str) -> str:
    content = b"fedpipe joining token\n" + canonical(replace(request, mac=_NO_MAC, signature=None))
    return hmac.new(bytes.fromhex(token), content, hashlib.sha256).hexdigest()


def _check_signed(statement: Request | Answer | Rotation, key: str, what: str) -> None:
    if statement.signature is None or statement.signature.key != key:
        raise CorruptError(f"{what} is signed with another key")
    if not is_signed_by(statement, key):
        raise CorruptError(f"the signature does not fit {what}, which was altered")


def _read(data: bytes, kind: type[T], what: str) -> T:
    try:
        found = from_json(data, kind)
        if encode(found) != data:
            raise CorruptError("it is not in canonical form")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, FedpipeError) as error:
        why = error.what if isinstance(error, FedpipeError) else one_line(error)
        raise CorruptError(f"{what} is malformed, because {why}") from error
    return found
