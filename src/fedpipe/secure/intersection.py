"""Private set intersection of two or more sets of ids, without store and clock.

    leader                                   each follower, with a secret exponent k
    H(x)^a for each id x         ->          H(x)^(ak)
    H(x)^k, by the inverse of a  <-
    looks its ids up             <-          a table: H(y)^k -> a share of zero, for each id y
    a mark of each common id     ->          finds its own ids by their marks

The first two lines are an oblivious pseudorandom function: the leader learns its value for its own ids only, and the
follower learns nothing. It is one of Diffie-Hellman kind (Meadows 1986; Huberman, Franklin and Hogg 1999; Jarecki,
Kiayias and Krawczyk 2014). The shares of zero combine several followers (Kolesnikov, Matania, Pinkas, Rosulek and Trieu
2017). Each two parties agree on a seed. The share of an id follows from the seeds of a party, so the shares of all
parties add up to zero. A table gives noise for an id that its follower lacks. So the leader learns which of its ids are
common to all, and not which follower lacks the others.

Parties are semi-honest: they follow these steps, and try to learn from what they receive.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from fedpipe.errors import DroppedError
from fedpipe.secure.cores import Cores
from fedpipe.secure.curve import Points, inverse_pair, scalar_of
from fedpipe.secure.retrieval import WIDTH, Indices, Table, Words, look_up, make_table

Ids = Sequence[bytes]
_MARKS = 3
"""Words of 128 bits that follow from a value of the function: a key of the table, a pad, and the mark of the id."""


class Randomness:
    """Random bytes that follow from a secret: a party that was killed makes the same parcels again."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def take(self, purpose: str, count: int) -> bytes:
        """Return so many bytes for a purpose."""
        return hashlib.shake_256(self._secret + purpose.encode()).digest(count)


class Leader:
    """The party that looks its ids up.

    Args:
        ids: different ones.
        seeds: those that it shares with each follower.
        random: of this party.
        about: the occasion, to which the hash belongs.
        cores: multiply points; by default this process.
    """

    def __init__(
        self, ids: Ids, seeds: Mapping[str, bytes], random: Randomness, about: str, cores: Cores | None = None
    ) -> None:  # fmt: skip
        self._ids, self._about, self._cores = ids, about, cores or Cores(1)
        self._blind, self._unblind = inverse_pair(lambda number: random.take(f"blind {number}", 32))
        self._left = _shares(ids, seeds.values())
        self._marks: dict[str, Words] = {}

    def blinded(self, first: int, last: int) -> Points:
        """Return the blinded hashes of some of its ids, for a follower to evaluate."""
        return self._cores.blinded(self._ids[first:last], self._about, self._blind)

    def unblinded(self, evaluated: Points) -> Points:
        """Return the values of the function, from what a follower made of a block. Raises DroppedError."""
        return self._cores.multiplied(evaluated, self._unblind)

    def look_up(self, follower: str, values: Points, table: Table) -> None:
        """Look all ids up in a follower's table.

        Args:
            follower: its name.
            values: of its function, for all ids.
            table: its table.
        """
        keys, pads, self._marks[follower] = _words(self._ids, values)
        self._left ^= look_up(table, keys) ^ pads

    def common(self) -> Indices:
        """Return the places of the ids that are common to all, once all tables were used."""
        return np.flatnonzero(~self._left.any(axis=1))

    def marks(self, follower: str) -> Words:
        """Return the marks by which a follower finds the common ids, in an order that says nothing."""
        chosen = self._marks[follower][self.common()]
        return chosen[np.lexsort((chosen[:, 1], chosen[:, 0]))]


class Follower:
    """A party that lets the leader look its ids up.

    Args:
        ids: different ones.
        seeds: those that it shares with each other party.
        random: of this party.
        about: the occasion, to which the hash belongs.
        cores: multiply points; by default this process.
    """

    def __init__(
        self, ids: Ids, seeds: Mapping[str, bytes], random: Randomness, about: str, cores: Cores | None = None
    ) -> None:  # fmt: skip
        self._ids, self._random, self._seeds, self._cores = ids, random, seeds, cores or Cores(1)
        self._exponent = scalar_of(random.take("exponent", 32))
        points = self._cores.blinded(ids, about, self._exponent)
        self._keys, self._pads, self._marks = _words(ids, points)

    def evaluate(self, blinded: Points) -> Points:
        """Return what the leader asks for. Raises DroppedError for a point that is not a valid one."""
        return self._cores.multiplied(blinded, self._exponent)

    def table(self) -> Table:
        """Return the table of its ids."""
        values = _shares(self._ids, self._seeds.values()) ^ self._pads
        return make_table(self._keys, values, lambda count: self._random.take("table", count))

    def common(self, marks: Words) -> Indices:
        """Return the places of the ids with these marks. Raises DroppedError when one has no such id."""
        own = {mark.tobytes(): place for place, mark in enumerate(self._marks)}
        found = [own.get(mark.tobytes(), -1) for mark in marks]
        if -1 in found or len(set(found)) < len(found):
            raise DroppedError("the leader names common ids that are not among this party's", lasting=True)
        return np.sort(np.array(found, np.int64))


def _shares(ids: Ids, seeds: Iterable[bytes]) -> Words:
    """Return a party's shares of zero: those of all parties add up to zero, for each id."""
    found = np.zeros((len(ids), WIDTH), np.uint64)
    for seed in seeds:
        found ^= _numbers((hashlib.blake2b(one, digest_size=16, key=seed).digest() for one in ids), WIDTH)
    return found


def _words(ids: Ids, points: Points) -> tuple[Words, Words, Words]:
    """Return the keys, pads and marks of ids, from the values of the function."""
    data = points.tobytes()
    texts = (data[32 * place : 32 * place + 32] + one for place, one in enumerate(ids))
    hashes = (hashlib.blake2b(text, digest_size=48, person=b"fedpipe ids").digest() for text in texts)
    found = _numbers(hashes, _MARKS * WIDTH)
    keys, pads, marks = np.split(found, _MARKS, axis=1)
    return np.ascontiguousarray(keys), pads, np.ascontiguousarray(marks)


def _numbers(hashes: Iterable[bytes], width: int) -> Words:
    return np.frombuffer(b"".join(hashes), "<u8").astype(np.uint64).reshape(-1, width)
