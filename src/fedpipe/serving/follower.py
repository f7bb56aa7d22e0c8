"""Follows the catalogue: loads new versions in the background, and lets them take over when they can answer."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

from fedpipe.errors import FedpipeError, StoreError
from fedpipe.registry.publication import ModelVersion
from fedpipe.serving.catalogue import Catalogue
from fedpipe.serving.runtime import Loaded
from fedpipe.serving.traffic import Split, Traffic

log = logging.getLogger("fedpipe")
_RETRY_SECONDS = 60.0
"""Seconds after which a version that failed to load is retried; doubled with every failure."""
_LONGEST_RETRY_SECONDS = 3600.0


class Served(NamedTuple):
    """Holds the versions that answer for a model; never changed, only replaced as a whole."""

    split: Split
    primary: Loaded
    canary: Loaded | None = None

    @property
    def loaded(self) -> list[Loaded]:
        """Returns all versions that can answer."""
        return [one for one in (self.primary, self.canary) if one]

    def choose(self, number: int) -> Loaded:
        """Chooses the version for a request by its number: of n requests, n times `share` go to the canary, evenly."""
        if self.canary is None or int((number + 1) * self.split.share) == int(number * self.split.share):
            return self.primary
        return self.canary

    def version(self, version: int) -> Loaded | None:
        """Returns a version if it is loaded."""
        return next((one for one in self.loaded if one.entry.version == version), None)


class LoadFailure(NamedTuple):
    """Describes why a version failed to load, how often it was tried, and when it is retried (monotonic seconds)."""

    why: str
    attempts: int
    retry_at: float


class Follower:
    """Keeps `served` up to date.

    Args:
        catalogue: where models come from.
        load: loads a version; raises FedpipeError.
        on_failure: receives each version that failed to load, and the reason.
        on_change: receives each model whose versions changed.
        clock: returns seconds.
    """

    def __init__(
        self, catalogue: Catalogue, load: Callable[[ModelVersion, bytes], Loaded],
        *, on_failure: Callable[[ModelVersion, str], None] = lambda *_: None,
        on_change: Callable[[str, Served | None], None] = lambda *_: None, clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self._catalogue, self._load, self._on_failure, self._on_change = catalogue, load, on_failure, on_change
        self._clock = clock
        self.uri = catalogue.uri
        self.served: Mapping[str, Served] = {}
        self.failures: Mapping[ModelVersion, LoadFailure] = {}
        self.trouble = ""
        """Problems of the last refresh with the store or with a model's traffic; empty without any."""
        self.has_refreshed = False

    def follow(self, seconds: float, stop: threading.Event) -> None:
        """Refreshes every so many seconds until `stop` is set."""
        while not stop.is_set():
            try:
                self.refresh()
            except Exception as error:  # must not end the thread: loaded versions keep answering
                self.trouble = str(error)
                log.exception("checking for new versions failed; retrying")
            stop.wait(seconds)

    def refresh(self) -> None:
        """Reads the catalogue once, loads the new versions that should answer, and lets them take over."""
        try:
            models = self._catalogue.list_models()
        except StoreError:
            models = {}
        trouble = "; ".join(self._catalogue.problems)
        if trouble and trouble != self.trouble:
            log.warning("loaded versions keep answering: %s", trouble)
        self.trouble = trouble
        for name, (versions, traffic) in sorted(models.items()):
            if traffic is not None:  # with invalid traffic, the loaded versions keep answering
                self._update(name, versions, traffic)
        for name in [name for name in self.served if name not in models and not self._catalogue.is_unreachable]:
            self._take_down(name)
        if not self.has_refreshed and not models and not trouble:
            log.info("nothing is published in %s yet: %s", self.uri, self._catalogue.how_to_publish)
        self.has_refreshed = True

    def _update(self, name: str, versions: list[int], traffic: Traffic) -> None:
        before, split = self.served.get(name), traffic.split
        candidates = list(reversed(versions)) if split.kind == "latest" else [split.version or 0]
        primary = self._first_loadable(name, candidates, before)
        canary = self._first_loadable(name, [split.canary], before) if split.canary else None
        if primary is None:  # the current version keeps answering; a canary alone must not get all requests
            primary = before.primary if before else None
        if primary is None:
            return
        now = Served(split, primary, canary)
        if before is None or _entries(before) != _entries(now) or before.split != split:
            self.served = {**self.served, name: now}
            log.info("%s: %s answers: %s", name, f"version {primary.entry.version}", split)
            self._on_change(name, now)
        self._catalogue.prune_copies(name, {entry.version for entry in _entries(now)}, traffic)
        self._forget_failures(name, versions)

    def _first_loadable(self, name: str, versions: Collection[int], before: Served | None) -> Loaded | None:
        """Returns the first of these versions that is loaded or can be."""
        for version in versions:
            if before and (loaded := before.version(version)):
                return loaded
            if loaded := self._try_to_load(ModelVersion(name, version)):
                return loaded
        return None

    def _try_to_load(self, entry: ModelVersion) -> Loaded | None:
        failure = self.failures.get(entry)
        if failure and self._clock() < failure.retry_at:
            return None
        try:
            loaded = self._load(entry, self._catalogue.fetch(entry))
        except (FedpipeError, OSError, MemoryError) as error:
            attempts = failure.attempts + 1 if failure else 1
            delay = min(_LONGEST_RETRY_SECONDS, _RETRY_SECONDS * 2 ** (attempts - 1))
            self.failures = {**self.failures, entry: LoadFailure(str(error), attempts, self._clock() + delay)}
            log.error("%s does not take over: %s", entry, error)
            self._on_failure(entry, str(error))
            return None
        self.failures = {e: f for e, f in self.failures.items() if e != entry}
        return loaded

    def _forget_failures(self, name: str, versions: list[int]) -> None:
        """Removes failures of versions that no longer exist."""
        self.failures = {e: f for e, f in self.failures.items() if e.name != name or e.version in versions}

    def _take_down(self, name: str) -> None:
        self.served = {n: s for n, s in self.served.items() if n != name}
        log.warning("%s was removed, and is no longer served", name)
        self._on_change(name, None)


def _entries(served: Served) -> list[ModelVersion]:
    return [one.entry for one in served.loaded]
