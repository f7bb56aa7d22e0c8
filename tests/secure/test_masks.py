"""Masks: known answers of their parts, cancellation, uniform words, and boxes."""

from __future__ import annotations

import hashlib
import hmac
import itertools
from typing import Any

import numpy as np
import pytest
from Crypto.Cipher import AES
from Crypto.Protocol.DH import import_x25519_private_key
from hypothesis import given
from hypothesis import strategies as st

from fedpipe.errors import DroppedError
from fedpipe.secure.masks import (
    CHUNK,
    SPAN,
    KeyPair,
    Masks,
    Term,
    cipher,
    derived,
    fresh_seed,
    mark_of,
    seal,
    unseal,
)
from fedpipe.secure.numbers import pack, unpack
from tests.secure.table import written

U4, U8 = np.dtype("<u4"), np.dtype("<u8")


def test_the_cipher_is_aes_256() -> None:
    """Blocks 0 and 1 under a key of zeros, as in test cases 13 and 14 of the GCM specification."""
    out = cipher(bytes(32)).encrypt(bytes(31) + b"\1")
    assert out.hex() == "dc95c078a2408989ad48a21492842087530f8afbc74536b9a963b4f1c4cb738b"


@pytest.mark.parametrize("dtype", [U4, U8])
def test_a_mask_is_a_stream_of_aes_256_ctr(dtype: np.dtype[np.unsignedinteger[Any]]) -> None:
    """The library's CTR mode makes the same bytes, over several spans of chunks and from a part of one on."""
    count = CHUNK * (SPAN + 1) + 24
    zeros, width = np.zeros(count, dtype), 8 * dtype.itemsize
    starts = [0, 8, *range(8 + CHUNK, count, CHUNK), count]
    data = written(Masks([Term(b"s" * 31)], width, dtype), [zeros[i:j] for i, j in itertools.pairwise(starts)])
    stream = AES.new(derived(b"s" * 31, 32, "mask"), AES.MODE_CTR, nonce=b"", initial_value=0)
    assert data == stream.encrypt(bytes(zeros.nbytes))


def test_masked_bytes_stay_the_same() -> None:
    """Learners of different versions may be in one sum: two masks over a ramp, of 20 bits."""
    words = np.arange(3 * CHUNK + 8, dtype=U4)
    starts = [0, 8, *range(8 + CHUNK, words.size + 1, CHUNK)]
    masks = Masks([Term(b"a" * 31), Term(b"b" * 31, minus=True)], 20, U4)
    data = written(masks, [words[i:j] for i, j in itertools.pairwise(starts)])
    assert hashlib.sha256(data).hexdigest() == "eceea98001b75baa5c7e49c136f2320c6b7dab58b0443250a9a4c292e75e335b"


def test_the_shared_secret_is_x25519() -> None:
    """RFC 7748, section 5.2."""
    pair = KeyPair()
    pair._private = import_x25519_private_key(
        bytes.fromhex("a546e36bf0527c9d3b16154b82465edd62144c0ac1fc5a18506a2244ba449ac4")
    )
    shared = pair.shared("e6db6867583030db3594c1a424b15f7c726624ec26b3353b10a903a6d0ab1c4c")
    assert shared.hex() == "c3da55379de9c6908e94ea4df28d084f32eccf03491c71f754b4075577a28552"


def test_both_sides_share_a_secret() -> None:
    one, other = KeyPair(), KeyPair()
    assert one.shared(other.public) == other.shared(one.public)


@pytest.mark.parametrize("key", ["00" * 32, "01" + "00" * 31, "00", "ecffff" + "ff" * 28 + "7f"])
def test_keys_that_give_the_secret_away_are_refused(key: str) -> None:
    with pytest.raises(DroppedError, match="a public key"):
        KeyPair().shared(key)


def test_derivation_is_hkdf() -> None:
    """RFC 5869, written out."""
    info = b"fedpipe secure sums 1" + b"\0\0\0\4seed" + b"\0\0\0\1a"
    key = hmac.digest(bytes(32), b"secret", hashlib.sha256)
    first = hmac.digest(key, info + b"\1", hashlib.sha256)
    second = hmac.digest(key, first + info + b"\2", hashlib.sha256)
    assert derived(b"secret", 40, "seed", "a") == (first + second)[:40]


