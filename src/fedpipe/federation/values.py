"""Checks that a federation consists of values that JSON carries exactly.

Steps receive the federation as JSON. YAML, and Python, have more kinds of values: dates, binary data, sets, infinity,
and keys that are numbers. The arguments of Keras are free, and some have keys that are whole numbers. These are kept
as text, and are numbers again when Keras gets them.
"""

from __future__ import annotations

import datetime
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from fedpipe.errors import FederationError

_MOST_VALUES = 200_000
_DEEPEST = 50
_LARGEST = 2**63
_FREE = re.compile(r"^training\.(fit|evaluate)\.[^.]|^training\.callbacks\.[^.]+\.[^.]")
"""Paths below which keys may be whole numbers."""
_WHOLE = re.compile(r"-?[1-9]\d{0,17}|0")
_QUOTES = "Write it in quotes."
_POINT = "Write decimals with a point, such as 0.01, and keys in quotes."
_KINDS = (
    (datetime.date, "is a date, not text", _QUOTES),
    (bytes | bytearray, "is binary data", "Write text or numbers."),
    (set | frozenset, "is a set", "Write a list."),
)


def check_values(content: Any, *, where: str) -> None:
    """Check all values and keys. Raises FederationError with the path of the first mistake."""
    for path, what, remedy in _mistakes(content):
        raise FederationError(what, where=f"{where}: {path}" if path else where, remedy=remedy)


def _mistakes(content: Any) -> Iterator[tuple[str, str, str]]:
    left: list[tuple[str, int, Any]] = [("", 0, content)]
    count = 0
    while left:
        path, depth, value = left.pop()
        count += 1
        if count > _MOST_VALUES:
            yield "", f"has more than {_MOST_VALUES} values", "Remove aliases that repeat large parts."
        if depth > _DEEPEST:
            yield path, "is nested too deeply", "Remove brackets, or an alias inside itself."
        if isinstance(value, Mapping):
            yield from _keys(path, value)
            items: Iterable[tuple[str, Any]] = ((f"{path}.{key}" if path else f"{key}", v) for key, v in value.items())
        elif isinstance(value, list | tuple):
            items = ((f"{path}[{position}]", v) for position, v in enumerate(value))
        else:
            items = ()
            if mistake := _value(value):
                yield path, *mistake
        left += reversed([(inner, depth + 1, v) for inner, v in items])


def _keys(path: str, table: Mapping[Any, Any]) -> Iterator[tuple[str, str, str]]:
    free = _FREE.match(path) is not None
    for key in table:
        if isinstance(key, str):
            if free and _WHOLE.fullmatch(key) and int(key) in table:
                yield path, f"the key {key} is written twice", "Write it once, without quotes."
        elif not (free and isinstance(key, int) and not isinstance(key, bool) and abs(key) < 10**18):
            cut = isinstance(key, int) and table[key] is None  # {learning_rate: 0,01}
            yield path, f"the key {_shown(key)} is not text", _POINT if cut else _QUOTES


def _shown(key: Any) -> str:
    if key is None or isinstance(key, bool):
        return {None: "null", True: "true", False: "false"}[key]
    return str(key)[:40]


def _value(value: Any) -> tuple[str, str] | None:
    if value is None or isinstance(value, bool | str):
        return None
    if isinstance(value, int):
        return ("is too large a number", "Write a smaller one.") if abs(value) >= _LARGEST else None
    if isinstance(value, float):
        return None if math.isfinite(value) else (f"is {value}, not a finite number", "Write a finite number.")
    for kind, what, remedy in _KINDS:
        if isinstance(value, kind):
            return what, remedy
    return f"is of the type {type(value).__name__}, which the file cannot hold", "Write text, a number or a list."


def as_text_keys(value: Any) -> Any:
    """Return the same value with keys that JSON has, and lists instead of tuples. Raises ValueError."""
    if isinstance(value, Mapping):
        return {str(key): as_text_keys(inner) for key, inner in value.items()}
    return [as_text_keys(inner) for inner in value] if isinstance(value, list | tuple) else value


def as_arguments(value: Any) -> Any:
    """Return the same value with keys that are numbers where they look like whole numbers.

    >>> as_arguments({"class_weight": {"0": 1.0, "1": 2.0}})
    {'class_weight': {0: 1.0, 1: 2.0}}
    """
    if isinstance(value, Mapping):
        return {int(k) if _WHOLE.fullmatch(str(k)) else k: as_arguments(inner) for k, inner in value.items()}
    return [as_arguments(inner) for inner in value] if isinstance(value, list | tuple) else value
