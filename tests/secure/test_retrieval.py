"""Oblivious key-value stores: every key has its value, others have noise, and a table does not look like its keys."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpipe.secure.retrieval import WIDTH, Words, look_up, make_table, third_of


def words(random: np.random.Generator, count: int) -> Words:
    return random.integers(0, 2**64, (count, WIDTH), np.uint64)


@given(st.integers(1, 400), st.integers(0, 2**32))
def test_each_key_has_its_value_and_others_have_noise(count: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    keys, values, others = (words(random, count) for _ in range(3))
    table = make_table(keys, values, random.bytes)
    assert len(table.words) == 3 * third_of(count)
    np.testing.assert_array_equal(look_up(table, keys), values)
    assert not (look_up(table, others) == values).any()


def test_a_table_looks_random_whatever_its_keys() -> None:
    """Half of the bits are set, in words that a key determines and in others."""
    random = np.random.default_rng(4)
    table = make_table(words(random, 3000), words(random, 3000), random.bytes)
    bits = np.unpackbits(table.words.view(np.uint8))
    assert abs(bits.mean() - 0.5) < 4 * 0.5 / np.sqrt(len(bits)), "four standard deviations"


def test_another_hash_is_tried_when_the_first_one_fails() -> None:
    """Of many small tables some need a second hash; all of them work."""
    salts = set()
    for seed in range(300):
        random = np.random.default_rng(seed)
        keys, values = words(random, 700), words(random, 700)
        table = make_table(keys, values, random.bytes)
        salts.add(table.salt)
        np.testing.assert_array_equal(look_up(table, keys), values)
    assert 0 in salts


def test_equal_keys_are_refused() -> None:
    keys = np.ones((2, WIDTH), np.uint64)
    with pytest.raises(ValueError, match="keys are equal"):
        make_table(keys, keys, bytes)
