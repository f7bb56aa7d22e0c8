"""Repairs a store that has objects of runs which cannot be read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from fedpipe.commands.opened import StoreGiven, open_federation
from fedpipe.errors import ConflictError, CorruptError
from fedpipe.federation.sources import Source
from fedpipe.rounds.evaluation import Evaluation
from fedpipe.rounds.history import head_of, last_trained, read_head, read_record, readable_history
from fedpipe.rounds.manifests import Record, Ref
from fedpipe.rounds.plan import Plan
from fedpipe.sessions.board import Board
from fedpipe.store import Store, keys
from fedpipe.store.objects import encode, find

_COPY = "restore it from a copy of the store"


class Damage(NamedTuple):
    """Describes an object that cannot be read.

    Args:
        key: the object.
        why: the mistake in it.
        repair: what repairs it.
        removed: the keys that the repair removes; none if only a copy helps.
    """

    key: str
    why: str
    repair: str
    removed: tuple[str, ...] = ()


def repair(source: Source, *, store: StoreGiven = None, yes: bool = False) -> list[Damage]:
    """Finds objects of runs that cannot be read, and with `yes` repairs the store.

    A record that cannot be read is removed with all later rounds of its run. HEAD moves back to the last good round, if
    it was at one of them. Boards, candidates and evaluations are made again when they are needed.

    Args:
        source: the federation file, or its content.
        store: a store to use instead of the federation's.
        yes: repairs; otherwise the store stays as it is.

    Raises:
        ConflictError: HEAD moved in the meantime.

    >>> import fedpipe
    >>> result = fedpipe.run("demo/federation.yaml", name="run-1", training={"rounds": 1})
    >>> fedpipe.repair("demo/federation.yaml")
    []
    """
    opened, _ = open_federation(source, store)
    return repair_store(opened, yes=yes)


def repair_store(store: Store, *, yes: bool = False) -> list[Damage]:
    """Finds, and with `yes` repairs, what cannot be read in a federation's part of a store. See `repair`."""
    found: list[Damage] = []
    for run in store.below(keys.RUNS).folders():
        found += _damaged_chain(store, run, yes)
        for damage in _damaged_objects(store, run):
            found.append(damage)
            if yes:
                _remove(store, damage)
    try:
        read_head(store)
    except CorruptError as error:
        found.append(Damage(keys.HEAD, error.what, _COPY))
    return found


def _remove(store: Store, damage: Damage) -> None:
    for key in damage.removed:
        store.delete(key)


def _damaged_objects(store: Store, run: str) -> Iterator[Damage]:
    """Finds objects next to the records that cannot be read; all of them are made again."""
    known = len(readable_history(store, run)[0])
    kinds: list[tuple[str, type[Any]]] = [
        (keys.board(run), Board), (keys.plan(run), Plan), (keys.evaluation(run), Evaluation), (keys.onnx(run), dict),
        *((keys.candidate(run, number), Record) for number in range(1, known + 1)),
    ]  # fmt: skip
    for key, kind in kinds:
        try:
            find(store, key, kind)
        except CorruptError as error:
            yield Damage(key, error.what, "remove it, so that it is made again", (key,))


def _damaged_chain(store: Store, run: str, yes: bool) -> list[Damage]:
    records, why = readable_history(store, run)
    if not why:
        return []
    number = len(records)
    key = keys.record(run, number)
    head = _moved_head(store, run, records)
    if head == _LOST:
        return [Damage(key, why, f"{_COPY}: later runs continue from it")]
    folder = keys.run_folder(run)
    later = tuple(
        other
        for other in store.keys(folder)
        if (found := keys.parse_record(other, run)) is not None and found >= number
    )
    ended = (keys.evaluation(run), keys.onnx(run), keys.summary(run), keys.report(run), keys.board(run))
    candidates = tuple(keys.candidate(run, k) for k in range(number, number + len(later) + 1))
    removed = (*reversed(later), *candidates, *ended)
    text = "remove it" if len(later) < 2 else f"remove it and {len(later) - 1} later rounds"
    if isinstance(head, Ref):
        text += f", and move HEAD to round {head.round} of run {head.run}"
    elif head == _NONE:
        text += ", and HEAD, because no trained round is left"
    damage = Damage(key, why, text, tuple(k for k in removed if store.size(k) is not None))
    if yes:
        _move_head(store, head)
        _remove(store, damage)
    return [damage]


_STAYS, _NONE, _LOST = "stays", "none", "lost"


def _moved_head(store: Store, run: str, records: list[Record]) -> Ref | str:
    """Returns where HEAD moves when a run ends with these records; or whether it stays, or depends on lost ones."""
    try:
        current = read_head(store)
    except CorruptError:
        return _STAYS
    if current is None or (current[0].run == run and current[0].round < len(records)):
        return _STAYS
    if current[0].run == run:
        good = last_trained(store, records[-1].parent) if records else None
        return good or _NONE
    cursor: Ref | None = current[0].ref
    while cursor is not None:  # another run may have continued from a lost round
        if cursor.run == run:
            return _LOST if cursor.round >= len(records) else _STAYS
        try:
            record = read_record(store, cursor.run, cursor.round)
        except CorruptError:
            return _STAYS
        cursor = record.previous if record else None
    return _STAYS


def _move_head(store: Store, target: Ref | str) -> None:
    current = read_head(store) if target == _NONE or isinstance(target, Ref) else None
    if current is None:
        return
    if not isinstance(target, Ref):
        store.delete(keys.HEAD)
        return
    record = read_record(store, target.run, target.round)
    if record is None or not store.swap(keys.HEAD, encode(head_of(record)), current[1]):
        raise ConflictError("HEAD moved in the meantime", where=store.uri, remedy="Repeat the command.")
