"""The parties of a cut network find their common rows, before the first round: the intersection of ids by parcels.

Each party sends the others its number of rows. Then the label party leads (`fedpipe.secure.intersection`). It sends
its blinded ids in blocks, and uses the answers as they come, so that both sides compute at once.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from fedpipe.errors import DroppedError
from fedpipe.identity.sealing import exchange_from
from fedpipe.secure.cores import Cores
from fedpipe.secure.intersection import Follower, Ids, Leader, Randomness
from fedpipe.secure.retrieval import WIDTH, Indices, Table, third_of
from fedpipe.sessions.exchange import Conversation, numbers
from fedpipe.weights import Array

ALIGN = "align"
"""The name of the phase."""
ALIGN_SECONDS = 1800.0
"""Seconds that parties have at least: the quorum's deadline is one of trainings."""
BLOCK = 2**15
"""Ids, or words of a table, in a parcel."""
MOST_ROWS = 10**9
POINT = 32


class Found(NamedTuple):
    """The places of a party's common rows, and the number of rows of each other party."""

    places: Indices
    others: dict[str, int]


Finding = Generator[float, None, Found]


class Alignment:
    """A party in one attempt to find the common rows.

    Args:
        talk: with the other parties.
        party: its name.
        parties: all names.
        leader: the label party.
        ids: of its rows, in their order; different ones.
        secret: from which its random numbers follow.
        about: the occasion, which the messages of others do not fit.
    """

    def __init__(
        self, talk: Conversation, party: str, parties: Sequence[str], leader: str, ids: Ids, secret: bytes, about: str
    ) -> None:  # fmt: skip
        self._talk, self._party, self._leader, self._ids, self._about = talk, party, leader, ids, about
        self._others = [name for name in parties if name != party]
        self._random = Randomness(secret)
        self._rows: dict[str, int] = {}

    def run(self) -> Finding:
        """Find the common rows; yield seconds to wait.

        Raises:
            DroppedError: why the party cannot continue, or why another cannot.
        """
        yield from self._talk.meet(self._others)
        seeds = yield from self._introduced()
        with Cores() as cores:
            play = self._led if self._party == self._leader else self._followed
            places = yield from play(seeds, cores)
        return Found(places, self._rows)

    def _introduced(self) -> Generator[float, None, dict[str, bytes]]:
        """Send the others the number of rows, and agree on a seed with each."""
        exchange = exchange_from(self._random.take("key", 32), self._about)
        key = np.frombuffer(exchange.public, np.uint8)
        for name in self._others:
            self._talk.send_as_is("ids", 0, name, {"key": key, "rows": numbers(len(self._ids))})
        seeds = {}
        form = {"key": np.zeros(32, np.uint8), "rows": numbers(0)}
        for name in self._others:
            found = yield from self._talk.receive_as_is("ids", 0, name, form)
            rows = self._rows[name] = int(found["rows"][0])
            if not 0 < rows <= MOST_ROWS:
                raise DroppedError(f"{name} states that it has {rows} rows", lasting=True)
            seeds[name] = exchange.agree(found["key"].tobytes())
        return seeds

    def _led(self, seeds: Mapping[str, bytes], cores: Cores) -> Generator[float, None, Indices]:
        leader = Leader(self._ids, seeds, self._random, self._about, cores)
        for number, (first, last) in _blocks(len(self._ids)):
            points = leader.blinded(first, last)
            for name in self._others:
                self._talk.send_as_is("blinded", number, name, {"points": points})
        for name in self._others:
            values = []
            for number, (first, last) in _blocks(len(self._ids)):
                found = yield from self._talk.receive_as_is("evaluated", number, name, _points(last - first))
                values.append(leader.unblinded(found["points"]))
            table = yield from self._table(name)
            leader.look_up(name, np.concatenate(values), table)
        places = leader.common()
        for name in self._others:
            self._talk.send_as_is("common", 0, name, {"rows": numbers(len(places))})
            marks = leader.marks(name)
            for number, (first, last) in _blocks(len(marks)):
                self._talk.send_as_is("marks", number, name, {"words": marks[first:last]})
        return places

    def _table(self, name: str) -> Generator[float, None, Table]:
        words, salt = [], 0
        for number, (first, last) in _blocks(3 * third_of(self._rows[name])):
            form = {"words": _words(last - first), "salt": numbers(0)}
            found = yield from self._talk.receive_as_is("table", number, name, form)
            salt = int(found["salt"][0]) % 2**32
            words.append(found["words"])
        return Table(salt, np.concatenate(words))

    def _followed(self, seeds: Mapping[str, bytes], cores: Cores) -> Generator[float, None, Indices]:
        follower = Follower(self._ids, seeds, self._random, self._about, cores)
        for number, (first, last) in _blocks(self._rows[self._leader]):
            found = yield from self._talk.receive_as_is("blinded", number, self._leader, _points(last - first))
            self._talk.send_as_is("evaluated", number, self._leader, {"points": follower.evaluate(found["points"])})
        table = follower.table()
        for number, (first, last) in _blocks(len(table.words)):
            part = {"words": table.words[first:last], "salt": numbers(table.salt)}
            self._talk.send_as_is("table", number, self._leader, part)
        found = yield from self._talk.receive_as_is("common", 0, self._leader, {"rows": numbers(0)})
        count, most = int(found["rows"][0]), min(len(self._ids), self._rows[self._leader])
        if not 0 <= count <= most:
            raise DroppedError(f"{self._leader} names {count} common rows, of at most {most}", lasting=True)
        marks = [_words(0)]
        for number, (first, last) in _blocks(count):
            found = yield from self._talk.receive_as_is("marks", number, self._leader, {"words": _words(last - first)})
            marks.append(found["words"])
        return follower.common(np.concatenate(marks))


def _blocks(count: int) -> Iterator[tuple[int, tuple[int, int]]]:
    """Yield the numbers of blocks, and where each begins and ends."""
    return enumerate((first, min(first + BLOCK, count)) for first in range(0, count, BLOCK))


def _points(count: int) -> dict[str, Array]:
    return {"points": np.broadcast_to(np.zeros((), np.uint8), (count, POINT))}


def _words(count: int) -> Any:
    return np.broadcast_to(np.zeros((), np.uint64), (count, WIDTH))
