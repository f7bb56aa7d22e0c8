"""Masks: streams of AES-256-CTR that cancel in the sum, and the keys of two parties.

Each pair of parties has a secret by X25519 (RFC 7748). HKDF (RFC 5869) makes keys from it that are bound to the round,
to both names and to the list of all public keys.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import secrets
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from fedpipe.errors import DroppedError
from fedpipe.secure.numbers import SPARE, Words, pack_into, packed_size
from fedpipe.secure.shares import SEED

CHUNK = 2**15
"""Words of a vector that are made at a time."""
SPAN = 16
"""Chunks that are worked on in the same memory, because new memory is slower than the cipher."""
WINDOW = 2**19
"""Bytes that are masked at a time. With fewer, threads wait longer for Python's lock than they save in the cache."""
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


def cipher(key: bytes) -> Any:
    """Return AES-256, which encrypts each block by itself, in any number of threads at once."""
    from Crypto.Cipher import AES

    return AES.new(key, AES.MODE_ECB)


class _Streams:
    """The streams of some masks from a position on, added to words piece after piece.

    The stream of the CTR mode is the encryption of the numbers of its blocks (NIST SP 800-38A, section 6.5). All masks
    have the same numbers, so they are written once. The CTR mode of the library counts again for each key.

    Args:
        ciphers: of the masks, and how each is combined with the words.
        dtype: of words.
        start: the position of the first word, a multiple of GROUP.
    """

    def __init__(self, ciphers: Sequence[tuple[Any, np.ufunc]], dtype: np.dtype[Any], start: int) -> None:
        self._ciphers, self._next = ciphers, start * dtype.itemsize // BLOCK
        self._blocks, self._stream = memoryview(bytearray(WINDOW)), memoryview(bytearray(WINDOW))

    def add(self, words: Words) -> None:
        """Add the next part of all streams to words, in place and modulo the size of a word: at most WINDOW bytes."""
        blocks, stream, count = self._blocks[: words.nbytes], self._stream[: words.nbytes], words.nbytes // BLOCK
        np.frombuffer(blocks, ">u8")[1::2] = np.arange(self._next, self._next + count)
        self._next += count
        view = np.frombuffer(stream, words.dtype)
        for made, combine in self._ciphers:
            made.encrypt(blocks, output=stream)
            combine(words, view, out=words)


class Masks:
    """The sum of some masks, at any position.

    Args:
        terms: the masks.
        width: bits of the modulus.
        dtype: of words.
    """

    def __init__(self, terms: Sequence[Term], width: int, dtype: np.dtype[Any]) -> None:
        self._ciphers = [(cipher(derived(term.seed, 32, "mask")), term.minus) for term in terms]
        self._width, self._dtype = width, dtype

    def _streams(self, start: int, *, removed: bool = False) -> _Streams:
        ciphers = [(made, np.subtract if minus != removed else np.add) for made, minus in self._ciphers]
        return _Streams(ciphers, self._dtype, start)

    def write(self, chunks: Iterable[Words], write: Callable[[memoryview], object]) -> None:
        """Write chunks masked and packed, in their order; SPAN of them at once by each core.

        Args:
            chunks: at most CHUNK words each, a multiple of GROUP.
            write: takes bytes, which are written over after it returns.
        """
        cores, start, left = os.cpu_count() or 1, 0, iter(chunks)
        size = packed_size(SPAN * CHUNK, self._width) + SPARE
        buffers = [memoryview(bytearray(size)) for _ in range(cores + 1)]
        ahead: deque[Future[memoryview]] = deque()

        def finish() -> None:
            done = ahead.popleft().result()
            write(done)
            buffers.append(memoryview(done.obj))

        with ThreadPoolExecutor(cores) as pool:
            while several := list(itertools.islice(left, SPAN)):
                ahead.append(pool.submit(self._packed, several, start, buffers.pop()))
                start += sum(words.size for words in several)
                if len(ahead) > cores:
                    finish()
            while ahead:
                finish()

    def _packed(self, several: Sequence[Words], start: int, buffer: memoryview) -> memoryview:
        streams, place = self._streams(start), 0
        for words in _joined(several, np.empty(WINDOW // self._dtype.itemsize, self._dtype)):
            streams.add(words)
            pack_into(buffer[place:], words, self._width)
            place += packed_size(words.size, self._width)
        return buffer[:place]

    def remove(self, total: Words) -> None:
        """Subtract the masks from a whole vector, in place."""
        window = WINDOW // self._dtype.itemsize

        def work(first: int) -> None:
            streams, stop = self._streams(first, removed=True), min(first + SPAN * CHUNK, total.size)
            for start in range(first, stop, window):
                words = total[start : min(start + window, stop)]
                streams.add(words)
                words &= self._dtype.type(2**self._width - 1)

        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            for _ in pool.map(work, range(0, total.size, SPAN * CHUNK)):
                pass


def _joined(chunks: Iterable[Words], room: Words) -> Iterator[Words]:
    """Yield copies of chunks, one behind the other, as many at a time as there is room for."""
    filled = 0
    for words in chunks:
        if filled + words.size > room.size:
            yield room[:filled]
            filled = 0
        room[filled : filled + words.size] = words
        filled += words.size
    yield room[:filled]
