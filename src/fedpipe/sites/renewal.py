"""The keys of a site while its agent runs: it asks for new ones, takes them, and the agent begins again with them."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

from fedpipe.errors import FedpipeError
from fedpipe.identity.signing import public_key
from fedpipe.sites.membership import keys_of, opener_of
from fedpipe.sites.site import Site

log = logging.getLogger("fedpipe")

LOOK = 60.0
"""Seconds between two looks whether a request for new keys is granted."""
_DAY = 24 * 3600.0


class KeyWatch:
    """Watches the keys of a site, between the answers of its agent.

    Args:
        site: its file.
        note: keeps the account of the site.
        clock: seconds of this process.
        wall: seconds since 1970.
    """

    def __init__(
        self, site: Site, note: Callable[..., object], *, clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:  # fmt: skip
        self._site, self._note, self._clock, self._wall = site, note, clock, wall
        self._files, self._before = keys_of(site), self._key()
        self._due = float("-inf")

    def changed(self, *, idle: bool) -> bool:
        """Return whether the site has another key than at the start, by this agent or by `fedpipe site rotate`.

        Args:
            idle: the agent attends no session, so that it may ask for new keys where the current ones are old.
        """
        try:
            if self._clock() >= self._due:
                self._due = self._clock() + LOOK
                self._renew(idle)
        except (FedpipeError, OSError) as error:
            log.warning("the keys of the site cannot be renewed now: %s", error)
        return self._key() not in ("", self._before)

    def _renew(self, idle: bool) -> None:
        """Take keys that were granted, or ask for new ones when it is time."""
        files, opened = self._files, opener_of(self._site)
        if files.membership is None:
            return  # its keys came by hand
        if files.renewal is not None:
            if files.settle(opened):
                self._note("rotated", key=self._site.public_key)
        elif idle and self._site.renew and files.age(self._wall()) > self._site.renew * _DAY:
            renewal = files.renew(opened, self._wall())
            self._note("asked", key=public_key(renewal.key))

    def _key(self) -> str:
        try:
            return Path(self._site.key).read_text()
        except OSError:
            return ""
