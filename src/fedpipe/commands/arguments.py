"""Checks types of arguments in the Python API: a wrong one is an error with its name, and not one from deep inside."""

from __future__ import annotations

import functools
import inspect
import math
import operator
import os
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from fedpipe.errors import InputError
from fedpipe.suggestion import suggestion

F = TypeVar("F", bound=Callable[..., Any])


def checked(function: F, name: str) -> F:
    """Returns a function of the API that first checks types and bounds of its arguments.

    Args:
        function: the function.
        name: its name in the API, for messages.
    """
    signature = inspect.signature(function)

    @functools.wraps(function)
    def call(*given: Any, **named: Any) -> Any:
        hints = typing.get_type_hints(function)
        try:
            bound = signature.bind(*given, **named)
        except TypeError as error:
            unknown = next((key for key in named if key not in signature.parameters), "")
            is_it = unknown and f"{unknown!r}" in str(error)
            remedy = f". {suggestion(unknown, signature.parameters)}" if is_it else ""
            raise TypeError(f"fedpipe.{name}() {error}{remedy}") from None
        for argument, value in bound.arguments.items():
            if signature.parameters[argument].kind in (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL):
                continue  # `changes` are checked as keys of the federation file
            if argument in hints and not _fits(value, hints[argument]):
                shown = repr(value) if len(repr(value)) <= _LONG else f"{repr(value)[:_LONG]}..."
                raise InputError(
                    f"{shown} has the type {type(value).__name__}",
                    where=f"fedpipe.{name}, argument {argument!r}",
                    remedy=f"Pass {_described(hints[argument])}.",
                )
            low, high = BOUNDS.get(argument, (-math.inf, math.inf))
            if _is_number(value, float) and not low <= value <= high:
                where = f"fedpipe.{name}, argument {argument!r}"
                raise InputError(f"{value} is out of bounds", where=where, remedy=f"Use {low:g} to {high:g}.")
        return function(*given, **named)

    return typing.cast(F, call)


_LONG = 60
DAY = 86_400.0
BOUNDS: dict[str, tuple[float, float]] = {
    "again": (0.01, DAY), "batch": (1, 65_536), "batch_delay": (0, 60_000), "body_limit": (0.001, 65_536),
    "canary": (0, 1), "examples": (0, 2**53), "json_limit": (0.001, 65_536), "keep_runs": (0, 10**6),
    "learners": (0, 10_000), "memory_limit": (0.001, 10**6), "noncurrent_days": (0, 36_500), "poll": (0.1, DAY),
    "port": (0, 65_535), "sessions": (0, 1024), "threads": (0, 1024), "timeout": (0.1, DAY),
    "version": (1, 10**9), "wait": (0, DAY), "workers": (0, 1024),
}  # fmt: skip
"""Smallest and largest numbers, the same as those of the options on the command line."""


_UNITS = {"min": 60.0, "h": 3600.0, "d": DAY, "w": 7 * DAY}
AGES = "minutes, hours, days or weeks: 30min, 12h, 30d, 8w"
"""The ages that a user may write, for messages."""


def seconds_of_age(text: str) -> float | None:
    """Returns an age or a life such as `12h` or `1.5d` in seconds; None for any other text."""
    match = re.fullmatch(r"(\d{1,6}(?:\.\d{1,6})?)(min|[hdw])", text, re.ASCII)
    return float(match[1]) * _UNITS[match[2]] if match else None


def _fits(value: Any, hint: Any) -> bool:
    """Returns whether a value has a type; types that cannot be checked at run time allow all."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, each) for each in inner)
    if origin is typing.Literal:
        return value in inner
    kind = origin or hint
    if kind is Callable or kind is typing.get_origin(Callable[..., Any]):
        return callable(value)
    if kind in (int, float):
        return _is_number(value, kind)
    if kind is Path:
        return isinstance(value, os.PathLike)
    if kind in (tuple, list) or kind is Sequence:
        return isinstance(value, Sequence) and not isinstance(value, str | bytes)
    if kind is Any or not isinstance(kind, type):
        return True
    if getattr(kind, "_is_protocol", False):
        return all(hasattr(value, attribute) for attribute in inspect.get_annotations(kind))
    return isinstance(value, kind)


def _is_number(value: Any, kind: type) -> bool:
    if isinstance(value, bool):
        return False
    try:
        operator.index(value)
    except TypeError:
        return kind is float and isinstance(value, float)
    return True


def _described(hint: Any) -> str:
    """Returns a type in words, such as `a text, a path or None`."""
    names = list(dict.fromkeys(_names(hint)))
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"


def _names(hint: Any) -> list[str]:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return [name for each in inner for name in _names(each)]
    if origin is typing.Literal:
        return [repr(each) for each in inner]
    kind = origin or hint
    return [_WORDS.get(kind, f"a {getattr(kind, '__name__', kind)}")]


_WORDS: dict[Any, str] = {
    str: "a text", int: "a whole number", float: "a number", bool: "True or False", type(None): "None",
    Path: "a path", Mapping: "a dictionary", Sequence: "a list", list: "a list", tuple: "a tuple", dict: "a dictionary",
    typing.get_origin(Callable[..., Any]): "a function",
}  # fmt: skip
