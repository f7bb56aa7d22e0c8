"""Reads federation.yaml; every mistake is reported with the path of its key and the remedy."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import msgspec
import yaml
from msgspec import Struct

from fedpipe.errors import FederationError
from fedpipe.federation.confidential import check_no_credentials_in
from fedpipe.federation.federation import Federation
from fedpipe.federation.mistakes import mistakes
from fedpipe.federation.placement import StorePlace
from fedpipe.store import check_uri


class _Loader(yaml.SafeLoader):
    """Load safe YAML; refuse a key that is written twice, and read 1e-4 as a number as YAML 1.2 does."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for position, key in enumerate(keys):
            if key in keys[:position]:
                line = node.value[position][0].start_mark.line + 1
                raise yaml.YAMLError(f"line {line}: the key {key!r} is written twice")
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def read_federation(path: Path) -> Federation:
    """Read and check a federation file; relative paths in it start at its folder.

    Args:
        path: a YAML file.

    Raises:
        FederationError: names the key, the mistake and the remedy.
    """
    try:
        text = path.read_text()
    except OSError as error:
        raise FederationError(
            f"cannot be read: {error.strerror}",
            where=str(path),
            remedy="Write a working one with `fedpipe init DIR`.",
        ) from error
    except UnicodeDecodeError as error:
        raise FederationError("is not UTF-8 text", where=str(path)) from error
    try:
        content = yaml.load(text, Loader=_Loader)  # noqa: S506  (a subclass of the safe loader)
    except (yaml.YAMLError, TypeError) as error:
        raise FederationError(f"is not YAML: {' '.join(str(error).split())}", where=str(path)) from error
    federation = parse_federation(content, where=str(path))
    return _resolved(federation, path.absolute().parent)


def parse_federation(content: Any, *, where: str = "federation") -> Federation:
    """Check builtin values (from YAML or JSON) and return the federation. Raises FederationError."""
    if not isinstance(content, dict):
        raise FederationError("is not a table of keys and values", where=where)
    check_no_credentials_in(content, where=where)
    try:
        federation = msgspec.convert(_in_full(content), Federation)
    except msgspec.ValidationError as error:
        raise _explained(str(error), where) from error
    check_federation(federation, where=where)
    return federation


def _in_full(content: dict[str, Any]) -> dict[str, Any]:
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


def _resolved(federation: Federation, folder: Path) -> Federation:
    """Return the same federation with absolute paths and URIs."""

    def place(uri: str) -> str:
        return uri if "://" in uri or not uri else str((folder / uri).resolve())

    if isinstance(federation.store, str):
        store: str | StorePlace = check_uri(federation.store, folder=folder)
    else:
        store = msgspec.structs.replace(federation.store, uri=check_uri(federation.store.uri, folder=folder))
    learners = tuple(msgspec.structs.replace(item, data=place(item.data)) for item in federation.learners)
    data = msgspec.structs.replace(federation.data, uri=place(federation.data.uri))

    def code(name: str) -> str:
        file, _, function = name.partition(":")
        return name and f"{place(file)}:{function or 'build'}"

    simulation = msgspec.structs.replace(
        federation.simulation, process=code(federation.simulation.process), model=code(federation.simulation.model)
    )
    return msgspec.structs.replace(
        federation, store=store, learners=learners, data=data, model=code(federation.model), simulation=simulation
    )


def _explained(message: str, where: str) -> FederationError:
    """Translate msgspec's message to the path and the words of the file, with the remedy."""
    what, _, path = message.partition(" - at `")
    path = path.rstrip("`").removeprefix("$").removeprefix(".")
    remedy = None
    if match := re.match(r"Object contains unknown field `(.*)`", what):
        known = [name for kind in _structs_at(path) for name in _keys_of(kind)]
        what = f"unknown key {match[1]!r}"
        close = difflib.get_close_matches(match[1], known, n=1)
        remedy = f"Did you mean {close[0]!r}?" if close else f"Known keys: {', '.join(sorted(set(known)))}."
    elif match := re.match(r"Object missing required field `(.*)`", what):
        what, remedy = f"the key {match[1]!r} is missing", "Add it: docs/federation.md describes each key."
    elif what.startswith("Invalid"):
        remedy = f"Valid: {', '.join(_choices_at(path))}."
    elif "matching regex" in what and path.rsplit(".", 1)[-1] == "name":
        what = "not a safe name"
        remedy = "Use at most 40 lower-case letters, digits and '-', with a letter or digit at both ends."
    elif "matching regex" in what:
        remedy = "Write it in the form that docs/federation.md shows."
    elif match := re.match(r"Expected `\w+[^`]*` ([<>]=?) (\S+)$", what):
        remedy = f"Write a number {match[1]} {match[2].removesuffix('.0')}."
    elif match := re.match(r"Expected `(\w+)[^`]*`, got", what):
        remedy = _EXPECTED.get(match[1])
    return FederationError(what, where=f"{where}: {path}" if path else where, remedy=remedy)


_EXPECTED = {
    "int": "Write a whole number, without quotes.",
    "float": "Write a number, without quotes.",
    "bool": "Write true or false.",
    "str": "Write text, in quotes when it looks like a number.",
    "object": "Write a table of keys and values.",
    "array": "Write a list.",
}


def _structs_at(path: str) -> list[Any]:
    """Find the structs that may stand at a path such as `learners[...].placement`."""
    kinds: list[Any] = [Federation]
    for part in filter(None, re.sub(r"\[.*?\]", "", path).split(".")):
        kinds = [struct for kind in _types_of(kinds, part) for struct in _structs_in(kind)]
    return kinds


def _types_of(structs: list[Any], name: str) -> list[Any]:
    return [f.type for struct in structs for f in msgspec.structs.fields(struct) if f.name == name]


def _keys_of(struct: Any) -> list[str]:
    tag = struct.__struct_config__.tag_field
    return [f.encode_name for f in msgspec.structs.fields(struct)] + ([tag] if tag else [])


def _choices_at(path: str) -> list[str]:
    """Return the values that a path may have: literals, or the tags of structs."""
    parent, _, name = path.rpartition(".")
    structs = _structs_at(parent)
    tags = [s.__struct_config__.tag for s in structs if s.__struct_config__.tag_field == name]
    return sorted(set(tags or [str(v) for kind in _types_of(structs, name) for v in _literals_in(kind)]))


def _literals_in(kind: Any) -> Iterator[Any]:
    if get_origin(kind) is Literal:
        yield from get_args(kind)
    else:
        for inner in get_args(kind):
            yield from _literals_in(inner)


def _structs_in(kind: Any) -> Iterator[Any]:
    if isinstance(kind, type) and issubclass(kind, Struct):
        yield kind
    for inner in get_args(kind):
        yield from _structs_in(inner)
