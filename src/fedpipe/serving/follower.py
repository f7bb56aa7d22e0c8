"""Follows the catalogue: new versions are loaded in the background and take over when they can answer."""

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
_RETRY = 60.0
"""Seconds after which a version that failed is tried again; doubled with every failure."""
_LONGEST_RETRY = 3600.0


class Served(NamedTuple):
    """Who answers for a model: never changed, only replaced as a whole."""

    rule: Split
    primary: Loaded
    canary: Loaded | None = None

    @property
    def loaded(self) -> list[Loaded]:
        """All versions that can answer."""
        return [one for one in (self.primary, self.canary) if one]

    def choose(self, number: int) -> Loaded:
        """Who answers the request of this number: of every n requests, n times `share` go to the canary, evenly."""
        if self.canary is None or int((number + 1) * self.rule.share) == int(number * self.rule.share):
            return self.primary
        return self.canary

    def version(self, version: int) -> Loaded | None:
        """A version that is loaded."""
        return next((one for one in self.loaded if one.entry.version == version), None)


class Failure(NamedTuple):
    """Why a version does not answer, how often it was tried, and when it is tried again (monotonic seconds)."""

    why: str
    tries: int
    again: float


class Follower:
    """Keeps `served` up to date.

    Args:
        catalogue: where models come from.
        load: loads a version; raises FedpipeError.
        failed: hears of each failure.
        changed: hears of each model whose answers come from other versions now.
        clock: seconds.
    """

    def __init__(
        self, catalogue: Catalogue, load: Callable[[ModelVersion, bytes], Loaded],
        *, failed: Callable[[ModelVersion, str], None] = lambda *_: None,
        changed: Callable[[str, Served | None], None] = lambda *_: None, clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self._catalogue, self._load, self._failed, self._changed = catalogue, load, failed, changed
        self._clock = clock
        self.uri = catalogue.uri
        self.served: Mapping[str, Served] = {}
        self.failures: Mapping[ModelVersion, Failure] = {}
        self.trouble = ""
        """What was wrong with the store or a policy the last time; empty when nothing was."""
        self.looked = False

    def follow(self, seconds: float, ended: threading.Event) -> None:
        """Looks again and again until it is told to end."""
        while not ended.is_set():
            try:
                self.look()
            except Exception as error:  # whatever happens here, those who answer go on
                self.trouble = str(error)
                log.exception("looking for new versions failed; trying again")
            ended.wait(seconds)

    def look(self) -> None:
        """Looks once, loads what is new and wanted, and lets it take over."""
        try:
            found = self._catalogue.look()
        except StoreError:
            found = {}
        trouble = "; ".join(self._catalogue.troubles)
        if trouble and trouble != self.trouble:
            log.warning("what is loaded goes on: %s", trouble)
        self.trouble = trouble
        for name, (versions, policy) in sorted(found.items()):
            if policy is not None:  # whoever answers goes on under a policy that is spoiled
                self._update(name, versions, policy)
        for name in [name for name in self.served if name not in found and not self._catalogue.is_lost]:
            self._take_down(name)
        self.looked = True

    def _update(self, name: str, versions: list[int], policy: Traffic) -> None:
        before, rule = self.served.get(name), policy.rule
        candidates = list(reversed(versions)) if rule.kind == "latest" else [rule.version or 0]
        primary = self._first(name, candidates, before)
        canary = self._first(name, [rule.canary], before) if rule.canary else None
        if primary is None:  # whoever answers goes on; but a canary does not take all
            primary = before.primary if before else None
        if primary is None:
            return
        now = Served(rule, primary, canary)
        if before is None or _entries(before) != _entries(now) or before.rule != rule:
            self.served = {**self.served, name: now}
            log.info("%s: %s answers: %s", name, f"version {primary.entry.version}", rule)
            self._changed(name, now)
        self._catalogue.settle(name, {entry.version for entry in _entries(now)}, policy)
        self._forget(name, versions)

    def _first(self, name: str, versions: Collection[int], before: Served | None) -> Loaded | None:
        """The first of these versions that is loaded or can be."""
        for version in versions:
            if before and (loaded := before.version(version)):
                return loaded
            if loaded := self._loaded(ModelVersion(name, version)):
                return loaded
        return None

    def _loaded(self, entry: ModelVersion) -> Loaded | None:
        known = self.failures.get(entry)
        if known and self._clock() < known.again:
            return None
        try:
            loaded = self._load(entry, self._catalogue.fetch(entry))
        except (FedpipeError, OSError, MemoryError) as error:
            tries = known.tries + 1 if known else 1
            wait = min(_LONGEST_RETRY, _RETRY * 2 ** (tries - 1))
            self.failures = {**self.failures, entry: Failure(str(error), tries, self._clock() + wait)}
            log.error("%s does not take over: %s", entry, error)
            self._failed(entry, str(error))
            return None
        self.failures = {e: f for e, f in self.failures.items() if e != entry}
        return loaded

    def _forget(self, name: str, versions: list[int]) -> None:
        """Versions that are gone have not failed."""
        self.failures = {e: f for e, f in self.failures.items() if e.name != name or e.version in versions}

    def _take_down(self, name: str) -> None:
        self.served = {n: s for n, s in self.served.items() if n != name}
        log.warning("%s is no longer there: it answers no more", name)
        self._changed(name, None)


def _entries(served: Served) -> list[ModelVersion]:
    return [one.entry for one in served.loaded]
