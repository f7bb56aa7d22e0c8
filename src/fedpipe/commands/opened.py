"""Opens a federation's part of the store and checks the names of runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fedpipe.errors import NotFoundError
from fedpipe.federation.file import read_federation
from fedpipe.rounds.history import read_record
from fedpipe.store import Store, chosen_uri, keys, open_store


def open_federation(source: str | Path, store: str | None = None) -> tuple[Store, str]:
    """Opens the federation's part of the store; returns it with the URI of the whole store.

    Args:
        source: the federation file.
        store: URI of a store to use instead of the federation's.
    """
    federation = read_federation(Path(source))
    uri = chosen_uri(store, federation.store_uri)
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
