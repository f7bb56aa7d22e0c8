"""Finds the name that a user probably meant."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Collection

_MOST = 40
"""Most names that a message lists."""


def closest(name: str, known: Collection[str]) -> str | None:
    """Return the name that was probably meant: similar, or abbreviated by its initials, its start or a part of it.

    >>> closest("bach_size", ["batch_size", "rounds"]), closest("lr", ["rounds", "learning_rate"])
    ('batch_size', 'learning_rate')
    >>> closest("Age (years)", ["age_years", "sex"]), closest("GRÖSSE", ["Größe"])
    ('age_years', 'Größe')
    """
    wanted, plain = _plain(name), {_plain(each): each for each in known}
    if wanted in plain:
        return plain[wanted]
    if similar := difflib.get_close_matches(wanted, plain, n=1):
        return plain[similar[0]]
    if len(wanted) < 2:
        return None
    rules: tuple[Callable[[str], bool], ...] = (
        lambda each: "".join(word[:1] for word in each.split("_")) == wanted,
        lambda each: each.startswith(wanted) or wanted in each.split("_"),
        lambda each: each in wanted.split("_"),
    )
    for rule in rules:
        found = [each for each in plain if rule(each)]
        if len(found) == 1:
            return plain[found[0]]
    return None


def _plain(name: str) -> str:
    """Return a name in lower case, with `_` for all that separates words."""
    return re.sub(r"[\W_]+", "_", name.casefold()).strip("_") or name


def suggestion(name: str, known: Collection[str], *, listed: str = "Valid") -> str:
    """Suggest the name that was probably meant, or list all."""
    close = closest(name, known)
    if close is not None:
        return f"Did you mean {close!r}?"
    if not known:
        return "Remove it."
    names = sorted(known)
    more = f", and {len(names) - _MOST} more" if len(names) > _MOST else ""
    return f"{listed}: {', '.join(names[:_MOST])}{more}."
