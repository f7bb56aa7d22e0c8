"""How a round is committed: update manifests, write-once records, HEAD by compare-and-swap.

    HEAD                                        the last committed round
    runs/<run>/<round>/record                   what was committed; never written twice
    runs/<run>/<round>/candidate                what was aggregated, when learners vote on it
    learners/<name>/runs/<run>/<round>/update   who made what from which base
    learners/<name>/runs/<run>/<round>/dropped  why a learner did not take part

Accepted records form one chain by `previous`; a rejected one hangs on it and moves nothing. All bytes are canonical
and hold no clock and no chance, so that a replay of a round, by a retry or by a second engine, writes the same bytes
and finds its work done.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import msgspec

from fedpipe.enrolment import read_enrolled
from fedpipe.errors import (
    ConflictError,
    CorruptError,
    DroppedError,
    NotFoundError,
    QuorumError,
    RoundError,
    TooLargeError,
    WeightsError,
)
from fedpipe.manifests import Dropped, Head, Record, Ref, Tested, Update
from fedpipe.objects import Kind, decode, digest_of, encode, fetch_file, find, key_of, publish
from fedpipe.store import Store
from fedpipe.weights import Layout, check_finite, fetch_from, read_layout, stream

T = TypeVar("T")
MANIFEST = 2**16
"""Largest manifest of a learner, in bytes, that is read."""
_HEAD_TRIES = 50


def record_key(run: str, number: int) -> str:
    """The key of a round's record."""
    return f"runs/{run}/{number}/record"


def learner_key(learner: str, run: str, number: int, name: str) -> str:
    """A key in a learner's own part of a round: `update` or `dropped`."""
    return f"learners/{learner}/runs/{run}/{number}/{name}"


def read_head(store: Store) -> tuple[Head, str] | None:
    """HEAD and its version token; None before the first commit. Raises CorruptError."""
    try:
        blob = store.read("HEAD")
    except NotFoundError:
        return None
    return decode(blob.data, Head, where=f"{store.uri}/HEAD"), blob.version


def read_record(store: Store, run: str, number: int) -> Record | None:
    """The record of a round; None when the round is not committed. Raises CorruptError."""
    key = record_key(run, number)
    record = find(store, key, Record)
    if record is not None and (record.run, record.round) != (run, number):
        raise CorruptError(f"is the record of run {record.run!r}, round {record.round}", where=f"{store.uri}/{key}")
    return record


def commit(store: Store, record: Record) -> Record:
    """Commits a round exactly once and returns what was committed.

    The record is created; when another engine was first, its record counts. Then HEAD moves from the record's
    `previous` to it, unless the round was rejected. Both acts may be repeated after a crash at any point.

    Raises:
        ConflictError: HEAD went on along another line.
    """
    if not store.create(record_key(record.run, record.round), encode(record)):
        found = read_record(store, record.run, record.round)
        if found is None:
            raise ConflictError(f"the record of round {record.round} was removed while it was read")
        record = found
    _advance(store, record)
    return record


def _advance(store: Store, record: Record) -> None:
    """Moves HEAD to an accepted record; a rejected one only has to hang on HEAD's chain."""
    head = Head(run=record.run, round=record.round, record=record.ref.record, weights=record.weights)
    for _ in range(_HEAD_TRIES):
        current = read_head(store)
        if current is None:
            if record.previous is not None:
                raise ConflictError("HEAD is missing although rounds were committed", where=store.uri)
            if store.create("HEAD", encode(head)):
                return
        elif current[0].ref == record.previous:
            if not record.accepted or store.swap("HEAD", encode(head), current[1]):
                return
        elif record.parent is not None and precedes(store, record.parent, current[0].ref):
            return
        else:
            raise ConflictError(
                f"HEAD is at round {current[0].round} of run {current[0].run!r}, which does not follow from round "
                f"{record.round} of run {record.run!r}",
                where=f"{store.uri}/HEAD",
                remedy="Two runs of one federation went on at the same time; start this one anew under another name.",
            )
    raise ConflictError("HEAD moved at every try", where=f"{store.uri}/HEAD")


def precedes(store: Store, earlier: Ref, later: Ref) -> bool:
    """True when the chain that ends in `later` holds `earlier`."""
    cursor: Ref | None = later
    while cursor is not None:
        if cursor == earlier:
            return True
        if cursor.run == earlier.run and cursor.round <= earlier.round:
            return False
        record = read_record(store, cursor.run, cursor.round)
        if record is None or record.ref != cursor:
            raise CorruptError(f"the chain is broken at round {cursor.round} of run {cursor.run!r}", where=store.uri)
        cursor = record.previous
    return False


