"""Shamir's shares: known answers, any threshold of them, and nothing below it."""

from __future__ import annotations

import itertools
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpipe.secure.shares import PRIME, SEED, SHARE, join, split


def test_known_answer() -> None:
    coefficients = iter([2, 3])
    shares = split((1).to_bytes(SEED, "little"), 3, 4, lambda _: next(coefficients))
    assert [int.from_bytes(share, "little") for share in shares] == [6, 17, 34, 57], "1 + 2x + 3x^2"


def test_values_wrap_at_the_prime() -> None:
    shares = split((5).to_bytes(SEED, "little"), 2, 2, lambda _: PRIME - 1)
    assert [int.from_bytes(share, "little") for share in shares] == [4, 3], "5 - x"


@given(st.binary(min_size=SEED, max_size=SEED), st.integers(1, 8), st.integers(0, 4), st.randoms(use_true_random=False))
def test_any_threshold_of_shares_gives_the_secret(secret: bytes, threshold: int, more: int, random: Random) -> None:
    shares = dict(enumerate(split(secret, threshold, threshold + more, random.randrange), 1))
    for chosen in itertools.islice(itertools.combinations(shares, threshold), 20):
        assert join({point: shares[point] for point in chosen}, threshold) == secret


@pytest.mark.parametrize("threshold", [2, 3, 5])
def test_fewer_shares_fit_any_secret(threshold: int) -> None:
    """With one share missing, each possible secret is explained by one value of that share."""
    random = Random(3)
    shares = dict(enumerate(split(b"\7" * SEED, threshold, threshold, random.randrange), 1))
    del shares[threshold]
    for other in (bytes(SEED), b"\1" * SEED, b"\377" * SEED):
        point0 = int.from_bytes(other, "little")
        known = {0: point0, **{point: int.from_bytes(share, "little") for point, share in shares.items()}}
        last = 0
        for point, value in known.items():
            above = below = 1
            for one in known:
                if one != point:
                    above, below = above * (threshold - one) % PRIME, below * (point - one) % PRIME
            last = (last + value * above * pow(below, -1, PRIME)) % PRIME
        assert join({**shares, threshold: last.to_bytes(SHARE, "little")}, threshold) == other


def test_too_few_are_refused() -> None:
    with pytest.raises(ValueError, match="2 shares do not give a secret that needs 3"):
        join({1: bytes(SHARE), 2: bytes(SHARE)}, 3)


def test_shares_of_nothing() -> None:
    top = (PRIME - 1).to_bytes(SHARE, "little")
    assert join({1: top, 2: top}, 2) is None, "the value is larger than any secret"