def test_contexts_are_not_confused() -> None:
    assert derived(b"s" * 32, 32, "ab", "c") != derived(b"s" * 32, 32, "a", "bc")


@pytest.mark.parametrize("width", [*range(12, 33, 4), 40, 48])
def test_masks_cancel_for_every_modulus(width: int) -> None:
    dtype = U4 if width <= 32 else U8
    seed = fresh_seed()
    total = np.zeros(64, dtype)
    for term in (Term(seed), Term(seed, minus=True)):
        total += unpack(written(Masks([term], width, dtype), [np.zeros(64, dtype)]), width, dtype)
    assert not (total & dtype.type(2**width - 1)).any()


@given(st.integers(0, 5), st.integers(1, 40), st.integers(1, 40))
def test_masks_are_removed_from_any_division_into_chunks(seed: int, first: int, second: int) -> None:
    random = np.random.default_rng(seed)
    words = random.integers(0, 2**20, 8 * (first + second), U4)
    masks = Masks([Term(fresh_seed()), Term(fresh_seed(), minus=True)], 20, U4)
    data = written(masks, [words[: 8 * first], words[8 * first :]])
    total = unpack(data, 20, U4)
    assert (total != words).any()
    masks.remove(total)
    assert (total == words).all()


def test_long_vectors_are_masked_in_order() -> None:
    words = np.arange(3 * CHUNK + 8, dtype=U4) & U4.type(2**20 - 1)
    masks = Masks([Term(fresh_seed())], 20, U4)
    total = unpack(written(masks, (words[k : k + CHUNK] for k in range(0, words.size, CHUNK))), 20, U4)
    masks.remove(total)
    assert (total == words).all()


@pytest.mark.parametrize("sizes", [(), (8,), (CHUNK, 8, 8, CHUNK), (8, 16, 24) * 10])
def test_chunks_of_any_size_are_one_vector(sizes: tuple[int, ...]) -> None:
    """The bytes do not depend on how a vector is cut, also beyond a span of chunks."""
    words = np.arange(sum(sizes), dtype=U4)
    ends = np.cumsum([0, *sizes])
    masks = Masks([Term(b"a" * 31), Term(b"b" * 31, minus=True)], 20, U4)
    cut = written(masks, [words[start:stop] for start, stop in itertools.pairwise(ends)])
    assert cut == written(masks, [words[start : start + 2**10] for start in range(0, words.size, 2**10)])
    assert (words == np.arange(sum(sizes), dtype=U4)).all(), "the vector stays as it is"


def test_no_masks_change_nothing() -> None:
    words = np.arange(16, dtype=U4)
    assert written(Masks([], 20, U4), [words]) == pack(words, 20)


def test_masked_words_are_uniform() -> None:
    """Chi-square over the bytes of a masked vector of zeros: 255 degrees of freedom, 1 in 10^7 above 383."""
    zeros = np.zeros(2**18, U4)
    chunks = (zeros[start : start + CHUNK] for start in range(0, zeros.size, CHUNK))
    data = written(Masks([Term(fresh_seed()), Term(fresh_seed())], 20, U4), chunks)
    assert len(data) == len(pack(zeros, 20))
    counts = np.bincount(np.frombuffer(data, np.uint8), minlength=256)
    expected = len(data) / 256
    assert ((counts - expected) ** 2 / expected).sum() < 383


@given(st.binary(max_size=100), st.integers(0, 10**6))
def test_a_changed_box_does_not_open(content: bytes, place: int) -> None:
    key = b"k" * 32
    box = seal(key, content)
    assert unseal(key, box) == content
    changed = bytearray(box)
    changed[place % len(box)] ^= 1
    assert unseal(key, bytes(changed)) is None
    assert unseal(b"l" * 32, box) is None
    assert unseal(key, box[:5]) is None


def test_marks_differ() -> None:
    assert mark_of(b"a" * 31) != mark_of(b"b" * 31)
    assert len(mark_of(b"a" * 31)) == 16
