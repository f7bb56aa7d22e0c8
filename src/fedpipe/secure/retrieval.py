"""Oblivious key-value stores: tables that give the value of each of their keys, and noise for any other key.

A table has words of 128 bits. A key has a place in each third of it, and its value is the exclusive or of the three
words there. Words that no key determines are random. So a table does not disclose which keys it has, if their values
look random (Garimella, Pinkas, Rosulek, Trieu and Yanai 2021). The places follow from a hash. The words are found by
removing keys that have a place of their own, again and again (Botelho, Pagh and Ziviani 2007).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint64]
"""Keys, values and tables: rows of WIDTH words of 64 bits."""
Indices = npt.NDArray[np.int64]
WIDTH = 2
_SPACE, _SLACK = 1.3, 32
"""Words of a table for each key, and more words for each third: from 1.23 on, nearly every hash works."""
_TRIES = 64
_ODD = np.array([0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB], np.uint64)


class Table(NamedTuple):
    """A table, and the number of the hash by which its keys are found."""

    salt: int
    words: Words


def third_of(count: int) -> int:
    """Return the words in a third of a table with so many keys.

    >>> third_of(1_000_000)
    433366
    """
    return int(-(-_SPACE * count // 3)) + _SLACK


def make_table(keys: Words, values: Words, random: Callable[[int], bytes]) -> Table:
    """Return a table.

    Args:
        keys: different ones, which look random.
        values: of the keys, which look random too.
        random: returns so many random bytes, for the words that no key determines.

    Raises:
        ValueError: two keys are equal, so no hash gives each a place of its own.
    """
    third = third_of(len(keys))
    words = np.frombuffer(random(3 * third * WIDTH * 8), "<u8").astype(np.uint64).reshape(-1, WIDTH)
    for salt in range(_TRIES):
        places = _places(keys, salt, third)
        steps = list(_steps(places, 3 * third))
        if sum(len(removed) for removed, _ in steps) == len(keys):
            for removed, own in reversed(steps):
                words[own] ^= values[removed] ^ np.bitwise_xor.reduce(words[places[removed]], axis=1)
            return Table(salt, words)
    raise ValueError("keys are equal")


def look_up(table: Table, keys: Words) -> Words:
    """Return the values of keys; noise for those that the table does not have."""
    places = _places(keys, table.salt, len(table.words) // 3)
    found: Words = np.bitwise_xor.reduce(table.words[places], axis=1)
    return found


def _places(keys: Words, salt: int, third: int) -> Indices:
    """Return the place of each key in each third of a table."""
    parts = np.stack([keys[:, 0], keys[:, 1], keys[:, 0] ^ (keys[:, 1] >> np.uint64(1))], axis=1)
    mixed = parts + _ODD * np.uint64(2 * salt + 1)
    for shift, factor in ((30, _ODD[1]), (27, _ODD[2])):  # as in splitmix64
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * factor
    high = (mixed ^ (mixed >> np.uint64(31))) >> np.uint64(32)
    offsets = np.arange(3, dtype=np.int64) * third
    found: Indices = (high * np.uint64(third) >> np.uint64(32)).astype(np.int64) + offsets
    return found


def _steps(places: Indices, size: int) -> Iterator[tuple[Indices, Indices]]:
    """Yield keys that have a place which no other remaining key has, and that place; continue without them."""
    flat = places.ravel()
    counts = np.bincount(flat, minlength=size)
    owners = np.bincount(flat, weights=np.repeat(np.arange(len(places)), 3), minlength=size).astype(np.int64)
    alone = np.flatnonzero(counts == 1)
    while len(alone):
        removed, first = np.unique(owners[alone], return_index=True)
        yield removed, alone[first]
        touched = places[removed].ravel()
        np.subtract.at(counts, touched, 1)
        np.subtract.at(owners, touched, np.repeat(removed, 3))
        near = np.unique(touched)
        alone = near[counts[near] == 1]
