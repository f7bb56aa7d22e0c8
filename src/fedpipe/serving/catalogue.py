"""The models that can be served: `<name>/<version>/model.onnx` below a store or a folder, and copies of them here.

What is loaded has the digest that its origin tells and, where the coordinator is enrolled, its signature. A copy was
verified when it was made; while the store can be reached, its signature is checked again.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Literal, NamedTuple

from fedpipe.errors import (
    CorruptError,
    FedpipeError,
    InputError,
    NotFoundError,
    StoreError,
    StoreUnavailableError,
)
from fedpipe.federation.file import read_federation
from fedpipe.identity.enrolment import NOBODY, Enrolled, find_enrolled
from fedpipe.registry.publication import ModelVersion, Origin, check_publication, find_origin, read_model, versions
from fedpipe.serving.traffic import Traffic, read_traffic
from fedpipe.store import LocalStore, Store, chosen_uri, keys, open_store
from fedpipe.store.objects import digest_of, encode

log = logging.getLogger("fedpipe")
_DEADLINE = 5.0
"""Seconds after which a store counts as unreachable: versions that are loaded go on meanwhile."""


class Home(NamedTuple):
    """A folder of `<name>/<version>/model.onnx`, and the federation that it belongs to, if to any."""

    models: Store
    federation: Store | None = None

    def enrolled(self) -> Enrolled:
        """Who may publish here. Raises StoreError and CorruptError."""
        return NOBODY if self.federation is None else find_enrolled(self.federation)


class Location(NamedTuple):
    """Where models are.

    Args:
        store: a store, or a folder of it.
        holds: what is below: `models` by name, a `federation`, whose `models/` they are in, or `any` of it: also
            several federations.
        is_local: whether it is a folder of this machine.
    """

    store: Store
    holds: Literal["models", "federation", "any"]
    is_local: bool

    def homes(self) -> list[Home]:
        """Folders that hold `<name>/<version>/model.onnx`. Raises StoreError."""
        if self.holds == "models":
            return [Home(self.store)]
        this = _home(self.store)
        if self.holds == "federation" or this.models.folders():
            return [this]
        try:
            folders = self.store.folders()
        except StoreUnavailableError:
            raise
        except StoreError:  # a user that may list the models of one federation, of which there are none yet
            return [this]
        return [this] if keys.MODELS in folders else [_home(self.store.below(folder)) for folder in folders]

    def home_of(self, name: str) -> Home:
        """The folder that holds a model. Raises NotFoundError and StoreError."""
        known: list[str] = []
        for home in self.homes():
            there = versions(home.models)
            if name in there:
                return home
            known += there
        raise NotFoundError(
            f"there is no model {name!r}",
            where=self.store.uri,
            remedy=f"There are: {', '.join(sorted(known)) or 'none'}.",
        )


def _home(federation: Store) -> Home:
    return Home(federation.below(keys.MODELS), federation)


def locate(*, source: Path | None = None, store: str | None = None, folder: Path | None = None) -> Location:
    """Where the models are.

    Args:
        source: a federation file, which names the store.
        store: URI of a store, of one federation in it or of all; with `source`, instead of the file's.
        folder: a folder of `<name>/<version>/model.onnx`.

    Raises:
        InputError: none of them, or a folder beside others, or a folder that is not there.
        FederationError: the federation file is wrong.
        StoreError: the URI is wrong, or there are no credentials.
    """
    if (folder is not None and (source or store)) or not (source or store or folder):
        raise InputError(
            "models come from one place", remedy="Give a federation file by -f, or --store URI, or --models DIR."
        )
    if folder is not None:
        if not folder.is_dir():
            raise InputError("there is no such folder", where=str(folder), remedy="It holds NAME/VERSION/model.onnx.")
        return Location(LocalStore(folder), "models", is_local=True)
    federation = read_federation(source) if source else None
    uri = chosen_uri(store, federation.store_uri if federation else "")
    opened = open_store(uri, deadline=_DEADLINE)
    is_local = uri.startswith("file://")
    if federation:
        return Location(opened.below(federation.name), "federation", is_local)
    return Location(opened, "any", is_local)


class Catalogue:
    """Reads models, and keeps a copy of what is served so that a restart needs no store.

    Args:
        place: where they are.
        cache: a folder of this machine for copies; None when the models are on it.
    """

    def __init__(self, place: Location, cache: Store | None = None) -> None:
        self._place, self._cache, self.uri = place, cache, place.store.uri
        self._homes: dict[str, Home] = {}
        self.is_lost = False
        """Whether the store did not answer the last time."""
        self.troubles: list[str] = []
        """What was wrong the last time."""

    def look(self) -> dict[str, tuple[list[int], Traffic | None]]:
        """Versions and policy of each model, None for one that is spoiled; from the copy while the store is lost.

        Raises:
            StoreError: the store does not answer and there is no copy.
        """
        self.troubles, self.is_lost = [], False
        try:
            return self._seen(self._place.homes())
        except StoreError as error:
            self.troubles, self.is_lost = [str(error)], True
            if self._cache is None:
                raise
            return self._seen([Home(self._cache)])

    def _seen(self, homes: list[Home]) -> dict[str, tuple[list[int], Traffic | None]]:
        found: dict[str, tuple[list[int], Traffic | None]] = {}
        for home in homes:
            for name, numbers in versions(home.models).items():
                if name in found:
                    self.troubles.append(f"{home.models.uri}: there is another model {name!r}, which is not served")
                    continue
                found[name] = numbers, self._policy(home.models, name)
                if home.models is not self._cache:
                    self._homes[name] = home
        return found

    def _policy(self, home: Store, name: str) -> Traffic | None:
        try:
            return read_traffic(home, name)[0]
        except CorruptError as error:
            self.troubles.append(str(error))
            return None

    def fetch(self, entry: ModelVersion) -> bytes:
        """The model's bytes, which have the digest of its origin, signed where the coordinator is enrolled.

        Raises:
            CorruptError: they do not, the origin cannot be read, or the enrolled coordinator did not sign it.
            StoreError: the store does not answer and there is no copy, or the model is too large.
        """
        home, copy = self._homes.get(entry.name), self._copied(entry)
        try:
            if home is None:
                raise StoreUnavailableError("the store cannot be reached, and there is no copy", where=str(entry))
            origin = self._signed_origin(home, entry)
            if copy is not None and origin is not None and digest_of(copy) == origin.digest:
                return copy
            data = read_model(home.models, entry, origin)
        except StoreUnavailableError:
            if copy is None:
                raise
            return copy
        self._keep(entry, data)
        return data

    def _copied(self, entry: ModelVersion) -> bytes | None:
        """The copy on this machine; None where there is none, or it is spoiled."""
        if self._cache is None:
            return None
        try:
            return read_model(self._cache, entry, self._origin(self._cache, entry))
        except (FedpipeError, OSError):
            return None

    def _signed_origin(self, home: Home, entry: ModelVersion) -> Origin | None:
        """What the version was made from, by who may say so. Raises CorruptError and StoreError."""
        origin = self._origin(home.models, entry)
        if origin is not None:
            check_publication(home.models, entry, origin, home.enrolled())
        return origin

    def _origin(self, models: Store, entry: ModelVersion) -> Origin | None:
        origin = find_origin(models, entry)
        if origin is None and self._place.holds != "models":
            raise CorruptError("the version does not tell its origin", where=f"{models.uri}/{keys.origin(*entry)}")
        return origin

    def _keep(self, entry: ModelVersion, data: bytes) -> None:
        """Copies a version; a full disk is no reason not to serve."""
        if self._cache is None:
            return
        try:
            for key in (keys.origin(*entry), keys.traffic(entry.name)):
                self._copy(entry.name, key)
            self._cache.replace(keys.model(*entry), data)
        except (OSError, StoreError) as error:
            log.warning("%s is not kept on this machine, a restart will need the store: %s", entry, error)

    def _copy(self, name: str, key: str) -> None:
        assert self._cache is not None
        try:
            self._cache.replace(key, self._homes[name].models.read(key).data)
        except NotFoundError:
            self._cache.delete(key)

    def settle(self, name: str, served: set[int], policy: Traffic) -> None:
        """Brings the copy of a model to what is served: its policy, and no other versions."""
        if self._cache is None or self.is_lost:
            return
        try:
            if read_traffic(self._cache, name)[0] != policy:
                self._cache.replace(keys.traffic(name), encode(policy))
            for number in set(versions(self._cache).get(name, [])) - served:
                self._cache.delete(keys.model(name, number))
                self._cache.delete(keys.origin(name, number))
        except (OSError, StoreError) as error:
            log.warning("the copy of %s on this machine is not up to date: %s", name, error)
