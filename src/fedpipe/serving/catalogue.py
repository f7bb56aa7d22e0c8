"""The models that can be served: `<name>/<version>/model.onnx` below a store or a folder, and copies of them here."""

from __future__ import annotations

import logging
import re
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
from fedpipe.federation_file import read_federation
from fedpipe.manifests import Origin
from fedpipe.objects import digest_of, encode, find
from fedpipe.serving.policy import Policy, policy_key, read_policy
from fedpipe.store import LocalStore, Store, chosen_uri, open_store

log = logging.getLogger("fedpipe")
LARGEST = 2 * 2**30
"""Bytes of a model: what one protobuf message can hold."""
_DEADLINE = 5.0
"""Seconds after which a store counts as unreachable: versions that are loaded go on meanwhile."""
_MODEL = re.compile(r"([A-Za-z0-9][A-Za-z0-9_.\-]{0,99})/([1-9]\d{0,8})/model\.onnx")


class Entry(NamedTuple):
    """A version that may be served."""

    name: str
    version: int

    @property
    def key(self) -> str:
        """Where its model is."""
        return f"{self.name}/{self.version}/model.onnx"

    @property
    def origin_key(self) -> str:
        """Where it is told what it was made from."""
        return f"{self.name}/{self.version}/origin.json"

    def __str__(self) -> str:
        return f"{self.name} version {self.version}"


class Place(NamedTuple):
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

    def homes(self) -> list[Store]:
        """Folders that hold `<name>/<version>/model.onnx`. Raises StoreError."""
        if self.holds == "models":
            return [self.store]
        models = self.store.below("models")
        if self.holds == "federation" or models.folders():
            return [models]
        try:
            folders = self.store.folders()
        except StoreUnavailableError:
            raise
        except StoreError:  # a user that may list the models of one federation, of which there are none yet
            return [models]
        return [models] if "models" in folders else [self.store.below(folder).below("models") for folder in folders]

    def home_of(self, name: str) -> Store:
        """The folder that holds a model. Raises NotFoundError and StoreError."""
        known: list[str] = []
        for home in self.homes():
            there = versions(home)
            if name in there:
                return home
            known += there
        raise NotFoundError(
            f"there is no model {name!r}",
            where=self.store.uri,
            remedy=f"There are: {', '.join(sorted(known)) or 'none'}.",
        )


def locate(*, source: Path | None = None, store: str | None = None, folder: Path | None = None) -> Place:
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
        return Place(LocalStore(folder), "models", is_local=True)
    federation = read_federation(source) if source else None
    uri = chosen_uri(store, federation.store_uri if federation else "")
    opened = open_store(uri, deadline=_DEADLINE)
    is_local = uri.startswith("file://")
    if federation:
        return Place(opened.below(federation.name), "federation", is_local)
    return Place(opened, "any", is_local)


def versions(models: Store) -> dict[str, list[int]]:
    """The published versions by model, ascending. Raises StoreError."""
    found: dict[str, list[int]] = {}
    for key in models.keys():  # noqa: SIM118  (of a store)
        if match := _MODEL.fullmatch(key):
            found.setdefault(match[1], []).append(int(match[2]))
    return {name: sorted(numbers) for name, numbers in found.items()}


class Catalogue:
    """Reads models, and keeps a copy of what is served so that a restart needs no store.

    Args:
        place: where they are.
        cache: a folder of this machine for copies; None when the models are on it.
    """

    def __init__(self, place: Place, cache: Store | None = None) -> None:
        self._place, self._cache, self.uri = place, cache, place.store.uri
        self._homes: dict[str, Store] = {}
        self.is_lost = False
        """Whether the store did not answer the last time."""
        self.troubles: list[str] = []
        """What was wrong the last time."""

    def look(self) -> dict[str, tuple[list[int], Policy | None]]:
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
            return self._seen([self._cache])

    def _seen(self, homes: list[Store]) -> dict[str, tuple[list[int], Policy | None]]:
        found: dict[str, tuple[list[int], Policy | None]] = {}
        for home in homes:
            for name, numbers in versions(home).items():
                if name in found:
                    self.troubles.append(f"{home.uri}: there is another model {name!r}, which is not served")
                    continue
                found[name] = numbers, self._policy(home, name)
                if home is not self._cache:
                    self._homes[name] = home
        return found

    def _policy(self, home: Store, name: str) -> Policy | None:
        try:
            return read_policy(home, name)[0]
        except CorruptError as error:
            self.troubles.append(str(error))
            return None

    def fetch(self, entry: Entry) -> bytes:
        """The model's bytes, which have the digest of its origin.

        Raises:
            CorruptError: they do not, or the origin cannot be read.
            StoreError: the store does not answer and there is no copy, or the model is too large.
        """
        if self._cache is not None:
            try:
                return self._read(self._cache, entry)
            except (FedpipeError, OSError):  # not there, or spoiled
                pass
        if entry.name not in self._homes:
            raise StoreUnavailableError("the store cannot be reached, and there is no copy", where=str(entry))
        data = self._read(self._homes[entry.name], entry)
        self._keep(entry, data)
        return data

    def _read(self, models: Store, entry: Entry) -> bytes:
        origin = find(models, entry.origin_key, Origin)
        if origin is None and self._place.holds != "models":
            raise CorruptError("the version does not tell its origin", where=f"{models.uri}/{entry.origin_key}")
        data = models.read(entry.key, limit=LARGEST).data
        if origin is not None and digest_of(data) != origin.digest:
            raise CorruptError(
                f"the model has the digest {digest_of(data)}, its origin says {origin.digest}",
                where=f"{models.uri}/{entry.key}",
            )
        return data

    def _keep(self, entry: Entry, data: bytes) -> None:
        """Copies a version; a full disk is no reason not to serve."""
        if self._cache is None:
            return
        try:
            for key in (entry.origin_key, policy_key(entry.name)):
                self._copy(entry.name, key)
            self._cache.replace(entry.key, data)
        except (OSError, StoreError) as error:
            log.warning("%s is not kept on this machine, a restart will need the store: %s", entry, error)

    def _copy(self, name: str, key: str) -> None:
        assert self._cache is not None
        try:
            self._cache.replace(key, self._homes[name].read(key).data)
        except NotFoundError:
            self._cache.delete(key)

    def settle(self, name: str, served: set[int], policy: Policy) -> None:
        """Brings the copy of a model to what is served: its policy, and no other versions."""
        if self._cache is None or self.is_lost:
            return
        try:
            if read_policy(self._cache, name)[0] != policy:
                self._cache.replace(policy_key(name), encode(policy))
            for key in list(self._cache.keys(f"{name}/")):
                match = _MODEL.fullmatch(key)
                if match and int(match[2]) not in served:
                    self._cache.delete(key)
                    self._cache.delete(Entry(name, int(match[2])).origin_key)
        except (OSError, StoreError) as error:
            log.warning("the copy of %s on this machine is not up to date: %s", name, error)
