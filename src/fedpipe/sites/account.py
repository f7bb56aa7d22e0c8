"""The account of a site's agent: the journal gets all that it sends, before it is sent, and the content that it reads.

Objects of content are named by their digests: plans, code, weights. Boards, records and other small statements are
read all the time, and have no entry.
"""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import Any, cast

from fedpipe.errors import FedpipeError
from fedpipe.sites.agent import Note
from fedpipe.store import Blob, Store, keys
from fedpipe.store.base import SMALL
from fedpipe.store.objects import digest_of

CONTENT = ("objects", "proposals", "personal", "parcels")
"""Folders whose objects are named by their digests."""
_CONTENT = re.compile(rf"(?:learners/[^/]+/)?(?:{'|'.join(CONTENT)})/[0-9a-f]{{64}}", re.ASCII)
_EVENTS = re.compile(r"learners/[^/]+/runs/[^/]+/\d+/tensorboard/.+", re.ASCII)
_EXCUSE = re.compile(r"learners/[^/]+/runs/[^/]+/(?:sign|score(?:-earlier)?|\d+/(?:dropped|absent)(?:-\d+)?)", re.ASCII)
"""Statements of the agent by which others need not wait for it: they leave also when the disk is full."""


def is_large(key: str) -> bool:
    """Return whether an object is of any size: content or event files, and no statement."""
    return bool(_CONTENT.fullmatch(key) or _EVENTS.fullmatch(key))


def note_read(note: Note, key: str, size: int) -> None:
    """Keep the account of an object of content that was read. Raises InputError if nothing can be kept."""
    if _CONTENT.fullmatch(key):
        note("read", object=key, bytes=size)


def accounted(store: Store, note: Note, site: str) -> Store:
    """Return a store that keeps the account of what its caller sends and reads.

    The presence of the site has no entry: it is renewed every few minutes, and repeats what other entries say.

    Args:
        store: the federation's store.
        note: keeps the account.
        site: the site's name.
    """
    return cast(Store, _Accounted(store, note, keys.presence(site)))


class _Accounted:
    """Passes all calls on; those that send or read content have an entry."""

    def __init__(self, inner: Store, note: Note, presence: str) -> None:
        self._inner, self._note, self._presence = inner, note, presence
        self._seen: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def read(self, key: str, *, limit: int = SMALL) -> Blob:
        blob = self._inner.read(key, limit=limit)
        if key not in self._seen:  # a plan that cannot be used is read at each look
            self._seen.add(key)
            note_read(self._note, key, len(blob.data))
        return blob

    def create(self, key: str, data: bytes) -> bool:
        self._sends(key, data)
        return self._inner.create(key, data)

    def swap(self, key: str, data: bytes, version: str) -> bool:
        self._sends(key, data)
        return self._inner.swap(key, data, version)

    def replace(self, key: str, data: bytes) -> None:
        self._sends(key, data)
        self._inner.replace(key, data)

    def upload(self, key: str, path: Path) -> None:
        self._note("sent", object=key, bytes=path.stat().st_size)
        self._inner.upload(key, path)

    def _sends(self, key: str, data: bytes) -> None:
        if key == self._presence:
            return
        unable = contextlib.suppress(FedpipeError, OSError) if _EXCUSE.fullmatch(key) else contextlib.nullcontext()
        with unable:
            self._note("sent", object=key, bytes=len(data), digest=digest_of(data))
