"""Finds names of classes or categories that are probably one, written in different ways.

alike(["neg", "Neg", "pos"])            ["neg", "Neg"]
alike(["0", "1", "no", "yes"])          ["0", "no"], ["1", "yes"]
alike(["m", "f"])                       nothing
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable

from fedpipe.data.cells import fits, parse_cells
from fedpipe.data.schema import Kind


def alike(names: Iterable[str]) -> list[list[str]]:
    """Returns groups of names that differ only in case, spaces or accents' encoding, or in words for true and false."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(_meaning(name), []).append(name)
    return [group for group in groups.values() if len(group) > 1]


def alike_note(names: Iterable[str], noun: str) -> str:
    """Returns a sentence about the first names that are alike, or nothing."""
    groups = alike(names)
    return f"the {noun} {' and '.join(map(repr, groups[0][:3]))} may be the same" if groups else ""


def _meaning(name: str) -> str:
    """Returns what names that are alike have in common."""
    text = "".join(unicodedata.normalize("NFKC", name).casefold().split())
    for kind in _KINDS:
        if text and fits(kind, [text]):
            return str(float(parse_cells(kind, [text], where="")[0]))
    return text


_KINDS: tuple[Kind, ...] = ("boolean", "number")
