"""The requests to the store that the process with the user's code may make, through the agent that holds the keys."""

from __future__ import annotations

import re
from collections.abc import Callable

from fedpipe.errors import InputError, StoreError
from fedpipe.sessions.current import Opened
from fedpipe.sites.site import Site
from fedpipe.store import keys
from fedpipe.store.held import Request

Sent = Callable[[str, int], object]
"""Takes the key and the bytes of each object before it is sent."""
_READS = frozenset({"uri", "read", "poll", "read_range", "age", "size", "open", "piece", "close"})
_WRITES = frozenset({"create", "swap", "replace", "upload"})
_CONTENT = ("objects", "proposals", "personal", "parcels")
"""Folders of a learner whose objects are named by their digests."""
_STATEMENTS = ("update", "ballot", "statistics", "ledger")
"""The statements of a learner that its process makes; those of secure sums are the agent's."""


class Guard:
    """Allows what a learner writes in one session, and nothing else; every object is reported before it is sent.

    Args:
        site: its name is part of all keys.
        opened: the session.
        sent: takes each object before it is sent.
    """

    def __init__(self, site: Site, opened: Opened, sent: Sent = lambda *_: None) -> None:
        self._site, self._sent = site, sent
        own = re.escape(keys.learner_folder(site.name))
        run = re.escape(keys.run_folder(opened.run, site.name))
        self._writable = re.compile(
            rf"{own}(?:(?:{'|'.join(_CONTENT)})/[0-9a-f]{{64}}|ledger/\d{{8}})|"
            rf"{run}(?:score(?:-earlier)?|\d{{1,9}}/[a-z0-9_.\-]+(?:/[\w.\-]+)?)", re.ASCII,
        )  # fmt: skip
        self._removable = re.compile(rf"{own}parcels/[0-9a-f]{{64}}", re.ASCII)

    def check(self, request: Request, size: int) -> None:
        """Check a request before it is made.

        Args:
            request: as the process sent it.
            size: bytes that it would send.

        Raises:
            StoreError: the process may not make it.
        """
        if request.op in _READS:
            return
        place = request.place
        here = place is not None and place.uri == self._site.store and place.prefix == self._site.federation
        pattern = self._writable if request.op in _WRITES else self._removable if request.op == "delete" else None
        if not here or pattern is None or not pattern.fullmatch(request.key):
            raise StoreError(
                f"the site does not allow its code to {request.op[:20]} {request.key[:200]!r}",
                remedy="Code of a model trains and measures; fedpipe itself writes the results.",
            )
        if request.op in _WRITES:
            self._sent(request.key, size)

    def check_statement(self, data: bytes) -> None:
        """Check bytes before they are signed. Raises InputError for anything but a statement of a learner's work."""
        kind = data.partition(b"\n")[0].decode(errors="replace").removeprefix("fedpipe ").split(" ")[0]
        if not data.startswith(b"fedpipe ") or kind not in (*_STATEMENTS, "score", "parcel"):
            raise InputError(f"the site does not sign {kind[:40]!r} for its code")
