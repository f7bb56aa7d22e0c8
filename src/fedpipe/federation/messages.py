"""Translates msgspec's messages about a file to the path and the words of that file, with the remedy."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin

import msgspec
from msgspec import Struct

from fedpipe.codec import converted
from fedpipe.errors import FederationError
from fedpipe.federation.federation import Federation
from fedpipe.federation.names import FORMS
from fedpipe.suggestion import suggestion

_EXPECTED = {
    "int": "Write a whole number, without quotes.",
    "float": "Write a number, without quotes.",
    "bool": "Write true or false.",
    "str": "Write text, in quotes when it looks like a number.",
    "object": "Write a table of keys and values.",
    "array": "Write a list.",
}
_SHORT = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "text",
          "object": "a table of keys and values", "array": "a list"}  # fmt: skip


class Grammar(NamedTuple):
    """The form of a file: the type of its content, the page that describes its keys, and patterns besides `FORMS`."""

    root: Any
    page: str
    forms: Mapping[str, tuple[str, str]] = {}


FEDERATION = Grammar(Federation, "docs/federation.md")


def explained(message: str, where: str, content: Any = None) -> FederationError:
    """Return the error for a message of msgspec about a federation.

    Args:
        message: of a ValidationError at the conversion to a Federation.
        where: the file.
        content: the converted values, to name keys for which msgspec writes `[...]`.
    """
    path, what, remedy = mistake_of(FEDERATION, message, content)
    return FederationError(what, where=f"{where}: {path}" if path else where, remedy=remedy)


def mistake_of(grammar: Grammar, message: str, content: Any = None) -> tuple[str, str, str | None]:
    """Return the path, the mistake and the remedy for a message of msgspec.

    Args:
        grammar: of the file.
        message: of a ValidationError at the conversion to the grammar's type.
        content: the converted values, to name keys for which msgspec writes `[...]`.
    """
    what, _, place = message.rpartition(" - at ") if " - at " in message else (message, "", "")
    of_key = place.startswith("`key` in ")
    path = place.removeprefix("`key` in ").strip("`").removeprefix("$").removeprefix(".")
    what, remedy = _of_key(grammar, what, path) if of_key else _explained(grammar, what, path, content)
    return _named(grammar, path, content, message), what, remedy


def described(message: str) -> tuple[str, str | None]:
    """Return the mistake and the remedy for a message about a number outside the file."""
    return _explained(FEDERATION, message.rpartition(" - at ")[0] or message, "")


def _of_key(grammar: Grammar, what: str, path: str) -> tuple[str, str | None]:
    """Explain a mistake in a key of a table."""
    choices = [
        str(v)
        for kind in _types_at(grammar, path)
        for inner in _dicts_in(kind)
        for v in _literals_in(get_args(inner)[0])
    ]
    if match := re.match(r"Invalid enum value '(.*)'$", what, re.DOTALL):
        return what, suggestion(match[1], choices)
    if match := re.match(r"Expected `str` of length <= (\d+)$", what):
        return f"a key has more than {match[1]} characters", "Shorten it."
    return re.sub(r"Expected `str`, got", "a key must be text, but it is", what), "Write the key in quotes."


def _explained(grammar: Grammar, what: str, path: str, content: Any = None) -> tuple[str, str | None]:
    if match := re.match(r"Object contains unknown field `(.*)`$", what, re.DOTALL):
        return _unknown(grammar, match[1], path, content)
    if match := re.match(r"Object missing required field `(.*)`$", what):
        choices = _choices_at(grammar, f"{path}.{match[1]}".strip("."))
        one_of = f", one of {', '.join(choices)}" if choices else ""
        return f"the key {match[1]!r} is missing", f"Add it{one_of}: {grammar.page} describes each key."
    if what.startswith("Invalid"):
        return what, _one_of(grammar, path)
    if match := re.match(r"Expected `str` matching regex ('.*'|\".*\")$", what, re.DOTALL):
        forms = {**FORMS, **grammar.forms}
        pattern = next((p for p in forms if repr(p) == match[1]), "")
        return forms.get(pattern, (what, f"Write it in the form that {grammar.page} shows."))
    if match := re.match(r"Expected `(\w+)[^`]*` of length ([<>]=?|==) (\d+)$", what):
        return what, _of_length(match[1], match[2], int(match[3]))
    if match := re.match(r"Expected `\w+[^`]*` ([<>]=?) (\S+)$", what):
        return what, f"Write a number {match[1]} {match[2].removesuffix('.0')}."
    if match := re.match(r"Expected `([^`]*)`, got `(\w+)", what):
        if match[1] in ("object", "array") and (choices := _choices_at(grammar, path)):  # the choices of what is in it
            return what, f"{_of_kind(match[1], match[2])} Valid entries: {', '.join(choices)}."
        return what, _one_of(grammar, path) or _of_kind(match[1], match[2])
    if what == "Number out of range":
        return "is too large a number", "Write a smaller one."
    return what, f"{grammar.page} describes each key."


_REASONS = {"secure": "Sums hide single proposals, on which learners would vote. "}
"""Why tables of some kinds cannot have a key."""


def _unknown(grammar: Grammar, key: str, path: str, content: Any) -> tuple[str, str | None]:
    """Explain an unknown key; where tables of several kinds may stand, by the keys of the given kind."""
    for part in _parts(path):
        content = _inner(content, part)
    given = content if isinstance(content, Mapping) else {}
    structs = _structs_at(grammar, path)
    own = [s for s in structs if given.get(s.__struct_config__.tag_field) == s.__struct_config__.tag] or structs
    remedy = suggestion(key, {name for struct in own for name in _keys_of(struct)}, listed="Known keys")
    others = sorted(str(s.__struct_config__.tag) for s in structs if s not in own and key in _keys_of(s))
    if others:
        why = _REASONS.get(key, "")
        return f"unknown key {key!r} for {own[0].__struct_config__.tag}", f"{', '.join(others)} has it. {why}{remedy}"
    return f"unknown key {key!r}", remedy


def _one_of(grammar: Grammar, path: str) -> str:
    """Return the remedy where only some values, or tables of some kinds, may stand; empty elsewhere."""
    if choices := _choices_at(grammar, path):
        numbers = [_SHORT[name] for name in ("int", "float") if name in _names_at(grammar, path)]
        return f"Valid: {', '.join(choices + numbers)}."
    tagged = [s.__struct_config__ for s in _structs_at(grammar, path) if s.__struct_config__.tag_field]
    if not tagged:
        return ""
    tags = ", ".join(sorted(str(config.tag) for config in tagged))
    return f"Write a table of keys and values with {tagged[0].tag_field!r}, one of {tags}."


def _of_length(kind: str, sign: str, length: int) -> str:
    things = {"str": "characters", "array": "entries"}.get(kind, "keys")
    if sign.startswith(">"):
        least = length + (sign == ">")
        return f"Write at least {least if least > 1 else 'one'} {things if least > 1 else _ONE.get(things, things)}."
    return f"Write at most {length - (sign == '<')} {things}."


_ONE = {"characters": "character", "entries": "entry", "keys": "key"}


def _of_kind(expected: str, got: str) -> str:
    """Return the remedy for a value of another type, such as `str | object` instead of `int`."""
    kinds = [kind.strip() for kind in expected.split("|")]
    wanted = [kind for kind in kinds if kind in _SHORT]
    can_be_left_out = "null" in kinds
    if got in ("date", "datetime", "time"):
        return "Write it in quotes."
    if len(wanted) == 1 and got == "array" and wanted[0] in ("int", "float", "bool", "str"):
        return "Write one value, without a list."
    if len(wanted) == 1 and not can_be_left_out:
        return _EXPECTED[wanted[0]]
    words = " or ".join(_SHORT[kind] for kind in wanted)
    return f"Write {words}, or leave the key out." if can_be_left_out else f"Write {words}."


def _named(grammar: Grammar, path: str, content: Any, message: str) -> str:
    """Replace each `[...]` in a path by the key of a table: the first whose value gives the same message."""
    kinds: list[Any] = [grammar.root]
    done = ""
    for part in re.findall(r"\[\.\.\.\]|\[\d+\]|[^.\[\]]+", path):
        if part != "[...]":
            kinds = [inner for kind in kinds for inner in _below(kind, part)]
            done += part if part.startswith("[") else f".{part}"
            content = _inner(content, part)
            continue
        kinds = [get_args(inner)[1] for kind in kinds for inner in _dicts_in(kind)]
        key = next((key for key in content or () if _is_refused(content[key], kinds, message)), None)
        if key is None:
            return path
        done, content = f"{done}.{key}", content[key]
    return done.removeprefix(".")


def _inner(content: Any, part: str) -> Any:
    if part.startswith("["):
        return content[int(part[1:-1])] if isinstance(content, list | tuple) else None
    return content.get(part) if isinstance(content, Mapping) else None


def _is_refused(value: Any, kinds: list[Any], message: str) -> bool:
    what = message.partition(" - at ")[0]
    for kind in kinds:
        try:
            converted(value, kind)
        except msgspec.ValidationError as error:
            if str(error).partition(" - at ")[0] == what:
                return True
    return False


def _below(kind: Any, part: str) -> Iterator[Any]:
    """Yield the types of a key, or of the entries of a list, in a type."""
    if part.startswith("["):
        yield from (get_args(inner)[0] for inner in _generics_in(kind, tuple))
    else:
        yield from _types_of(list(_structs_in(kind)), part)


def _parts(path: str) -> list[str]:
    return re.findall(r"\[\.\.\.\]|\[\d+\]|[^.\[\]]+", path)


def _types_at(grammar: Grammar, path: str) -> list[Any]:
    """Return the types that may stand at a path such as `learners[0].placement`."""
    kinds: list[Any] = [grammar.root]
    for part in _parts(path):
        if part == "[...]":
            kinds = [get_args(inner)[1] for kind in kinds for inner in _dicts_in(kind)]
        else:
            kinds = [inner for kind in kinds for inner in _below(kind, part)]
    return kinds


def _structs_at(grammar: Grammar, path: str) -> list[Any]:
    return [struct for kind in _types_at(grammar, path) for struct in _structs_in(kind)]


def _types_of(structs: list[Any], name: str) -> list[Any]:
    return [f.type for struct in structs for f in msgspec.structs.fields(struct) if f.encode_name == name]


def _keys_of(struct: Any) -> list[str]:
    tag = struct.__struct_config__.tag_field
    return [f.encode_name for f in msgspec.structs.fields(struct)] + ([tag] if tag else [])


def _choices_at(grammar: Grammar, path: str) -> list[str]:
    """Return the values that a path may have: literals, or the tags of structs."""
    name = _parts(path)[-1] if path else ""
    structs = _structs_at(grammar, path[: len(path) - len(name)].rstrip("."))
    tags = [s.__struct_config__.tag for s in structs if s.__struct_config__.tag_field == name]
    return sorted(set(tags or [str(v) for kind in _types_at(grammar, path) for v in _literals_in(kind)]))


def _names_at(grammar: Grammar, path: str) -> set[str]:
    """Return the names of the builtin types that may stand at a path."""
    found: set[str] = set()
    left = _types_at(grammar, path)
    while left:
        kind = left.pop()
        left += get_args(kind)[:1] if get_origin(kind) is Annotated else get_args(kind) if _is_union(kind) else ()
        found |= {kind.__name__} if isinstance(kind, type) else set()
    return found


def _is_union(kind: Any) -> bool:
    return bool(get_args(kind)) and get_origin(kind) not in (Annotated, Literal, tuple, dict)


def _literals_in(kind: Any) -> Iterator[Any]:
    if get_origin(kind) is Literal:
        yield from get_args(kind)
    else:
        for inner in get_args(kind):
            yield from _literals_in(inner)


def _dicts_in(kind: Any) -> Iterator[Any]:
    yield from _generics_in(kind, dict)


def _generics_in(kind: Any, origin: type) -> Iterator[Any]:
    """Yield the types such as `tuple[int, ...]` that a type is or may be."""
    if get_origin(kind) is origin:
        yield kind
    elif get_origin(kind) not in (Literal, tuple, dict):
        for inner in get_args(kind):
            yield from _generics_in(inner, origin)


def _structs_in(kind: Any) -> Iterator[Any]:
    if isinstance(kind, type) and issubclass(kind, Struct):
        yield kind
    if get_origin(kind) not in (tuple, dict, Literal):
        for inner in get_args(kind):
            yield from _structs_in(inner)
