"""Points of Curve25519: RFC 9380's hashes, RFC 7748's products, and points that are refused."""

from __future__ import annotations

import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpipe.errors import DroppedError
from fedpipe.secure.curve import PRIME, Points, hashed, inverse_pair, multiplied, scalar_of

SUITE = b"QUUX-V01-CS02-with-curve25519_XMD:SHA-512_ELL2_NU_"
HASHES = {
    b"": "51125222da5e763d97f3c10fcc92ea6860b9ccbbd2eb1285728f566721c1e65b",
    b"abc": "7d56d1e08cb0ccb92baf069c18c49bb5a0dcd927eff8dcf75ca921ef7f3e6eeb",
    b"abcdef0123456789": "3fbe66b9c9883d79e8407150e7c2a1c8680bee496c62fabe4619a72b3cabe90f",
    b"q128_" + b"q" * 128: "227e0bb89de700385d19ec40e857db6e6a3e634b1c32962f370d26f84ff19683",
}
"""Q.x of RFC 9380, appendix J.4.2."""


def point(number: int) -> Points:
    return np.frombuffer(number.to_bytes(32, "little"), np.uint8).reshape(1, 32)


def test_hashes_are_those_of_rfc_9380() -> None:
    found = hashed(list(HASHES), "", SUITE)
    assert [bytes(row[::-1]).hex() for row in found] == list(HASHES.values())


@pytest.mark.parametrize(
    ("scalar", "u", "product"),
    [
        ("a546e36bf0527c9d3b16154b82465edd62144c0ac1fc5a18506a2244ba449ac4",
         "e6db6867583030db3594c1a424b15f7c726624ec26b3353b10a903a6d0ab1c4c",
         "c3da55379de9c6908e94ea4df28d084f32eccf03491c71f754b4075577a28552"),
        ("4b66e9d4d1b4673c5ad22691957d6af5c11b6421e0ea01d42ca4169e7918ba0d",
         "e5210f12786811d3f4b7959d0538ae2c31dbe7106fc03c3efc4cd549c715a493",
         "95cbde9476e8907d7aade45cb4b873f88b595a68799fa152e6f8f7647aac7957"),
    ],
)  # fmt: skip
def test_products_are_those_of_rfc_7748(scalar: str, u: str, product: str) -> None:
    found = multiplied(np.frombuffer(bytes.fromhex(u), np.uint8).reshape(1, 32), bytes.fromhex(scalar))
    assert found.tobytes().hex() == product


@given(st.lists(st.binary(max_size=40), min_size=1, max_size=20), st.binary(min_size=32, max_size=32))
def test_a_hash_is_on_the_curve_and_two_scalars_undo_each_other(ids: list[bytes], seed: bytes) -> None:
    points = hashed(ids, "run")
    for row in points:
        u = int.from_bytes(row.tobytes(), "little")
        square = u * (u * u + 486662 * u + 1) % PRIME
        assert pow(square, (PRIME - 1) // 2, PRIME) in (0, 1), "on the curve, not on its twist"
    there, back = inverse_pair(lambda number: (seed + bytes([number % 256]))[-32:])
    other = scalar_of(seed)
    blinded = multiplied(points, there)
    assert (blinded != points).any(axis=1).all()
    np.testing.assert_array_equal(multiplied(multiplied(blinded, other), back), multiplied(points, other))


def test_an_id_has_another_point_at_another_occasion() -> None:
    first, second = hashed([b"p1"], "run-1"), hashed([b"p1"], "run-2")
    assert not np.array_equal(first, second)
    assert np.array_equal(first, hashed([b"p1"], "run-1"))


@pytest.mark.parametrize("number", [0, 1, PRIME, PRIME + 1, PRIME - 1])
def test_points_of_small_order_are_refused(number: int) -> None:
    """Their product with any scalar is 0, whatever the id."""
    points = np.concatenate([hashed([b"p1"], "run"), point(number)])
    with pytest.raises(DroppedError, match="is not valid"):
        multiplied(points, scalar_of(os.urandom(32)))


def test_blocks_of_any_size_are_multiplied_in_order() -> None:
    points, scalar = hashed([str(number).encode() for number in range(5000)], "run"), scalar_of(b"\5" * 32)
    whole = multiplied(points, scalar)
    assert whole.shape == points.shape
    for first in (0, 1, 2047, 4999):
        np.testing.assert_array_equal(whole[first : first + 1], multiplied(points[first : first + 1], scalar))
    assert multiplied(points[:0], scalar).shape == (0, 32)
