"""Removes old runs and unneeded objects from a federation's store."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from fedpipe.commands.opened import StoreGiven, open_federation
from fedpipe.errors import CorruptError, InputError
from fedpipe.federation.sources import Source
from fedpipe.rounds.pruning import marked, remove
from fedpipe.rounds.retention import Loss, Rules, RunLoss, find_loss
from fedpipe.sessions.board import poll_board
from fedpipe.store import Store


class Prune(NamedTuple):
    """Reports a removal: runs with their fates, objects and bytes; and whether it was done."""

    runs: tuple[RunLoss, ...]
    objects: int
    size: int
    unknown: int
    done: bool


def prune(
    source: Source, *, store: StoreGiven = None, keep_runs: int | None = None, older_than: float | None = None,
    drop_replays: bool = False, abandoned: tuple[str, ...] = (), yes: bool = False,
    listener: Callable[[int, int], None] = lambda _done, _all: None,
) -> Prune:  # fmt: skip
    """Removes old runs and unneeded objects from the store; without `yes`, only reports what it would remove.

    HEAD's run, published models, ledgers, enrolments and current shards always stay, and so do the records of HEAD's
    chain. Without `keep_runs` and `older_than` no run is removed. Objects that nothing names go after a day.

    Args:
        source: the federation file, or its content.
        store: a store to use instead of the federation's.
        keep_runs: removes all runs but the latest ones, so many.
        older_than: removes runs whose last change is so many days ago. With both, a run must fulfil both.
        drop_replays: removes from ended runs that stay what only a replay needs: updates and earlier weights.
        abandoned: unfinished runs that nobody will resume.
        yes: removes; otherwise the store stays as it is.
        listener: receives how many objects are gone, and how many there are to remove.

    Raises:
        InputError: a run is at work, another removal is, or there is no such run.
        StoreError: the store does not answer; run the same command again.

    >>> import fedpipe
    >>> for name in ("run-1", "run-2"):
    ...     result = fedpipe.run("demo/federation.yaml", name=name, training={"rounds": 1})
    >>> found = fedpipe.prune("demo/federation.yaml", keep_runs=1)
    >>> [(loss.run, loss.fate) for loss in found.runs], found.done
    ([('run-1', 'records')], False)
    """
    if keep_runs is not None and keep_runs < 0:
        raise InputError(f"{keep_runs} is negative", where="keep_runs", remedy="Use 0 or more.")
    if older_than is not None and not 0 <= older_than < 1e6:
        raise InputError(f"{older_than} is not a number of days", where="older_than", remedy="Use 0 or more.")
    opened, _ = open_federation(source, store)
    rules = Rules(
        keep_runs=keep_runs, older_than=None if older_than is None else older_than * 86400, replays=not drop_replays,
        abandoned=tuple(abandoned),
    )  # fmt: skip

    def find() -> Loss:
        return find_loss(opened, rules, lambda run: _is_over(opened, run))

    loss = find()
    if yes and (loss.objects or loss.notes):
        with marked(opened) as renew:
            loss = find()  # again: a run may have begun before the mark was there
            remove(opened, loss, renew, lambda done: listener(done, loss.objects))
    return Prune(loss.runs, loss.objects, loss.size, loss.unknown, yes)


def _is_over(store: Store, run: str) -> bool:
    """Returns whether the board of a run says that its session has ended."""
    try:
        found = poll_board(store, run)
    except CorruptError:
        return False
    return found is not None and found[0].phase == "ended"
