"""Download weights for a learner; learners that work in one process share the download of the global weights."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

from fedpipe import weights
from fedpipe.learners.framework import Arrays
from fedpipe.store import Store
from fedpipe.store.objects import fetch_file

MOST_KEPT = 2**28
"""Bytes of global weights that are kept in memory; larger ones are downloaded for each learner."""


class _Last:
    """The global weights that were downloaded last, while somebody shares them."""

    def __init__(self) -> None:
        self.downloading, self.counting = threading.Lock(), threading.Lock()
        self.sharing = 0
        self.held: tuple[str, Arrays] | None = None

    def find(self, digest: str) -> Arrays | None:
        held = self.held
        return held[1] if held and held[0] == digest else None

    def keep(self, digest: str, arrays: Arrays) -> None:
        with self.counting:
            if self.sharing and sum(array.nbytes for array in arrays.values()) <= MOST_KEPT:
                self.held = digest, arrays


_last = _Last()


@contextlib.contextmanager
def shared_downloads() -> Iterator[None]:
    """Keep the last global weights for all learners that this process works for.

    They were verified when they were downloaded, and nobody can write to the arrays.
    """
    with _last.counting:
        _last.sharing += 1
    try:
        yield
    finally:
        with _last.counting:  # without waiting for a download, which may hang
            _last.sharing -= 1
            if not _last.sharing:
                _last.held = None


def fetched(store: Store, digest: str, path: Path, owner: str | None = None) -> Arrays:
    """Download weights from the store, verified, and load them.

    Args:
        store: the federation's store.
        digest: of the weights.
        path: a file for the time of the download.
        owner: the learner that owns them; None for global ones, which `shared_downloads` keeps.

    Returns:
        Arrays that cannot be written to, by their names.

    Raises:
        CorruptError: the bytes do not match the digest.
        StoreError: the weights are missing, or cannot be read.
    """
    if owner is not None or not _last.sharing:
        return _downloaded(store, digest, path, owner)
    with _last.downloading:  # learners of the same round ask at the same time
        found = _last.find(digest)
        if found is None:
            found = _downloaded(store, digest, path, owner)
            _last.keep(digest, found)
        return dict(found)


def _downloaded(store: Store, digest: str, path: Path, owner: str | None) -> Arrays:
    fetch_file(store, digest, path, owner)
    arrays = weights.load(path)
    path.unlink()
    return arrays
