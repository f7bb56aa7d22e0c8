"""Masks: streams of AES-256-CTR that cancel in the sum, and the keys of two parties.

Each pair of parties has a secret by X25519 (RFC 7748). HKDF (RFC 5869) makes keys from it that are bound to the round,
to both names and to the list of all public keys.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from fedpipe.errors import DroppedError
from fedpipe.secure.numbers import Words, pack
from fedpipe.secure.shares import SEED

CHUNK = 2**16
"""Words that are masked at a time: they fit into the cache of a processor."""
BLOCK = 16
"""Bytes of a block of the cipher."""
TAG = 16
"""Bytes by which a box is longer than its content."""
MARK = 16
"""Bytes of a commitment to a secret or a share."""


class Term(NamedTuple):
    """A mask of a sum: the seed of its stream, and whether the stream is subtracted."""

    seed: bytes
    minus: bool = False


class KeyPair:
    """A key pair of X25519, which never leaves the memory of its process."""

    def __init__(self) -> None:
        from Crypto.PublicKey import ECC

        self._private = ECC.generate(curve="Curve25519")
        self.public: str = self._private.public_key().export_key(format="raw").hex()

    def shared(self, public: str) -> bytes:
        """Return the secret that this key has in common with another one.

        Raises:
            DroppedError: the other key is malformed, or would make the secret known to all.
        """
        from Crypto.Protocol.DH import import_x25519_public_key, key_agreement

        try:
            other = import_x25519_public_key(bytes.fromhex(public))
            found = bytes(key_agreement(eph_priv=self._private, eph_pub=other, kdf=lambda secret: secret))
        except ValueError as error:
            raise DroppedError("a public key is malformed") from error
        if not any(found):
            raise DroppedError("a public key has a small order")
        return found


def fresh_seed() -> bytes:
    """Return the seed of a mask that nobody else has."""
    return secrets.token_bytes(SEED)


def derived(secret: bytes, size: int, *context: str) -> bytes:
    """Derive bytes from a secret for one purpose.

    Args:
        secret: of a pair of parties, or the seed of a mask.
        size: bytes to derive.
        context: words that name the purpose; they are joined without ambiguity.
    """
    from Crypto.Hash import SHA256
    from Crypto.Protocol.KDF import HKDF

    info = b"fedpipe secure sums 1" + b"".join(len(w.encode()).to_bytes(4, "big") + w.encode() for w in context)
    return bytes(HKDF(secret, size, b"", SHA256, context=info))


def mark_of(secret: bytes) -> bytes:
    """Return the commitment to a secret of at least 31 random bytes: it names the secret and does not show it."""
    return hashlib.sha256(b"fedpipe mark\n" + secret).digest()[:MARK]


def seal(key: bytes, content: bytes) -> bytes:
    """Encrypt and authenticate the only content that a key is ever used for (ChaCha20-Poly1305, RFC 8439)."""
    from Crypto.Cipher import ChaCha20_Poly1305

    data, tag = ChaCha20_Poly1305.new(key=key, nonce=bytes(12)).encrypt_and_digest(content)
    return bytes(data + tag)


def unseal(key: bytes, box: bytes) -> bytes | None:
    """Return the content of a box; None if it was changed, or sealed with another key."""
    from Crypto.Cipher import ChaCha20_Poly1305

    try:
        return bytes(ChaCha20_Poly1305.new(key=key, nonce=bytes(12)).decrypt_and_verify(box[:-TAG], box[-TAG:]))
    except ValueError:
        return None


def encrypt(key: bytes, first: int, content: bytes | memoryview, output: bytearray) -> None:
    """Encrypt content by AES-256-CTR, from a block of the stream on (NIST SP 800-38A, section 6.5).

    Args:
        key: 32 bytes.
        first: the number of the first block.
        content: zeros, to get the stream itself.
        output: takes the result; as long as the content.
    """
    from Crypto.Cipher import AES

    AES.new(key, AES.MODE_CTR, nonce=b"", initial_value=first).encrypt(content, output=output)


class Masks:
    """The sum of some masks, at any position.

    Args:
        terms: the masks.
        width: bits of the modulus.
        dtype: of words.
    """

    def __init__(self, terms: Sequence[Term], width: int, dtype: np.dtype[Any]) -> None:
        self._keys = [(derived(term.seed, 32, "mask"), term.minus) for term in terms]
        self._width, self._dtype = width, dtype
        self._zeros = bytes(CHUNK * dtype.itemsize)

    def add(self, words: Words, start: int, *, minus: bool = False) -> Words:
        """Add the masks to words in place, or subtract them, modulo 2^width.

        Args:
            words: at most CHUNK of them.
            start: the position of the first one, a multiple of GROUP.
            minus: whether to subtract.
        """
        size, first = words.size * self._dtype.itemsize, start * self._dtype.itemsize // BLOCK
        stream, zeros = bytearray(size), memoryview(self._zeros)[:size]
        view = np.frombuffer(stream, self._dtype)
        for key, negative in self._keys:
            encrypt(key, first, zeros, stream)
            (np.subtract if negative != minus else np.add)(words, view, out=words)
        words &= self._dtype.type(2**self._width - 1)
        return words

    def masked(self, chunks: Iterable[Words]) -> Iterator[bytes]:
        """Yield chunks masked and packed, in their order; several are worked on at once.

        Args:
            chunks: at most CHUNK words each, a multiple of GROUP.
        """

        def work(words: Words, start: int) -> bytes:
            return pack(self.add(words, start), self._width)

        cores, start = os.cpu_count() or 1, 0
        ahead: deque[Future[bytes]] = deque()
        with ThreadPoolExecutor(cores) as pool:
            for words in chunks:
                ahead.append(pool.submit(work, words, start))
                start += words.size
                if len(ahead) > cores:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()

    def remove(self, total: Words) -> None:
        """Subtract the masks from a whole vector, in place."""
        starts = range(0, total.size, CHUNK)
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            for _ in pool.map(lambda start: self.add(total[start : start + CHUNK], start, minus=True), starts):
                pass
