"""Shamir's secret sharing over the field of 2^255 - 19.

Source: Shamir 1979, "How to Share a Secret".
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping

PRIME = 2**255 - 19
SEED = 31
"""Bytes of a secret: any of them is an element of the field."""
SHARE = 32
"""Bytes of a share, little-endian."""


def split(
    secret: bytes, threshold: int, count: int, draw: Callable[[int], int] = secrets.randbelow
) -> list[bytes]:  # fmt: skip
    """Split a secret into shares at the points 1, 2, ..., of which `threshold` give it back and fewer give nothing.

    Args:
        secret: SEED bytes.
        threshold: the number of shares that give it back.
        count: the number of shares.
        draw: returns a random number below its argument.
    """
    coefficients = [int.from_bytes(secret, "little"), *(draw(PRIME) for _ in range(threshold - 1))]
    return [_value(coefficients, point).to_bytes(SHARE, "little") for point in range(1, count + 1)]


def _value(coefficients: list[int], point: int) -> int:
    value = 0
    for coefficient in reversed(coefficients):
        value = (value * point + coefficient) % PRIME
    return value


def join(shares: Mapping[int, bytes], threshold: int) -> bytes | None:
    """Return the secret from shares by their points; None if they belong to none.

    Args:
        shares: at least `threshold` of them; the first ones are used.
        threshold: as in `split`.

    Raises:
        ValueError: there are fewer.
    """
    points = sorted(shares)[:threshold]
    if len(points) < threshold:
        raise ValueError(f"{len(points)} shares do not give a secret that needs {threshold}")
    total = 0
    for point in points:
        above, below = 1, 1
        for other in points:
            if other != point:
                above = above * other % PRIME
                below = below * (other - point) % PRIME
        total += int.from_bytes(shares[point], "little") * above * pow(below, -1, PRIME)
    total %= PRIME
    return total.to_bytes(SHARE, "little")[:SEED] if total < 2 ** (8 * SEED) else None
