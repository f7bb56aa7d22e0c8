"""Remove what a store may lose, so that a removal that is killed anywhere leaves a usable store.

    pruning              says that objects are being removed; moves by compare-and-swap only
    runs/<run>/pruned    what was left of a run

Small objects go first, those of a run in the order of `retention`. Only then go objects that they named. So no small
object that stays names an object that is gone, apart from runs with a note.

A run looks at the mark when it begins, and again when its shards are recorded (`entered`). A removal in between could
have taken an object that the run found in the store.
"""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

from fedpipe.errors import ConflictError, InputError, StoreError
from fedpipe.rounds.manifests import Manifest
from fedpipe.rounds.retention import Loss, Pruned
from fedpipe.store import LocalStore, Store, keys
from fedpipe.store.objects import decode, encode, find

STALE = 300.0
"""Seconds after which a mark that nobody renews counts as left by a killed process."""
_RENEWED = 30.0
_DELETERS = 8
_BATCH = 500


class Mark(Manifest, frozen=True, kw_only=True):
    """Says whether objects are being removed; `by` differs in each removal, and `beat` in each renewal."""

    format: int = 1
    state: Literal["working", "done"]
    by: str
    beat: int = 0


@contextlib.contextmanager
def marked(store: Store) -> Iterator[Callable[[], None]]:
    """Mark that objects are being removed; yields a function that renews the mark when it is time.

    Raises:
        InputError: another removal is at work.
        ConflictError: another one took over, because this one did not renew its mark.
    """
    by, key, beat, renewed = uuid.uuid4().hex, keys.PRUNING, 0, time.monotonic()
    current = _at_work(store)
    mark = encode(Mark(state="working", by=by))
    if not (store.create(key, mark) if current is None else store.swap(key, mark, current)):
        raise InputError("another prune has just begun", where=store.uri, remedy="Wait until it has ended.")

    def move(state: Literal["working", "done"]) -> None:
        nonlocal beat, renewed
        beat, renewed = beat + 1, time.monotonic()
        blob = store.poll(key)
        moved = encode(Mark(state=state, by=by, beat=beat))
        if blob is None or decode(blob.data, Mark, where=key).by != by or not store.swap(key, moved, blob.version):
            raise ConflictError("another prune took over", where=store.uri, remedy="Run the command again.")

    def renew() -> None:
        if time.monotonic() - renewed > _RENEWED:
            move("working")

    try:
        yield renew
    finally:  # also when it failed: what is left is usable, and the same command may run again
        with contextlib.suppress(ConflictError, StoreError):
            move("done")


def _at_work(store: Store) -> str | None:
    """Return the version of the mark, None without one. Raises InputError when a removal is at work."""
    blob = store.poll(keys.PRUNING)
    if blob is None:
        return None
    mark = decode(blob.data, Mark, where=f"{store.uri}/{keys.PRUNING}")
    if mark.state == "working" and (store.age(keys.PRUNING) or 0.0) < STALE:
        raise InputError(
            "fedpipe prune is removing objects of this federation",
            where=store.uri,
            remedy=f"Wait until it has ended, or {STALE / 60:.0f} minutes if it was killed.",
        )
    return blob.version


@contextlib.contextmanager
def entered(store: Store, run: str) -> Iterator[None]:
    """Guard the beginning of a run, up to the record of its shards, against a removal at the same time.

    Raises:
        InputError: objects are being removed, or the run has lost some.
    """
    if note := find(store, keys.pruned(run), Pruned):
        left = {
            "result": "only its last weights and its records are there",
            "records": "only its records are there",
            "nothing": "its removal was interrupted",
        }[note.kept]
        raise InputError(
            f"run {run!r} was pruned: {left}",
            where=store.uri,
            remedy="Choose another run name: it continues from HEAD.",
        )
    before = _at_work(store)
    yield
    if _at_work(store) != before:
        store.delete(keys.shards(run))
        raise InputError(
            "fedpipe prune removed objects of this federation while the run began",
            where=store.uri,
            remedy="Run the same command again.",
        )


def remove(
    store: Store, loss: Loss, renew: Callable[[], None], listener: Callable[[int], None] = lambda _: None
) -> None:
    """Remove what a store may lose.

    Args:
        store: the federation's store, which is `marked`.
        loss: of the store, found after it was marked.
        renew: renews the mark.
        listener: receives the number of objects that are gone.
    """
    for run, note in loss.notes.items():
        store.replace(keys.pruned(run), encode(note))
    done = 0

    def each(groups: Iterable[Sequence[str]]) -> None:
        nonlocal done
        with ThreadPoolExecutor(_DELETERS) as deleters:
            for gone in deleters.map(delete, groups):
                done += gone
                renew()
                listener(done)

    def delete(group: Sequence[str]) -> int:
        for key in group:
            store.delete(key)
        return len(group)

    each(loss.small.values())
    each(loss.content[start : start + _BATCH] for start in range(0, len(loss.content), _BATCH))
    if isinstance(store, LocalStore):
        store.remove_empty_folders()
