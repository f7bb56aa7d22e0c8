"""Commit rounds: update manifests, write-once records, HEAD by compare-and-swap.

    HEAD                                        the last accepted round, whose weights are trained
    runs/<run>/<round>/record                   the committed round; never written twice, but see below
    runs/<run>/<round>/candidate                the aggregate, when learners vote on it
    learners/<name>/runs/<run>/<round>/update   a learner's update: its base and its weights
    learners/<name>/runs/<run>/<round>/dropped  why a learner did not take part

Accepted records form one chain by `previous`; a rejected one is attached to it and moves nothing. All bytes are
canonical and contain no times and no random numbers. So a replay of a round, by a retry or by a second engine, writes
the same bytes and finds its work done.

Round 0 has untrained weights, or those of HEAD. It is recorded, but HEAD moves only from round 1 on. Until round 1 is
recorded, another try of the run may replace round 0 (`supersede`), for instance with a mended model. The record of
round 1 is written once, so it settles which round 0 the run has.
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
from fedpipe.store.objects import LOST, decode, digest_of, encode, find, get_bytes, put_bytes
from fedpipe.weights import Layout, read_layout

_HEAD_TRIES = 50


def read_head(store: Store) -> tuple[Head, str] | None:
    """Return HEAD and its version token; None before the first commit. Raises CorruptError."""
    try:
        blob = store.read(keys.HEAD)
        return decode(blob.data, Head, where=f"{store.uri}/{keys.HEAD}"), blob.version
    except NotFoundError:
        return None
    except CorruptError as error:
        raise CorruptError(
            error.what, where=error.where, remedy="Restore it from a copy of the store, or rename the federation."
        ) from error


def trained_head(store: Store) -> Head | None:
    """Return HEAD; where an earlier version of fedpipe left it at a round 0, the trained round before that."""
    current = read_head(store)
    if current is None or current[0].round:
        return current[0] if current else None
    ref = last_trained(store, current[0].ref)
    record = read_record(store, ref.run, ref.round) if ref else None
    return head_of(record) if record else None


def head_of(record: Record) -> Head:
    """Return the HEAD that names a record."""
    return Head(run=record.run, round=record.round, record=record.ref.record, weights=record.weights)


def read_record(store: Store, run: str, number: int) -> Record | None:
    """Return the record of a round; None when the round is not committed. Raises CorruptError."""
    key = keys.record(run, number)
    record = find(store, key, Record)
    if record is not None and (record.run, record.round) != (run, number):
        raise CorruptError(
            f"is the record of run {record.run!r}, round {record.round}", where=f"{store.uri}/{key}", remedy=LOST
        )
    return record


def commit(store: Store, record: Record, *, rehearsal: bool = False) -> Record:
    """Commit a round exactly once and return the committed record.

    The record is created; when another engine was first, its record counts. Then HEAD moves from the last trained round
    to it, unless the round was rejected or has untrained weights. Both writes may be repeated after a crash anywhere.

    Args:
        store: the federation's store.
        record: of the round.
        rehearsal: the run is a simulation, which never moves HEAD.

    Raises:
        ConflictError: HEAD has moved along another chain, or another try of the run came first.
    """
    if not store.create(keys.record(record.run, record.round), encode(record)):
        found = read_record(store, record.run, record.round)
        if found is None:
            raise ConflictError(f"the record of round {record.round} was removed while it was read")
        if record.round == 1 and found.previous != record.previous:
            _settle(store, found)
            raise ConflictError(
                f"another try of run {record.run!r}, with other settings or from another HEAD, was the first to train",
                where=store.uri,
                remedy="Choose another run name.",
            )
        record = found
    if record.round == 1:
        _settle(store, record)
    if record.round and not rehearsal:
        _advance(store, record)
    return record


def is_settled(store: Store, run: str) -> bool:
    """Return whether a round after round 0 is recorded, so that the run keeps its plan and its first weights."""
    return store.size(keys.record(run, 1)) is not None


def supersede(store: Store, old: Record, new: Record) -> Record:
    """Replace a round 0 after which nothing is recorded by that of another try, and return the one that counts.

    An engine of the old try may still be at work. The record of round 1 decides: this function looks for it after the
    replacement, and `commit` restores the round 0 that it follows. So one of them sees the other, wherever they are.

    Raises:
        ConflictError: the old try has recorded round 1, or a third one came first.
    """
    key = keys.record(new.run, 0)
    put_bytes(store, encode(old))  # for `_settle`
    for leftover in _leftovers(store, new.run):
        store.delete(leftover)
    blob = store.read(key)
    if blob.data == encode(old):
        store.swap(key, encode(new), blob.version)
    if (first := read_record(store, new.run, 1)) is not None:
        _settle(store, first)
    if (found := read_record(store, new.run, 0)) != new:
        raise ConflictError(
            f"another engine works on run {new.run!r}, with other settings or from another HEAD",
            where=store.uri,
            remedy="End one of them, or choose another run name.",
        )
    return found


def _leftovers(store: Store, run: str) -> list[str]:
    """Return the keys of what a try left that recorded no round; learners replace their own answers."""
    single = (keys.candidate(run, 1), keys.stop(run), keys.evaluation(run), keys.onnx(run), keys.summary(run),
              keys.report(run))  # fmt: skip
    return [*single, *store.keys(keys.states(run))]


def _settle(store: Store, first: Record) -> None:
    """Make round 0 the one that the record of round 1 follows, after another try replaced it."""
    key, root = keys.record(first.run, 0), first.previous
    assert root is not None
    for _ in range(_HEAD_TRIES):
        blob = store.read(key)
        if digest_of(blob.data) == root.record or store.swap(key, get_bytes(store, root.record), blob.version):
            return
    raise ConflictError("round 0 changed at every try", where=f"{store.uri}/{key}")


def last_trained(store: Store, ref: Ref | None) -> Ref | None:
    """Return where HEAD is while a record is the last of the chain: at it, or before the round 0 that it is."""
    while ref is not None and not ref.round:
        record = read_record(store, ref.run, 0)
        if record is None or record.ref != ref:
            raise CorruptError(f"the chain is broken at round 0 of run {ref.run!r}", where=store.uri, remedy=LOST)
        ref = record.previous
    return ref


def _advance(store: Store, record: Record) -> None:
    """Move HEAD to an accepted record; a rejected one only has to be attached to HEAD's chain."""
    head = head_of(record)
    before = last_trained(store, record.previous)
    for _ in range(_HEAD_TRIES):
        current = read_head(store)
        if (last_trained(store, current[0].ref) if current else None) == before:
            if not record.accepted:
                return
            data = encode(head)
            if store.swap(keys.HEAD, data, current[1]) if current else store.create(keys.HEAD, data):
                return
        elif current is None:
            raise ConflictError(
                "HEAD is missing although rounds were committed",
                where=f"{store.uri}/{keys.HEAD}",
                remedy="Restore it from a copy of the store. Or begin another run: it has no HEAD to continue from.",
            )
        elif record.parent is not None and precedes(store, record.parent, current[0].ref):
            return
        elif not record.accepted and (before is None or precedes(store, before, current[0].ref)):
            return  # it fell behind another run, and moves nothing
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
            raise CorruptError(
                f"the chain is broken at round {cursor.round} of run {cursor.run!r}", where=store.uri, remedy=LOST
            )
        cursor = record.previous
    return False