def history(store: Store, run: str) -> list[Record]:
    """The committed records of a run, from round 0 on. Raises CorruptError when the chain is broken."""
    records: list[Record] = []
    while (record := read_record(store, run, len(records))) is not None:
        if records and record.previous != records[-1].parent:
            raise CorruptError(f"round {record.round} does not follow round {record.round - 1}", where=store.uri)
        records.append(record)
    return records


def propose_candidate(store: Store, record: Record) -> Record:
    """Writes down what becomes the round's record if the learners accept it; returns the one that counts."""
    return publish(store, _candidate_key(record.run, record.round), record)


def read_candidate(store: Store, run: str, number: int) -> Record | None:
    """What the learners vote on in a round of averaging; None when nothing is aggregated yet. Raises CorruptError."""
    return find(store, _candidate_key(run, number), Record)


def _candidate_key(run: str, number: int) -> str:
    return f"runs/{run}/{number}/candidate"


def begun_from(store: Store, run: str, number: int, base: str) -> Record:
    """The record on which a round builds. Raises RoundError when the round before ended with other weights."""
    previous = read_record(store, run, number - 1)
    if previous is None or previous.weights != base:
        raise RoundError(f"round {number} cannot begin with {base}: it is not what round {number - 1} ended with")
    return previous


def layout_of(store: Store, record: Record) -> Layout:
    """The layout of a record's weights, read from their first bytes. Raises CorruptError when it is not the run's."""
    key = key_of(record.weights)
    size = store.size(key)
    if size is None:
        raise CorruptError("the global weights are missing", where=f"{store.uri}/{key}")
    layout = read_layout(lambda start, length: store.read_range(key, start, length), size)
    if digest_of(store.read_range(key, 0, layout.data_start)) != record.layout:
        raise CorruptError("the global weights have another layout than the run", where=f"{store.uri}/{key}")
    return layout


def fetch_weights(
    store: Store, digest: str, layout: Layout, path: Path, owner: str = "", kind: Kind = "objects"
) -> None:
    """Writes weights of somebody else to a file, once their size is the model's, and checks them tensor by tensor.

    Args:
        store: the federation's store.
        digest: of the weights.
        layout: of the model.
        path: where they go.
        owner: the learner that made them; empty for aggregated weights.
        kind: where that learner keeps them.

    Raises:
        WeightsError: they cannot be the model's, or are not finite.
        CorruptError: the bytes have another digest.
        NotFoundError: they are missing.
    """
    size = store.size(key_of(digest, owner, kind))
    if size is None:
        raise NotFoundError("the weights are not in the store")
    if size != layout.size:
        raise WeightsError(f"the update does not fit the model: it has {size} bytes where the model has {layout.size}")
    fetch_file(store, digest, path, owner, kind)
    with path.open("rb") as file:
        fetch = fetch_from(file)
        if difference := layout.difference(read_layout(fetch, layout.size)):
            raise WeightsError(f"the update does not fit the model: {difference}")
        for name, array in stream(fetch, layout.size):
            check_finite({name: array})


def publish_update(store: Store, update: Update) -> Update:
    """Writes an update's manifest once and returns the one that counts."""
    return publish(store, learner_key(update.learner, update.run, update.round, "update"), update, limit=MANIFEST)


def find_update(store: Store, learner: str, run: str, number: int) -> Update | None:
    """A learner's manifest for a round; None when there is none. Raises CorruptError."""
    return find(store, learner_key(learner, run, number, "update"), Update, limit=MANIFEST)


def find_part(store: Store, learner: str, run: str, number: int) -> Update | Dropped | None:
    """What a learner did in a round that needs no repetition: its update, or its absence once the round is committed.

    A learner that was dropped from a committed round must not train for it again: nobody would take the result, and a
    private one would pay for it.
    """
    if update := find_update(store, learner, run, number):
        return update
    record = read_record(store, run, number)
    return next((d for d in record.dropped if d.learner == learner), None) if record else None


def drop(store: Store, run: str, number: int, dropped: Dropped, *, name: str = "dropped") -> None:
    """Leaves the reason why a learner does not take part (`dropped`) or does not vote (`absent`)."""
    manifest = msgspec.structs.replace(dropped, why=dropped.why[:500])
    store.replace(learner_key(dropped.learner, run, number, name), encode(manifest))


def find_dropped(store: Store, learner: str, run: str, number: int, *, name: str = "dropped") -> Dropped | None:
    """The reason that a learner left, cleaned; None when it left none that can be read."""
    try:
        found = find(store, learner_key(learner, run, number, name), Dropped, limit=MANIFEST)
    except (CorruptError, TooLargeError):
        return None
    if found is None:
        return None
    return msgspec.structs.replace(found, learner=learner, why=cleaned(found.why) or "no reason given")


