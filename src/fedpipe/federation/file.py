"""Reads federation.yaml; every mistake is reported with the path of its key and the remedy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from fedpipe.codec import converted
from fedpipe.errors import FederationError
from fedpipe.federation.confidential import check_no_credentials_in
from fedpipe.federation.federation import Federation
from fedpipe.federation.loading import load
from fedpipe.federation.messages import explained
from fedpipe.federation.mistakes import mistakes
from fedpipe.federation.names import split_code
from fedpipe.federation.placement import StorePlace
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
    return resolved(parse_federation(load(path), where=str(path)), path.absolute().parent)


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
    full = dict(content)
    algorithm = full["algorithm"] = _named(full.get("algorithm", {"name": "averaging"}))
    if isinstance(algorithm, dict) and "rule" in algorithm:
        algorithm["rule"] = _named(algorithm["rule"])
    for section in (algorithm, simulation := _copied(full.get("simulation", {}))):
        if isinstance(section, dict) and "server_optimizer" in section:
            section["server_optimizer"] = _server(section["server_optimizer"])
    return full | {"simulation": simulation}


def _named(given: Any) -> Any:
    return {"name": given} if isinstance(given, str) else _copied(given)


def _copied(given: Any) -> Any:
    return dict(given) if isinstance(given, dict) else given


def _server(given: Any) -> Any:
    optimizer = _named(given)
    if isinstance(optimizer, dict) and optimizer.setdefault("name", "sgd") == "sgd":
        optimizer.setdefault("learning_rate", 1.0)
    return optimizer


def check_federation(federation: Federation, *, where: str) -> None:
    """Check rules that types cannot express. Raises FederationError for the first mistake."""
    for path, what, remedy in mistakes(federation):
        raise FederationError(what, where=f"{where}: {path}", remedy=remedy)


def resolved(federation: Federation, folder: Path) -> Federation:
    """Return the same federation with absolute paths and URIs."""

    def place(uri: str) -> str:
        if uri.startswith("file://"):
            return file_uri((folder / path_of(uri)).resolve())
        return uri if is_uri(uri) or not uri else str((folder / uri).resolve())

    if isinstance(federation.store, str):
        store: str | StorePlace = check_uri(federation.store, folder=folder)
    else:
        store = msgspec.structs.replace(federation.store, uri=check_uri(federation.store.uri, folder=folder))
    learners = tuple(msgspec.structs.replace(item, data=place(item.data)) for item in federation.learners)
    data = msgspec.structs.replace(federation.data, uri=place(federation.data.uri))

    def code(name: str) -> str:
        file, function = split_code(name)
        return name and f"{place(file)}:{function}"

    simulation = msgspec.structs.replace(
        federation.simulation, process=code(federation.simulation.process), model=code(federation.simulation.model)
    )
    return msgspec.structs.replace(
        federation, store=store, learners=learners, data=data, model=code(federation.model), simulation=simulation
    )