def is_trained(records: list[Record]) -> bool:
    """Return whether the last weights of a run are trained: in it, or before it when it continued from HEAD."""
    return any(record.round and record.accepted for record in records) or any(map(origin_of, records[:1]))


def origin_of(first: Record) -> Ref | None:
    """Return the round from which a run continues, from its round 0; None when it began with fresh weights."""
    return first.previous if first.base == first.weights else None


def history(store: Store, run: str) -> list[Record]:
    """Return the committed records of a run, from round 0 on. Raises CorruptError when the chain is broken."""
    records: list[Record] = []
    while (record := read_record(store, run, len(records))) is not None:
        if records and record.previous != records[-1].parent:
            raise CorruptError(
                f"round {record.round} does not follow round {record.round - 1}", where=store.uri, remedy=LOST
            )
        records.append(record)
    return records


def readable_history(store: Store, run: str) -> tuple[list[Record], str]:
    """Return the records of a run up to the first that cannot be read, and why that is; empty if all can be read."""
    records: list[Record] = []
    try:
        while (record := read_record(store, run, len(records))) is not None:
            if records and record.previous != records[-1].parent:
                return records, f"round {record.round} does not follow round {record.round - 1}"
            records.append(record)
    except CorruptError as error:
        return records, f"the record of round {len(records)} {error.what}"
    return records, ""


def propose_candidate(store: Store, record: Record) -> Record:
    """Write the record that the round gets if the learners accept it; return the stored one, the first of this try."""
    key, data = keys.candidate(record.run, record.round), encode(record)
    while not store.create(key, data):
        blob = store.read(key)
        found = decode(blob.data, Record, where=f"{store.uri}/{key}")
        if found.previous == record.previous:
            return found
        if store.swap(key, data, blob.version):
            break
    return record


def read_candidate(store: Store, run: str, number: int) -> Record | None:
    """Return the candidate of a round of averaging; None when nothing is aggregated yet. Raises CorruptError."""
    found = find(store, keys.candidate(run, number), Record)
    if found is None or number > 1:
        return found
    begun = read_record(store, run, 0)
    return found if begun is not None and found.previous == begun.ref else None  # otherwise another try left it


def is_aggregated(store: Store, run: str, number: int) -> bool:
    """Return whether a round has an aggregate: it is committed, or put to the vote."""
    return store.size(keys.record(run, number)) is not None or read_candidate(store, run, number) is not None


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
        raise CorruptError("the global weights are missing", where=f"{store.uri}/{key}", remedy=LOST)
    layout = read_layout(lambda start, length: store.read_range(key, start, length), size)
    if digest_of(store.read_range(key, 0, layout.data_start)) != record.layout:
        raise CorruptError(
            "the global weights have another layout than the run", where=f"{store.uri}/{key}", remedy=LOST
        )
    return layout
