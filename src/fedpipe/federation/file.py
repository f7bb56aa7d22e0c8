"""Reads federation.yaml; every mistake is reported with the path of its key and the remedy."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from fedpipe.codec import converted
from fedpipe.errors import FederationError
from fedpipe.federation.confidential import check_no_credentials_in
from fedpipe.federation.data import AUTO, SHEETS
from fedpipe.federation.federation import Federation
from fedpipe.federation.loading import load
from fedpipe.federation.messages import explained
from fedpipe.federation.mistakes import mistakes
from fedpipe.federation.names import split_code
from fedpipe.federation.placement import StorePlace
from fedpipe.federation.split import with_aliases
from fedpipe.federation.values import check_values
from fedpipe.store import check_uri, file_uri, is_uri, path_of


def read_federation(path: str | Path) -> Federation:
    """Read and check a federation file; relative paths in it start at its folder.

    Args:
        path: a YAML file.

    Raises:
        FederationError: names the key, the mistake and the remedy.

    >>> import fedpipe
    >>> fedpipe.read_federation("demo/federation.yaml").training.rounds
    10
    """
    path = Path(path)
    folder = path.absolute().parent
    return resolved(parse_federation(with_tables(load(path), folder), where=str(path)), folder)


def with_tables(content: Any, folder: Path) -> Any:
    """Take the columns of CSV, TSV and Parquet by name where `data.features` is not given.

    Taken by their places, columns in another order would be silently wrong. A `load` of model.py may return arrays, so
    its data count as arrays.

    Args:
        content: of a federation file.
        folder: where relative paths start.
    """
    data, learners = (content.get(key) for key in ("data", "learners")) if isinstance(content, dict) else (None, None)
    data = {} if data is None else data
    if not isinstance(content, dict) or not isinstance(data, dict) or "features" in data:
        return content
    if isinstance(algorithm := content.get("algorithm"), dict) and algorithm.get("name") == "split":
        return content  # parties hold different columns, so there is no one table
    own = [item.get("data") for item in learners if isinstance(item, dict)] if isinstance(learners, list) else []
    places = [place for place in (data.get("uri"), *own) if place]
    if not places or not all(str(place).lower().endswith(SHEETS) for place in places):
        return content
    if any(own) and _reads_itself(folder / split_code(str(content.get("model", "")))[0]):
        return content
    return {**content, "data": {**data, "features": AUTO}}


def _reads_itself(file: Path) -> bool:
    """Return whether a user's file has a function `load`; a file that cannot be read is reported later."""
    try:
        return re.search(r"^(?:def|from .* import .*) *\bload\b|^load *=", file.read_text(), re.MULTILINE) is not None
    except (OSError, ValueError):
        return False


def parse_federation(content: Any, *, where: str = "federation") -> Federation:
    """Check builtin values (from YAML or JSON) and return the federation. Raises FederationError."""
    if not isinstance(content, dict):
        remedy = "Write a working one with `fedpipe init DIR`."
        raise FederationError("is not a table of keys and values", where=where, remedy=remedy)
    check_no_credentials_in(content, where=where)
    check_values(content, where=where)
    full = in_full(content)
    try:
        federation = converted(full, Federation)
    except msgspec.ValidationError as error:
        raise explained(str(error), where, full) from error
    check_federation(federation, where=where)
    return federation


def in_full(content: dict[str, Any]) -> dict[str, Any]:
    """Expand short forms: a name alone, and the server's plain step."""
    full = {name: _copied(section) for name, section in content.items()}
    full["algorithm"] = _named(full.get("algorithm", {"name": "averaging"}))
    full.setdefault("simulation", {})
    for section, short in _SHORT.items():
        table = full.get(section)
        if isinstance(table, dict):
            table |= {name: expand(table[name]) for name, expand in short.items() if name in table}
    return with_aliases(full)


def _named(given: Any, key: str = "name") -> Any:
    return {key: given} if isinstance(given, str) else _copied(given)


def _all_named(given: Any) -> Any:
    return [_named(one) for one in given] if isinstance(given, list) else given


def _copied(given: Any) -> Any:
    return dict(given) if isinstance(given, dict) else given


def _server(given: Any) -> Any:
    optimizer = _named(given)
    if isinstance(optimizer, dict) and optimizer.setdefault("name", "sgd") == "sgd":
        optimizer.setdefault("learning_rate", 1.0)
    return optimizer


_SHORT: dict[str, dict[str, Callable[[Any], Any]]] = {
    "algorithm": {"rule": _named, "before": _all_named, "schedule": _named, "server_optimizer": _server},
    "data": {"shards": lambda given: _named(given, "by")},
    "simulation": {"client_optimizer": _named, "server_optimizer": _server},
    "training": {"method": _named, "schedule": _named},
}
"""Keys whose value may be a name alone, by section."""


def check_federation(federation: Federation, *, where: str) -> None:
    """Check rules that types cannot express. Raises FederationError for the first mistake."""
    for path, what, remedy in mistakes(federation):
        raise FederationError(what, where=f"{where}: {path}", remedy=remedy)


def resolved(federation: Federation, folder: Path) -> Federation:
    """Return the same federation with absolute paths and URIs."""

    def place(uri: str) -> str:
        if uri.startswith("file://"):
            return file_uri((folder / path_of(uri)).resolve())
        if is_uri(uri) or not uri:
            return uri
        return str((folder / uri).resolve())

    def dataset(uri: str) -> str:
        found = place(uri)
        return found if found.isprintable() else file_uri(Path(found))  # a pipeline file cannot hold such a path

    if isinstance(federation.store, str):
        store: str | StorePlace = check_uri(federation.store, folder=folder)
    else:
        store = msgspec.structs.replace(federation.store, uri=check_uri(federation.store.uri, folder=folder))
    learners = tuple(msgspec.structs.replace(item, data=dataset(item.data)) for item in federation.learners)
    data = msgspec.structs.replace(federation.data, uri=dataset(federation.data.uri))

    def code(name: str) -> str:
        file, function = split_code(name)
        return name and f"{place(file)}:{function}"

    simulation = msgspec.structs.replace(
        federation.simulation, process=code(federation.simulation.process), model=code(federation.simulation.model)
    )
    return msgspec.structs.replace(
        federation, store=store, learners=learners, data=data, model=code(federation.model), simulation=simulation
    )
