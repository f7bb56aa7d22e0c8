"""Lists and fetches the models of a store or a folder, `<name>/<version>/model.onnx`, and keeps copies of them.

A fetched model has the digest of its origin and, if a coordinator is enrolled, that coordinator's signature. A copy is
verified when it is made; while the store is reachable, its signature is checked again.
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
from fedpipe.federation.federation import Federation
from fedpipe.federation.file import read_federation
from fedpipe.identity.enrolment import NOBODY, Enrolled, find_enrolled
from fedpipe.registry.publication import ModelVersion, Origin, check_publication, find_origin, read_model, versions
from fedpipe.serving.traffic import Traffic, read_traffic
from fedpipe.store import LocalStore, Store, chosen_uri, keys, open_store
from fedpipe.store.objects import digest_of, encode

log = logging.getLogger("fedpipe")
_DEADLINE = 5.0
"""Seconds after which a store counts as unreachable; loaded versions keep answering."""


class ModelFolder(NamedTuple):
    """Represents a folder of `<name>/<version>/model.onnx`, and the federation that it belongs to, if any."""

    models: Store
    federation: Store | None = None

    def enrolled(self) -> Enrolled:
        """Returns the identities that may publish here. Raises StoreError and CorruptError."""
        return NOBODY if self.federation is None else find_enrolled(self.federation)


class Location(NamedTuple):
    """Locates models.

    Args:
        store: a store, or a folder of it.
        holds: the content of the store: `models` by name, a `federation` with models in `models/`, or `any` of these,
            including several federations.
        is_local: whether it is a folder of this machine.
        name: the only model that counts; empty for all.
        version: its only version; 0 for all.
    """

    store: Store
    holds: Literal["models", "federation", "any"]
    is_local: bool
    name: str = ""
    version: int = 0

    def folders(self) -> list[ModelFolder]:
        """Lists the folders with models. Raises StoreError."""
        if self.holds == "models":
            return [ModelFolder(self.store)]
        own = _folder_of(self.store)
        if self.holds == "federation" or own.models.folders():
            return [own]
        try:
            names = self.store.folders()
        except StoreUnavailableError:
            raise
        except StoreError:  # a user that may only list the models of one federation, which has none yet
            return [own]
        return [own] if "models" in names else [_folder_of(self.store.below(name)) for name in names]

    def chosen(self, models: dict[str, list[int]]) -> dict[str, list[int]]:
        """Returns those models and versions of a folder that count."""
        if not self.name:
            return models
        numbers = models.get(self.name, [])
        kept = [number for number in numbers if number == self.version] if self.version else numbers
        return {self.name: kept} if kept else {}

    def find_folder(self, name: str) -> ModelFolder:
        """Returns the folder that holds a model. Raises NotFoundError and StoreError."""
        available: list[str] = []
        for folder in self.folders():
            models = self.chosen(versions(folder.models))
            if name in models:
                return folder
            available += models
        raise NotFoundError(
            f"there is no model {name!r}",
            where=self.store.uri,
            remedy=f"Choose one of: {', '.join(sorted(available))}."
            if available
            else "Publish one with `fedpipe run`.",
        )


def _folder_of(federation: Store) -> ModelFolder:
    return ModelFolder(federation.below(keys.MODELS), federation)


def locate(
    *, source: Path | Federation | None = None, store: str | None = None, folder: Path | None = None
) -> Location:
    """Locates models by the options of a command.

    Args:
        source: a federation or its file, which names the store.
        store: URI of a store, of one federation in it or of all; with `source`, instead of the file's. Or
            `model-registry://[HOST:PORT/]NAME[/VERSION]`, an entry of the Model Registry, alone.
        folder: a folder of `<name>/<version>/model.onnx`.

    Raises:
        InputError: no option, a folder combined with others, or a folder that does not exist.
        FederationError: the federation file is wrong.
        StoreError: the URI is wrong, or there are no credentials.
        NotFoundError, ServiceError: the registry has no such entry, or does not answer.
    """
    if store and store.startswith("model-registry://") and not (source or folder):
        from fedpipe.tracking.registered import find_registered  # reads stories, which a server does not

        found = find_registered(store)
        place = open_store(found.store, deadline=_DEADLINE)
        return Location(place, "federation", found.store.startswith("file://"), found.name, found.version)
    if (folder is not None and (source or store)) or not (source or store or folder):
        raise InputError(
            "models come from exactly one location",
            remedy="Pass a federation file with -f, --store URI or --models DIR.",
        )
    if folder is not None:
        if not folder.is_dir():
            remedy = "Pass a folder of NAME/VERSION/model.onnx."
            raise InputError("there is no such folder", where=str(folder), remedy=remedy)
        return Location(LocalStore(folder), "models", is_local=True)
    federation = read_federation(source) if isinstance(source, Path) else source
    uri = chosen_uri(store, federation.store_uri if federation else "")
    opened = open_store(uri, deadline=_DEADLINE)
    is_local = uri.startswith("file://")
    if federation:
        return Location(opened.below(federation.name), "federation", is_local)
    return Location(opened, "any", is_local)


class Catalogue:
    """Reads models, and keeps copies of the served ones so that a restart does not need the store.

    Args:
        location: where the models are.
        cache: a folder of this machine for copies; None if the models are on it.
    """

    def __init__(self, location: Location, cache: Store | None = None) -> None:
        self._location, self._cache, self.uri = location, cache, location.store.uri
        self._folders: dict[str, ModelFolder] = {}
        self.is_unreachable = False
        """Whether the store did not answer the last `list_models`."""
        self.problems: list[str] = []
        """Problems of the last `list_models`."""

    @property
    def how_to_publish(self) -> str:
        """Returns what a user does for a first model."""
        if self._location.holds == "models":
            return "write NAME/VERSION/model.onnx there. It is served within seconds."
        return "train and publish a model with `fedpipe run`. It is served within seconds."

    def list_models(self) -> dict[str, tuple[list[int], Traffic | None]]:
        """Returns versions and traffic of each model, from the copies while the store is unreachable.

        The traffic is None if it is invalid, or if the store does not give it.

        Raises:
            StoreError: the store does not answer, and there is no cache.
        """
        self.problems, self.is_unreachable = [], False
        try:
            return self._list(self._location.folders())
        except StoreError as error:
            self.problems, self.is_unreachable = [str(error)], True
            if self._cache is None:
                raise
            return self._list([ModelFolder(self._cache)])

    def _list(self, folders: list[ModelFolder]) -> dict[str, tuple[list[int], Traffic | None]]:
        models: dict[str, tuple[list[int], Traffic | None]] = {}
        for folder in folders:
            for name, numbers in self._location.chosen(versions(folder.models)).items():
                if name in models:
                    self.problems.append(f"{folder.models.uri}: a second model {name!r} is not served")
                    continue
                traffic = Traffic() if self._location.version else self._read_traffic(folder.models, name)
                models[name] = numbers, traffic
                if folder.models is not self._cache:
                    self._folders[name] = folder
        return models

    def _read_traffic(self, models: Store, name: str) -> Traffic | None:
        try:
            return read_traffic(models, name)[0]
        except StoreUnavailableError:
            raise
        except (CorruptError, StoreError) as error:  # one object; the store has just listed all of them
            self.problems.append(str(error))
            return None

    def fetch(self, entry: ModelVersion) -> bytes:
        """Returns a model's bytes, with the digest of its origin, and signed if the coordinator is enrolled.

        Raises:
            CorruptError: the digest differs, the origin cannot be read, or the enrolled coordinator did not sign it.
            StoreError: the store does not answer and there is no copy, or the model is too large.
        """
        folder, copy = self._folders.get(entry.name), self._read_copy(entry)
        try:
            if folder is None:
                raise StoreUnavailableError("the store cannot be reached, and there is no copy", where=str(entry))
            origin = self._signed_origin(folder, entry)
            if copy is not None and origin is not None and digest_of(copy) == origin.digest:
                return copy
            data = read_model(folder.models, entry, origin)
        except StoreUnavailableError:
            if copy is None:
                raise
            return copy
        self._write_copy(entry, data)
        return data

    def _read_copy(self, entry: ModelVersion) -> bytes | None:
        """Returns the copy on this machine; None if there is none, or if it is corrupt."""
        if self._cache is None:
            return None
        try:
            return read_model(self._cache, entry, self._origin(self._cache, entry))
        except (FedpipeError, OSError):
            return None

    def _signed_origin(self, folder: ModelFolder, entry: ModelVersion) -> Origin | None:
        """Returns the origin of a version, with its signature checked. Raises CorruptError and StoreError."""
        origin = self._origin(folder.models, entry)
        if origin is not None:
            check_publication(folder.models, entry, origin, folder.enrolled())
        return origin

    def _origin(self, models: Store, entry: ModelVersion) -> Origin | None:
        origin = find_origin(models, entry)
        if origin is None and self._location.holds != "models":
            raise CorruptError("the version has no origin", where=f"{models.uri}/{keys.origin(*entry)}")
        return origin

    def _write_copy(self, entry: ModelVersion, data: bytes) -> None:
        """Copies a version to this machine; a full disk does not prevent serving."""
        if self._cache is None:
            return
        try:
            for key in (keys.origin(*entry), keys.traffic(entry.name)):
                self._copy(entry.name, key)
            self._cache.replace(keys.model(*entry), data)
        except (OSError, FedpipeError) as error:
            log.warning("%s was not copied to this machine, so a restart needs the store: %s", entry, error)

    def _copy(self, name: str, key: str) -> None:
        assert self._cache is not None
        try:
            self._cache.replace(key, self._folders[name].models.read(key).data)
        except NotFoundError:
            self._cache.delete(key)

    def prune_copies(self, name: str, served: set[int], traffic: Traffic) -> None:
        """Updates the copied traffic of a model, and deletes copies of versions that are not served."""
        if self._cache is None or self.is_unreachable:
            return
        try:
            if read_traffic(self._cache, name)[0] != traffic:
                self._cache.replace(keys.traffic(name), encode(traffic))
            for number in set(versions(self._cache).get(name, [])) - served:
                self._cache.delete(keys.model(name, number))
                self._cache.delete(keys.origin(name, number))
        except (OSError, FedpipeError) as error:
            log.warning("the copy of %s on this machine is not up to date: %s", name, error)
