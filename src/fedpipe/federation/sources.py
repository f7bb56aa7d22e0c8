"""Reads a federation from a file, a dictionary or typed objects, with changes of single keys."""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from fedpipe.errors import FederationError
from fedpipe.federation.federation import Federation
from fedpipe.federation.file import in_full, parse_federation, read_federation, resolved, with_tables
from fedpipe.federation.loading import load
from fedpipe.federation.values import as_text_keys
from fedpipe.store import is_uri

Source = str | Path | Mapping[str, Any] | Federation
"""A federation file, or its content as a dictionary or as typed objects."""
_NAMED = ("algorithm", "client_optimizer", "method", "rule", "schedule", "server_optimizer")
_CHOICES = {**dict.fromkeys(_NAMED, "name"), "shards": "by"}
"""Keys whose settings depend on a choice, and the key of that choice: another one replaces them all."""


def read_source(source: Source, changes: Mapping[str, Any] | None = None) -> Federation:
    """Returns a checked federation.

    Relative paths of a file start at its folder, all others at the working folder.

    Args:
        source: a federation file, or its content as a dictionary or as typed objects.
        changes: keys of the file with their new values; dictionaries are merged with those of the source.

    Raises:
        FederationError: names the key, the mistake and the remedy.

    >>> demo = {"name": "demo", "learners": [{"name": "a", "data": "a.npz"}]}
    >>> demo["training"] = {"rounds": 5, "batch_size": 32}
    >>> training = read_source(demo, {"training": {"rounds": 2}}).training
    >>> training.rounds, training.batch_size
    (2, 32)
    """
    if isinstance(source, str | Path) and not changes:
        return read_federation(Path(source))
    if isinstance(source, str | Path):
        path = Path(source)
        content, where, folder = load(path), str(path), path.absolute().parent
    else:
        content, where, folder = as_plain(source), "federation", Path.cwd()
    new = as_plain(dict(changes or {}))
    if isinstance(content, dict) and new:
        content, new = as_text_keys(content), as_text_keys(new)
        content = overlaid(in_full(content), _with_absolute_paths(new) if where != "federation" else new)
    return resolved(parse_federation(with_tables(content, folder), where=where), folder)


def overlaid(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Merges changes into a table and its inner tables; lists are replaced.

    >>> overlaid({"a": {"b": 1, "c": 2}}, {"a": {"c": 3}})
    {'a': {'b': 1, 'c': 3}}
    """
    merged = dict(base)
    for key, value in changes.items():
        before: Any = merged.get(key)
        if key == "store" and isinstance(before, str) and isinstance(value, Mapping):
            before = {"uri": before}
        choice = _CHOICES.get(key)
        if choice and isinstance(value, str):
            value = {choice: value}
        if choice and isinstance(before, Mapping) and isinstance(value, Mapping):
            before = before if value.get(choice, before.get(choice)) == before.get(choice) else None
        mergeable = isinstance(before, Mapping) and isinstance(value, Mapping)
        merged[key] = overlaid(before, value) if mergeable else value
    return merged


_DEEPEST = 50


def as_plain(value: Any, path: str = "") -> Any:
    """Turns typed objects, paths and numbers of NumPy into what a file may hold. Raises FederationError."""
    if isinstance(value, msgspec.Struct):
        return msgspec.to_builtins(value)
    if path.count(".") + path.count("[") > _DEEPEST:
        what, where = f"has more than {_DEEPEST} levels", f"federation: {path[1:].partition('.')[0]}"
        raise FederationError(what, where=where, remedy="Write fewer; perhaps it contains itself.")
    if isinstance(value, Mapping):
        return {key: as_plain(one, f"{path}.{key}") for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [as_plain(one, f"{path}[{number}]") for number, one in enumerate(value)]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, enum.Enum):
        return value.value
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if hasattr(value, "item") and not getattr(value, "shape", ()):
        return value.item()
    what = f"is an object of the type {type(value).__name__}, which a federation file cannot hold"
    where = f"federation: {path.removeprefix('.')}" if path else "federation"
    raise FederationError(what, where=where, remedy="Use text, numbers, lists, dictionaries or fedpipe's own types.")


def _with_absolute_paths(changes: dict[str, Any]) -> dict[str, Any]:
    """Returns the changes of a file with absolute paths: they start at the working folder, and not at the file's."""
    changed = dict(changes)
    for table, key in _paths_in(changed):
        text = table[key]
        if isinstance(text, str) and text and not is_uri(text):
            table[key] = str(Path.cwd() / text)
    return changed


def _paths_in(changes: dict[str, Any]) -> Iterator[tuple[dict[str, Any], str]]:
    """Finds the values that are paths or URIs, with the tables that hold them."""
    for key in ("model", "store"):
        if isinstance(changes.get(key), str):
            yield changes, key
    places = {"store": ("uri",), "data": ("uri",), "simulation": ("process", "model")}
    for section, names in places.items():
        table = changes.get(section)
        yield from ((table, name) for name in names if isinstance(table, dict) and name in table)
    learners = changes.get("learners")
    for learner in learners if isinstance(learners, list) else ():
        if isinstance(learner, dict) and "data" in learner:
            yield learner, "data"
