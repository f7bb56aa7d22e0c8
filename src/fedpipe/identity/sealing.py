"""Seals what one enrolled learner sends another, so that neither the store nor other learners can read it.

Two learners agree on a secret by X25519 (RFC 7748). The private key of the exchange follows from the signing key and
the run. An Ed25519 signature of one text is always the same, and this one is never published. So a restarted
process has the same key. Each object is encrypted once, by AES-256-GCM with a key of its own, which follows from the
secret and the object's name.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Any, NamedTuple

from fedpipe.errors import DroppedError
from fedpipe.identity.signing import Signer, find_signer

TAG = 16
"""Bytes by which a sealed object is longer."""
_ONCE = bytes(12)
"""The nonce: each key encrypts one object, which is written once."""


class Exchange(NamedTuple):
    """A learner's key of an exchange: its public part, and the agreement on a secret with another's public part."""

    public: bytes
    agree: Callable[[bytes], bytes]


def find_exchange(learner: str, place: str) -> Exchange | None:
    """Return a learner's key of the exchange at a place, such as a run; None without a signing key."""
    signer = find_signer(learner)
    return exchange_of(signer, place) if signer else None


def exchange_of(signer: Signer, place: str) -> Exchange:
    """Return the key of the exchange at a place, of the one who signs."""
    return exchange_from(_signed(signer, "exchange", place), place)


def find_secret(learner: str, place: str) -> bytes:
    """Return a learner's secret of a place: the same one again with a signing key, and a random one without."""
    signer = find_signer(learner)
    return _signed(signer, "secret", place) if signer else secrets.token_bytes(32)


def _signed(signer: Signer, purpose: str, place: str) -> bytes:
    return derived(bytes.fromhex(signer.sign(f"fedpipe {purpose}\n{place}".encode())), place)


def exchange_from(secret: bytes, place: str) -> Exchange:
    """Return the key of the exchange at a place that follows from a secret of 32 bytes."""
    from Crypto.Protocol.DH import import_x25519_private_key, import_x25519_public_key, key_agreement

    private = import_x25519_private_key(secret)

    def agree(public: bytes) -> bytes:
        try:
            theirs = import_x25519_public_key(public)
            return bytes(
                key_agreement(static_priv=private, static_pub=theirs, kdf=lambda shared: derived(shared, place))
            )
        except ValueError as error:
            raise DroppedError("its key of the exchange is not valid") from error

    return Exchange(bytes(private.public_key().export_key(format="raw")), agree)


def derived(secret: bytes, about: str) -> bytes:
    """Return 32 bytes that follow from a secret, of their own for each purpose."""
    from Crypto.Hash import SHA256
    from Crypto.Protocol.KDF import HKDF

    return bytes(HKDF(secret, 32, b"", SHA256, context=about.encode()))


class Seal(NamedTuple):
    """Seals objects between two learners.

    Args:
        secret: on which they agreed.
    """

    secret: bytes

    def close(self, name: str, data: bytes) -> bytes:
        """Encrypt an object."""
        sealed, tag = self._cipher(name).encrypt_and_digest(data)
        return bytes(sealed + tag)

    def open(self, name: str, data: bytes) -> bytes:
        """Decrypt an object. Raises DroppedError when it was not sealed with this secret, under this name."""
        try:
            return bytes(self._cipher(name).decrypt_and_verify(data[:-TAG], data[-TAG:]))
        except ValueError as error:
            raise DroppedError("it was not sealed by its sender for this party") from error

    def _cipher(self, name: str) -> Any:
        from Crypto.Cipher import AES

        return AES.new(derived(self.secret, name), AES.MODE_GCM, nonce=_ONCE)
