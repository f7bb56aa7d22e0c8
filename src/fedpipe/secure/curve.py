"""Hashes ids to points of Curve25519, and multiplies them.

A point is known by its u coordinate of 32 bytes, and is multiplied by X25519 (RFC 7748). Scalars are multiples of 8, as
X25519 makes them, so products lie in the subgroup of prime order. A hash is always on the curve and never on its twist,
which would be a bit of each id that anybody sees. It is Elligator 2 (Bernstein, Hamburg, Krasnova, Lange 2013) of RFC
9380, suite curve25519_XMD:SHA-512_ELL2_NU_.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from fedpipe.errors import DroppedError

Points = npt.NDArray[np.uint8]
"""Rows of 32 bytes."""
PRIME = 2**255 - 19
ORDER = 2**252 + 27742317777372353535851937790883648493
"""Of the subgroup in which all products lie."""
DOMAIN = b"fedpipe-intersection-V01-with-curve25519_XMD:SHA-512_ELL2_NU_"
_COEFFICIENT = 486662
"""Of the curve v^2 = u^3 + 486662 u^2 + u."""
_SIZE, _FIELD = 32, 48
_PADDED = hashlib.sha512(bytes(128))


def hashed(ids: Sequence[bytes], about: str, domain: bytes = DOMAIN) -> Points:
    """Return a point of the curve for each id.

    Args:
        ids: their bytes.
        about: the occasion, so that the same id has another point at the next one.
        domain: of the hash.
    """
    prefix = about.encode()
    numbers = [_to_field(prefix + one, domain) for one in ids]
    points = b"".join(u.to_bytes(_SIZE, "little") for u in _mapped(numbers))
    return np.frombuffer(points, np.uint8).reshape(-1, _SIZE)


def _to_field(text: bytes, domain: bytes) -> int:
    """Return a number below the prime: expand_message_xmd and hash_to_field of RFC 9380."""
    tag = domain + len(domain).to_bytes(1, "big")
    first = _PADDED.copy()
    first.update(text + _FIELD.to_bytes(2, "big") + b"\0" + tag)
    return int.from_bytes(hashlib.sha512(first.digest() + b"\1" + tag).digest()[:_FIELD], "big") % PRIME


def _mapped(numbers: Sequence[int]) -> Iterator[int]:
    """Yield the u coordinates of numbers: map_to_curve_elligator2 of RFC 9380."""
    from Crypto.Math.Numbers import Integer

    prime = Integer(PRIME)
    for inverse in _inverses([1 + 2 * number * number for number in numbers]):
        u = -_COEFFICIENT * inverse % PRIME
        square = u * (u * (u + _COEFFICIENT) + 1) % PRIME
        is_square = Integer.jacobi_symbol(Integer(square), prime) != -1
        yield u if is_square else (-u - _COEFFICIENT) % PRIME


def _inverses(numbers: Sequence[int]) -> list[int]:
    """Return the inverses of numbers, none of which is zero, by one inversion (Montgomery 1987)."""
    products = list(itertools.accumulate(numbers, lambda a, b: a * b % PRIME, initial=1))
    left, found = pow(products[-1], -1, PRIME), []
    for number, before in zip(reversed(numbers), reversed(products[:-1]), strict=True):
        found.append(left * before % PRIME)
        left = left * number % PRIME
    return found[::-1]


def multiplied(points: Points, scalar: bytes) -> Points:
    """Return the products of points and a scalar. Raises DroppedError for a point whose product is the same for all."""
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

    private, data = X25519PrivateKey.from_private_bytes(scalar), points.tobytes()
    try:
        found = [
            private.exchange(X25519PublicKey.from_public_bytes(data[place : place + _SIZE]))
            for place in range(0, len(data), _SIZE)
        ]
    except ValueError as error:
        raise DroppedError("a point of a blinded id is not valid", lasting=True) from error
    return np.frombuffer(b"".join(found), np.uint8).reshape(-1, _SIZE)


def scalar_of(data: bytes) -> bytes:
    """Return 32 bytes as a scalar of X25519."""
    number = int.from_bytes(data, "little") % 2**254 // 8 * 8 + 2**254
    return number.to_bytes(_SIZE, "little")


def inverse_pair(draw: Callable[[int], bytes]) -> tuple[bytes, bytes]:
    """Return two scalars that undo each other on a hash that was multiplied by the first one.

    The second must be a scalar of X25519 too, which about four of ten inverses are.

    Args:
        draw: returns 32 random bytes of each number.
    """
    for number in itertools.count():
        scalar = scalar_of(draw(number))
        inverse = pow(int.from_bytes(scalar, "little"), -1, ORDER)
        for candidate in range(inverse, 2**255, ORDER):
            if candidate >= 2**254 and candidate % 8 == 0:
                return scalar, candidate.to_bytes(_SIZE, "little")
    raise AssertionError("numbers never end")
