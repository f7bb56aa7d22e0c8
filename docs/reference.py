"""Writes docs/federation.md from the types of the federation file; `--check` fails when it is out of date."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import msgspec
from msgspec import Meta, Struct
from pages import generate

from fedpipe.federation.federation import Federation

PAGE = Path(__file__).parent / "federation.md"
HEAD = """# The federation file

A user writes two files: `federation.yaml` and `model.py`. `fedpipe init DIR` writes working ones. Unknown keys are
errors. Relative paths start at the folder of the federation file. This page is generated from the types in
`src/fedpipe/federation/` (`make docs`).

- Anchors, aliases and merge keys (`<<: *gpu`) work as in YAML: a table's own keys win, then the first table of a list.
  A key that is written twice is an error.
- Every number is finite and has bounds. Values are those of JSON, so dates need quotes. In `training.fit` and
  `training.callbacks`, tables inside an argument may have whole numbers as keys, such as `class_weight: {0: 1.0}`.
- A path means its characters, whatever they are: `proj#1/50%` is a folder. In a `file://` URI, write `%23` for `#`,
  `%3F` for `?` and `%25` for `%`.
"""


def unwrapped(kind: Any) -> tuple[Any, str]:
    """Split a type into the type without its annotation, and the description in it."""
    text = ""
    while get_origin(kind) is Annotated:
        kind, *metas = get_args(kind)
        text = next((m.description for m in metas if isinstance(m, Meta) and m.description), text)
    return kind, text


def shown(kind: Any) -> str:
    """Express a type in words."""
    kind, _ = unwrapped(kind)
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Literal:
        return " or ".join(f"`{a}`" if a else "empty" for a in arguments)
    if origin in (Union, types.UnionType):
        kinds = list(dict.fromkeys(shown(a) for a in arguments if a is not type(None)))
        return (" or " if len(kinds) < 5 else ", ").join(kinds)
    if origin is tuple:
        return f"list of {shown(arguments[0])}"
    if origin is dict:
        named = [argument for argument in arguments if typing.get_origin(argument) is Literal]
        keys = f"; keys: {', '.join(f'`{v}`' for v in typing.get_args(named[0]))}" if named else ""
        return f"table of {shown(arguments[1])}{keys}" if keys else "table"
    if isinstance(kind, type) and issubclass(kind, Struct):
        return f"[{kind.__name__}](#{kind.__name__.lower()})"
    return {int: "whole number", float: "number", str: "text", bool: "true or false"}.get(kind, str(kind))


def limits(kind: Any) -> str:
    """List the limits of a value."""
    found = []
    while get_origin(kind) is Annotated:
        kind, *metas = get_args(kind)
        for meta in metas:
            for name, sign in (("ge", "≥"), ("gt", ">"), ("le", "≤"), ("lt", "<")):
                if (value := getattr(meta, name, None)) is not None:
                    found.append(f"{sign} {value}")
    return ", ".join(found)


def default(field: Any) -> str:
    """Show the default as YAML, or `required`."""
    if field.default is not msgspec.NODEFAULT:
        value = field.default
        if isinstance(value, bool):
            return f"`{str(value).lower()}`"
        return {None: "none", "": "empty", (): "none"}.get(value, f"`{value}`")
    if field.default_factory is not msgspec.NODEFAULT:
        made = field.default_factory()
        return "empty" if not isinstance(made, Struct) else f"{type(made).__name__}, all defaults"
    return "**required**"


def structs(kind: Any) -> Iterator[Any]:
    """Yield the structs below a struct, in the order of the file, some more than once."""
    hints = typing.get_type_hints(kind, include_extras=True)
    for field in msgspec.structs.fields(kind):
        for inner in inner_structs(hints[field.name]):
            yield inner
            yield from structs(inner)


def inner_structs(kind: Any) -> Iterator[Any]:
    """Yield the structs that a type mentions."""
    kind, _ = unwrapped(kind)
    if isinstance(kind, type) and issubclass(kind, Struct):
        yield kind
    for argument in get_args(kind):
        yield from inner_structs(argument)


def section(kind: Any) -> str:
    """Write a struct as a heading, its docstring and a table."""
    hints = typing.get_type_hints(kind, include_extras=True)
    rows = []
    config = kind.__struct_config__
    if config.tag_field:
        rows.append(f"| `{config.tag_field}` | `{config.tag}` | **required** | |")
    for field in msgspec.structs.fields(kind):
        hint = hints[field.name]
        _, description = unwrapped(hint)
        kinds = shown(hint) + (f" {limits(hint)}" if limits(hint) else "")
        rows.append(f"| `{field.encode_name}` | {kinds} | {default(field)} | {description} |")
    title = "federation.yaml" if kind is Federation else kind.__name__
    table = "\n".join(["| key | value | default | meaning |", "| --- | --- | --- | --- |", *rows])
    return f"## {title}\n\n{kind.__doc__}\n\n{table}\n"


def page() -> str:
    """Write the whole page."""
    kinds = dict.fromkeys([Federation, *structs(Federation)])
    return "\n".join([HEAD, *(section(kind) for kind in kinds)])


if __name__ == "__main__":
    generate(PAGE, page())
