"""Loads safe YAML: with merge keys, without duplicates, and in bounded time and memory.

A file of a few lines can stand for billions of values: by aliases of aliases, or by merges of merges. So merged tables
are formed by their keys, each once, and the values are counted (`fedpipe.federation.values`).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from fedpipe.errors import FederationError, one_line

_MERGE = "tag:yaml.org,2002:merge"
_MOST_MERGED = 100_000
"""Most keys that all merges of a file may bring in together."""
_MOST_BYTES = 8 * 2**20
"""Largest file: it holds 10,000 learners with settings of their own."""
_REMEDY = "Check the indentation, quotes and brackets there."

_Pairs = dict[Any, yaml.Node]


class _Loader(yaml.SafeLoader):
    """Load safe YAML; refuse a key that is written twice, and read 1e-4 as a number as YAML 1.2 does."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._merged: dict[int, _Pairs | None] = {}
        self._count = 0

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        return {key: self.construct_object(value, deep=deep) for key, value in self._pairs(node).items()}

    def _pairs(self, node: yaml.Node) -> _Pairs:
        """Return the keys of a table and their values: its own, and those merged in by `<<`."""
        if not isinstance(node, yaml.MappingNode):
            raise _mistake(node, "a table is expected after <<")
        if id(node) in self._merged:
            known = self._merged[id(node)]
            if known is None:
                raise _mistake(node, "a table merges itself")
            return known
        self._merged[id(node)] = None
        own: _Pairs = {}
        merged: _Pairs = {}
        seen: set[Any] = set()
        for key_node, value in node.value:
            merges = key_node.tag == _MERGE
            key = "<<" if merges else self.construct_object(key_node, deep=True)
            try:
                if (key, merges) in seen:
                    raise _mistake(key_node, f"the key {key!r} is written twice")
                seen.add((key, merges))
            except TypeError:
                raise _mistake(key_node, "a key is a list or a table") from None
            if merges:
                merged = self._merge(value)
            else:
                own[key] = value
        self._merged[id(node)] = pairs = {**merged, **own}
        return pairs

    def _merge(self, value: yaml.Node) -> _Pairs:
        """Merge one table or a list of them; the first one that has a key decides."""
        merged: _Pairs = {}
        for source in value.value if isinstance(value, yaml.SequenceNode) else [value]:
            pairs = self._pairs(source)
            self._count += len(pairs)
            if self._count > _MOST_MERGED:
                raise _mistake(value, f"the merges bring in more than {_MOST_MERGED} keys")
            merged = {**pairs, **merged}
        return merged


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def _mistake(node: yaml.Node, what: str) -> yaml.YAMLError:
    return yaml.YAMLError(f"line {node.start_mark.line + 1}: {what}")


PIPELINE = re.compile(r"""^pipelineInfo:|^[{ ,]*"pipelineInfo":""", re.MULTILINE)
"""A line that only the files of compiled pipelines have."""


def load(path: Path, *, missing: str = "Write a working one with `fedpipe init DIR`.") -> Any:
    """Return the content of a YAML file.

    Args:
        path: the file.
        missing: the remedy where there is none.

    Raises:
        FederationError: it cannot be read, or is not YAML.
    """
    where = str(path)
    try:
        with path.open("rb") as file:
            data = file.read(_MOST_BYTES + 1)
    except OSError as error:
        remedy = "Name the file in it." if path.is_dir() else missing
        raise FederationError(f"cannot be read: {error.strerror}", where=where, remedy=remedy) from error
    if len(data) > _MOST_BYTES:
        raise FederationError(f"has more than {_MOST_BYTES} bytes", where=where, remedy="Name another file.")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise FederationError("is not UTF-8 text", where=where, remedy="Save it as UTF-8.") from error
    if PIPELINE.search(text):
        remedy = "Pass the federation file that it was compiled from."
        raise FederationError("is a compiled pipeline, not a federation file", where=where, remedy=remedy)
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506  (a subclass of the safe loader)
    except RecursionError as error:
        raise FederationError("is nested too deeply", where=where, remedy="Remove brackets.") from error
    except (yaml.YAMLError, TypeError, ValueError, OverflowError) as error:
        raise FederationError(f"is not YAML: {_cause(error)}", where=where, remedy=_REMEDY) from error


def _cause(error: Exception) -> str:
    """Return the line and the cause of an error of YAML."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem:
        mark = error.problem_mark or error.context_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        return f"{place}{error.problem}"
    return one_line(error, 300)
