"""Opens a federation's part of the store and checks the names of runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedpipe.errors import NotFoundError
from fedpipe.federation.federation import Federation
from fedpipe.federation.sources import Source, read_source
from fedpipe.rounds.history import read_record
from fedpipe.store import Store, chosen_uri, keys, open_store

StoreGiven = str | Path | Mapping[str, Any] | None
"""A store instead of the federation's: its URI, or the keys of `store` that differ."""


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


def check_runs(store: Store, names: Sequence[str]) -> None:
    """Raises NotFoundError for the first of these runs that has not begun."""
    for name in names:
        if read_record(store, name, 0) is None:
            raise NotFoundError(f"there is no run {name!r}", where=store.uri, remedy=known_runs(store))


def known_runs(store: Store) -> str:
    """Lists the runs of the store in a sentence."""
    names = store.below(keys.RUNS).folders()
    return f"Runs: {', '.join(names)}." if names else "No run has begun here."
