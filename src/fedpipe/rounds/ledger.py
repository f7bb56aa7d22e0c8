"""A learner's privacy ledger: its private trainings over all runs, as a chain that the learner signs.

    learners/<name>/ledger/<number>     one private training, written once, before its update is released

Entries are numbered without a gap. Each has the digest of the one before, and the learner's signature if it has a key.
An update names the last entry, its head. So a rewritten or shorter ledger contradicts an update, a record, or the mark
that came with the key. The learner looks for such marks before it trains.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar, NamedTuple
from weakref import WeakKeyDictionary

from msgspec import Struct
from msgspec.structs import replace

from fedpipe.errors import CorruptError
from fedpipe.federation.names import Name
from fedpipe.identity.signing import Signature, find_mark, find_signer, verify
from fedpipe.identity.statements import content_of
from fedpipe.rounds.accounting import TrainingEvent
from fedpipe.rounds.history import read_record
from fedpipe.rounds.manifests import Record, Spent, Update
from fedpipe.rounds.received import MANIFEST
from fedpipe.rounds.secure_lists import own_masked
from fedpipe.rounds.updates import own_update
from fedpipe.store import Store, keys
from fedpipe.store.objects import Digest, digest_of, encode, find

_CHAINED = 2
"""The format of entries that name the one before."""


class Entry(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One private training that may have been released, and the budget spent up to and including it.

    `previous` is the head of the ledger before it; None for the first entry, and in format 1.
    """

    FORMATS: ClassVar = (1, _CHAINED)
    format: int = _CHAINED
    learner: Name
    run: Name
    round: int
    weights: Digest
    event: TrainingEvent
    spent: Spent
    previous: Digest | None = None
    signature: Signature | None = None

    @property
    def head(self) -> str:
        """The digest of the entry without its signature: the head of the ledger that ends here."""
        return digest_of(encode(replace(self, signature=None)))


class Mark(NamedTuple):
    """A state that the ledger had: its number of entries, its head if that is known, and who says so."""

    events: int
    head: str | None
    where: str


class Ledger:
    """Reads and checks a learner's ledger.

    Args:
        store: the federation's store.
        learner: the learner's name.
        marks: states that the ledger had; it must continue each of them.
    """

    def __init__(self, store: Store, learner: str, marks: Sequence[Mark] = ()) -> None:
        self._store, self._learner = store, learner
        signer, given = find_signer(learner), find_mark(learner)
        self._key = signer.public if signer else None
        self._trusted = given[0] if given else 0
        own = [Mark(*given, "the learner's key")] if given else []
        self._marks = [*own, *marks, *_remembered(store, learner)]
        self._entries: list[Entry] = []

    def entries(self) -> list[Entry]:
        """Return the entries so far. Raises CorruptError: a learner does not train without its ledger."""
        while True:
            number = len(self._entries) + 1
            entry = find(self._store, keys.ledger(self._learner, number), Entry, limit=MANIFEST)
            if entry is None:
                break
            if flaw := self._flaw(entry, number):
                raise self._error(f"entry {number} of the privacy ledger of {self._learner} {flaw}")
            self._entries.append(entry)
        for mark in self._marks:
            self._check(mark)
        if self._entries:
            _remember(self._store, self._learner, Mark(len(self._entries), self.head, "an earlier look at it"))
        return list(self._entries)

    @property
    def head(self) -> str | None:
        """The digest of the last entry that was read; None without entries."""
        return self._entries[-1].head if self._entries else None

    def _flaw(self, entry: Entry, number: int) -> str:
        if entry.learner != self._learner or entry.spent.events != number:
            return "belongs elsewhere"
        old = entry.format < _CHAINED and all(other.format < _CHAINED for other in self._entries)
        if entry.previous != self.head and not old:
            return "does not follow the one before"
        if self._key is None or number <= self._trusted:
            return ""
        if entry.signature is None:
            return "is not signed"
        signed = verify(self._key, content_of(entry, entry.signature), entry.signature.value)
        return "" if signed and entry.signature.key == self._key else "is not signed with this learner's key"

    def _check(self, mark: Mark) -> None:
        if len(self._entries) < mark.events:
            count = len(self._entries)
            raise self._error(
                f"the privacy ledger of {self._learner} has {count} entries, but {mark.where} names {mark.events}"
            )
        if mark.head and mark.events and self._entries[mark.events - 1].head != mark.head:
            raise self._error(
                f"entry {mark.events} of the privacy ledger of {self._learner} is not the one that {mark.where} names"
            )

    def _error(self, what: str) -> CorruptError:
        return CorruptError(
            what,
            where=f"{self._store.uri}/{keys.learner_folder(self._learner)}ledger",
            remedy="Restore the ledger from a copy. If all entries are right and only lack the signature, "
            f"run `fedpipe rotate {self._learner}`.",
        )


