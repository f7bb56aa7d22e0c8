"""Commit rounds: update manifests, write-once records, HEAD by compare-and-swap.

    HEAD                                        the last committed round
    runs/<run>/<round>/record                   the committed round; never written twice
    runs/<run>/<round>/candidate                the aggregate, when learners vote on it
    learners/<name>/runs/<run>/<round>/update   a learner's update: its base and its weights
    learners/<name>/runs/<run>/<round>/dropped  why a learner did not take part

Accepted records form one chain by `previous`; a rejected one is attached to it and moves nothing. All bytes are
canonical and contain no times and no random numbers. So a replay of a round, by a retry or by a second engine, writes
the same bytes and finds its work done.
"""

from __future__ import annotations

from fedpipe.errors import (
    ConflictError,
    CorruptError,
    NotFoundError,
    RoundError,
)
from fedpipe.rounds.manifests import Head, Record, Ref
from fedpipe.store import Store, keys
from fedpipe.store.objects import decode, digest_of, encode, find, publish
from fedpipe.weights import Layout, read_layout

_HEAD_TRIES = 50


def read_head(store: Store) -> tuple[Head, str] | None:
    """Return HEAD and its version token; None before the first commit. Raises CorruptError."""
    try:
        blob = store.read(keys.HEAD)
    except NotFoundError:
        return None
    return decode(blob.data, Head, where=f"{store.uri}/{keys.HEAD}"), blob.version


def read_record(store: Store, run: str, number: int) -> Record | None:
    """Return the record of a round; None when the round is not committed. Raises CorruptError."""
    key = keys.record(run, number)
    record = find(store, key, Record)
    if record is not None and (record.run, record.round) != (run, number):
        raise CorruptError(f"is the record of run {record.run!r}, round {record.round}", where=f"{store.uri}/{key}")
    return record


def commit(store: Store, record: Record) -> Record:
    """Commit a round exactly once and return the committed record.

    The record is created; when another engine was first, its record counts. Then HEAD moves from the record's
    `previous` to it, unless the round was rejected. Both writes may be repeated after a crash at any point.

    Raises:
        ConflictError: HEAD has moved along another chain.
    """
    if not store.create(keys.record(record.run, record.round), encode(record)):
        found = read_record(store, record.run, record.round)
        if found is None:
            raise ConflictError(f"the record of round {record.round} was removed while it was read")
        record = found
    _advance(store, record)
    return record


def _advance(store: Store, record: Record) -> None:
    """Move HEAD to an accepted record; a rejected one only has to be attached to HEAD's chain."""
    head = Head(run=record.run, round=record.round, record=record.ref.record, weights=record.weights)
    for _ in range(_HEAD_TRIES):
        current = read_head(store)
        if current is None:
            if record.previous is not None:
                raise ConflictError("HEAD is missing although rounds were committed", where=store.uri)
            if store.create(keys.HEAD, encode(head)):
                return
        elif current[0].ref == record.previous:
            if not record.accepted or store.swap(keys.HEAD, encode(head), current[1]):
                return
        elif record.parent is not None and precedes(store, record.parent, current[0].ref):
            return
        else:
            raise ConflictError(
                f"HEAD is at round {current[0].round} of run {current[0].run!r}, which does not follow from round "
                f"{record.round} of run {record.run!r}",
                where=f"{store.uri}/{keys.HEAD}",
                remedy="Two runs of one federation ran at the same time. Start this one again under another name.",
            )
    raise ConflictError("HEAD moved at every try", where=f"{store.uri}/{keys.HEAD}")


def precedes(store: Store, earlier: Ref, later: Ref) -> bool:
    """Return whether the chain that ends in `later` holds `earlier`."""
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
    """Return the committed records of a run, from round 0 on. Raises CorruptError when the chain is broken."""
    records: list[Record] = []
    while (record := read_record(store, run, len(records))) is not None:
        if records and record.previous != records[-1].parent:
            raise CorruptError(f"round {record.round} does not follow round {record.round - 1}", where=store.uri)
        records.append(record)
    return records


def propose_candidate(store: Store, record: Record) -> Record:
    """Write the record that the round gets if the learners accept it; return the stored one, the first."""
    return publish(store, keys.candidate(record.run, record.round), record)


def read_candidate(store: Store, run: str, number: int) -> Record | None:
    """Return the candidate of a round of averaging; None when nothing is aggregated yet. Raises CorruptError."""
    return find(store, keys.candidate(run, number), Record)


def is_aggregated(store: Store, run: str, number: int) -> bool:
    """Return whether a round has an aggregate: it is committed, or put to the vote."""
    return any(store.size(key(run, number)) is not None for key in (keys.record, keys.candidate))


def begun_from(store: Store, run: str, number: int, base: str) -> Record:
    """Return the record on which a round builds. Raises RoundError when the round before ended with other weights."""
    previous = read_record(store, run, number - 1)
    if previous is None or previous.weights != base:
        raise RoundError(f"round {number} cannot begin with {base}: round {number - 1} ended with other weights")
    return previous


def record_layout(store: Store, record: Record) -> Layout:
    """Read the layout of a record's weights from their first bytes. Raises CorruptError when it is not the run's."""
    key = keys.content(record.weights)
    size = store.size(key)
    if size is None:
        raise CorruptError("the global weights are missing", where=f"{store.uri}/{key}")
    layout = read_layout(lambda start, length: store.read_range(key, start, length), size)
    if digest_of(store.read_range(key, 0, layout.data_start)) != record.layout:
        raise CorruptError("the global weights have another layout than the run", where=f"{store.uri}/{key}")
    return layout
