"""Opens a federation's part of the store, and finds runs by their names."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedpipe.errors import InputError, NotFoundError
from fedpipe.federation.federation import Federation
from fedpipe.federation.names import SAFE_NAME
from fedpipe.federation.sources import Source, read_source
from fedpipe.rounds.history import read_record
from fedpipe.rounds.manifests import Record
from fedpipe.store import Store, chosen_uri, keys, open_store
from fedpipe.suggestion import closest

StoreGiven = str | Path | Mapping[str, Any] | None
"""A store instead of the federation's: its URI, or the keys of `store` that differ."""
_PREFIX = 4
"""Fewest characters that may stand for the name of a run."""
_LISTED = 20
"""Most runs that a message lists."""


def settle(
    source: Source, store: StoreGiven = None, changes: Mapping[str, Any] | None = None
) -> tuple[Federation, str]:
    """Returns a federation with changed keys, and the URI of its store or of the one given instead.

    Raises:
        FederationError: names the key, the mistake and the remedy.
    """
    if isinstance(store, Mapping):
        changes, store = {**(changes or {}), "store": store}, None
    federation = read_source(source, changes)
    return federation, chosen_uri(str(store) if store else None, federation.store_uri)


def file_of(source: Source) -> Path:
    """Returns the federation file, or without one the file that would be in the working folder."""
    return Path(source) if isinstance(source, str | Path) else Path("federation.yaml")


def open_federation(source: Source, store: StoreGiven = None) -> tuple[Store, str]:
    """Opens the federation's part of the store; returns it with the URI of the whole store.

    Args:
        source: the federation file, or its content.
        store: a store to use instead of the federation's.
    """
    federation, uri = settle(source, store)
    return open_store(uri).below(federation.name), uri


def find_run(store: Store, name: str) -> Record:
    """Returns round 0 of a run, also by the start of its name.

    Raises:
        NotFoundError: there is none; lists the runs and suggests the closest name.
        InputError: several names begin so.
    """
    name = full_name(store, name)
    record = read_record(store, name, 0) if re.fullmatch(SAFE_NAME, name) else None
    if record is None:
        raise no_run(store, name)
    return record


def check_runs(store: Store, names: Sequence[str]) -> list[str]:
    """Returns the whole names of runs. Raises NotFoundError for the first one that has not begun."""
    return [find_run(store, name).run for name in names]


def full_name(store: Store, name: str) -> str:
    """Returns the name of the one run whose name begins so; the given one where there is none.

    Raises:
        InputError: several names begin so.
    """
    names = store.below(keys.RUNS).folders()
    found = [one for one in names if one.startswith(name)] if len(name) >= _PREFIX else []
    if name in names or not found:
        return name
    if len(found) > 1:
        listed = ", ".join(found[:5])
        raise InputError(f"{len(found)} runs begin with {name!r}", remedy=f"Write more of the name: {listed}.")
    return found[0]


def no_run(store: Store, name: str) -> NotFoundError:
    """Returns the error for the name of a run that the store does not have."""
    names = store.below(keys.RUNS).folders()
    if name in names:
        return NotFoundError(
            f"run {name!r} has not begun: its first round is not recorded yet",
            where=store.uri,
            remedy=f"Wait for it with `fedpipe watch {name}`.",
        )
    close = closest(name, names)
    hint = f" Did you mean {close!r}?" if close else ""
    return NotFoundError(f"there is no run {name!r}", where=store.uri, remedy=f"{known_runs(store)}{hint}")


def is_known(store: Store, name: str) -> bool:
    """Returns whether a run has begun, or is about to begin."""
    return name in store.below(keys.RUNS).folders()


def known_runs(store: Store) -> str:
    """Lists the runs of the store in a sentence."""
    names = store.below(keys.RUNS).folders()
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return f"Runs: {', '.join(names[:_LISTED])}{more}." if names else "No run has begun here."