def state_of_ledger(store: Store, learner: str) -> tuple[int, str]:
    """Return the number of entries and the head of a ledger as it is, without a check; 0 and nothing without one.

    Raises:
        CorruptError: an entry cannot be read.
    """
    count, head = 0, ""
    while entry := find(store, keys.ledger(learner, count + 1), Entry, limit=MANIFEST):
        count, head = count + 1, entry.head
    return count, head


_MEMORY: WeakKeyDictionary[Store, dict[str, Mark]] = WeakKeyDictionary()
"""The ledgers that this process has read, for each open store: a session's process remembers them."""


def _remembered(store: Store, learner: str) -> list[Mark]:
    found = _MEMORY.get(store, {}).get(learner)
    return [found] if found else []


def _remember(store: Store, learner: str, mark: Mark) -> None:
    _MEMORY.setdefault(store, {})[learner] = mark


def find_marks(store: Store, run: str, number: int, learner: str) -> list[Mark]:
    """Return the last states of a learner's ledger that its updates and the records of rounds name.

    Args:
        store: the federation's store.
        run: the run's name.
        number: the round that the learner is asked to train in.
        learner: its name.
    """
    found = []
    for earlier in range(number - 1, 0, -1):
        update = own_update(store, learner, run, earlier)
        mark = _mark_of(update, "its update") if update else _mark_of_masked(store, learner, run, earlier)
        if mark is not None:
            found.append(mark)
            break
    recorded = (mark for record in _back(store, run, number) for mark in _marks_in(store, record, learner))
    if last := next(recorded, None):
        found.append(last)
    return found


def _back(store: Store, run: str, number: int) -> Iterator[Record]:
    """Yield the records before a round, the last one first, over all runs of the chain."""
    record = None
    while True:
        for earlier in range(number - 1, -1, -1):
            record = read_record(store, run, earlier)
            if record is not None:
                yield record
        if record is None or record.previous is None:
            return
        run, number, record = record.previous.run, record.previous.round + 1, None


def _marks_in(store: Store, record: Record, learner: str) -> Iterator[Mark]:
    if record.secure and learner in record.contributors:
        mark = _mark_of_masked(store, learner, record.run, record.round)
        yield from (mark,) if mark else ()
    where = f"the record of round {record.round} of run {record.run}"
    for update in record.updates:
        if update.learner == learner and (mark := _mark_of(update, where)):
            yield mark
    for dropped in record.dropped:
        if dropped.learner == learner and dropped.spent:
            yield Mark(dropped.spent.events, None, where)


def _mark_of_masked(store: Store, learner: str, run: str, number: int) -> Mark | None:
    masked = own_masked(store, learner, run, number)
    where = f"its masked vector of round {number} of run {run}"
    return Mark(masked.trainings, masked.ledger, where) if masked and masked.trainings else None


def _mark_of(update: Update, where: str) -> Mark | None:
    return Mark(update.spent.events, update.ledger, where) if update.spent else None