def cleaned(text: str) -> str:
    """Text that a learner had a hand in, short and without control characters."""
    return "".join(c if c.isprintable() else " " for c in text[:500])


def check_update(update: Update, *, federation: str, run: str, number: int, learner: str, base: str) -> None:
    """Checks that a manifest is of this round and says nothing impossible.

    Raises:
        DroppedError: the reason why the learner is dropped.
    """
    expected = {"federation": federation, "run": run, "round": number, "learner": learner, "base": base}
    for name, value in expected.items():
        if getattr(update, name) != value:
            raise DroppedError(f"the update's {name} is {getattr(update, name)}, the round's is {value}")
    numbers = [*update.metrics.values(), *(update.tested.metrics.values() if update.tested else ())]
    if not all(math.isfinite(v) for v in numbers):
        raise DroppedError("a metric of the update is NaN or infinite")


class Roll(NamedTuple):
    """Whom a round asks, as its coordinator knows them.

    `asked` are those whose part counts; `excused` says of others, or of some of them, why theirs does not: they are
    late, away or not needed. `unheard` says of a proposer why its proposal is not put to the vote. `attempt` counts
    how often the round was opened.
    """

    asked: tuple[str, ...]
    excused: Mapping[str, str] = {}
    unheard: Mapping[str, str] = {}
    attempt: int = 1

    def note(self, name: str) -> str:
        """Where a learner leaves why it takes no part in this attempt: under a `name` of its own from the second on."""
        return name if self.attempt == 1 else f"{name}-{self.attempt}"


ANY_ROLL = Roll(())
"""Where nobody was asked by name: the steps of a pipeline."""


def collect(
    store: Store, *, federation: str, run: str, number: int, base: str, roll: Roll
) -> tuple[list[Update], list[Dropped]]:
    """The valid updates of a round and the learners without one, both sorted by name."""

    enrolled = read_enrolled(store)

    def read(learner: str) -> Update | None:
        update = find_update(store, learner, run, number)
        if update is not None:
            check_update(update, federation=federation, run=run, number=number, learner=learner, base=base)
            enrolled.check(update)
        return update

    return gather(store, run, number, roll, read, name="dropped", otherwise="no update")


def gather(
    store: Store, run: str, number: int, roll: Roll, read: Callable[[str], T | None], *, name: str, otherwise: str,
) -> tuple[list[T], list[Dropped]]:  # fmt: skip
    """What the learners left for a round, and those without it with the reason, both sorted by name.

    Args:
        store: the federation's store.
        run: the run's name.
        number: the round.
        roll: whose part is wanted.
        read: a learner's part, checked; None when there is none. May raise DroppedError, CorruptError, TooLargeError.
        name: where a learner without it leaves its reason: `dropped` or `absent`.
        otherwise: the reason of one that left none.
    """
    found: list[T] = []
    missing: list[Dropped] = []
    for learner in sorted({*roll.asked, *roll.excused}):
        if why := roll.excused.get(learner):
            missing.append(Dropped(learner=learner, why=why))
            continue
        try:
            part = read(learner)
        except (DroppedError, CorruptError, TooLargeError) as error:
            missing.append(Dropped(learner=learner, why=cleaned(error.what)))
            continue
        if part is not None:
            found.append(part)
        else:
            left = find_dropped(store, learner, run, number, name=roll.note(name))
            missing.append(left or Dropped(learner=learner, why=otherwise))
    return found, missing


def check_quorum(number: int, taking_part: int, dropped: list[Dropped], minimum: int) -> None:
    """Raises QuorumError, naming who is missing and why, when fewer than `minimum` learners take part."""
    if taking_part >= minimum:
        return
    missing = "; ".join(f"{d.learner}: {d.why}" for d in dropped) or "nobody was dropped"
    raise QuorumError(
        f"round {number}: {taking_part} of {taking_part + len(dropped)} learners took part, the quorum is {minimum} "
        f"({missing})",
        remedy="HEAD stays at the last good round. Mend the learners, or lower quorum.min_learners.",
    )


def mean_metrics(updates: list[Update]) -> dict[str, float]:
    """Means of the updates' metrics, weighted by examples: sums first, then divided.

    Only metrics that all have that tell any: a learner that trains privately tells none.
    """
    return _mean_of([u for u in updates if u.metrics])


def mean_tested(tests: Iterable[Tested | None]) -> dict[str, float]:
    """Means of what was tested, weighted by examples; only metrics that all have."""
    return _mean_of([test for test in tests if test])


def _mean_of(measured: Sequence[Update | Tested]) -> dict[str, float]:
    names = set.intersection(*(set(m.metrics) for m in measured)) if measured else set()
    total = sum(m.examples for m in measured)
    return {n: math.fsum(m.metrics[n] * m.examples for m in measured) / total for n in sorted(names)}
