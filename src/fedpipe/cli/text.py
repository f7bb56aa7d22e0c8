"""The terminal: all that the command prints goes through here, as text and never as markup.

Names, paths, messages of a store and lines of a pod come from elsewhere. `plain` removes from every text what a
terminal would obey, and styles are given apart from it, so that no text can be taken for a style.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

Part = str | tuple[str, str]
"""A text, or a text and its style."""

_SEQUENCE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[ -/]*[0-~])")
"""Escape sequences of a terminal (ECMA-48): control sequences, such as colours; titles and links; the short ones."""
_CONTROLS = dict.fromkeys((*range(9), *range(11, 32), *range(127, 160), *range(0x202A, 0x202F), *range(0x2066, 0x206A)))
"""Control characters but tab and newline, and those that reverse the direction of writing."""


def console(*, stderr: bool = False) -> Console:
    """Return a console that takes strings as they are."""
    return Console(stderr=stderr, markup=False, emoji=False, highlight=False)


out, err = console(), console(stderr=True)


def plain(text: str) -> str:
    """Return a text without the sequences and characters that a terminal obeys instead of showing.

    >>> plain("\\x1b[31mred\\x1b[0m [/b]")
    'red [/b]'
    """
    return _SEQUENCE.sub("", text.encode(errors="replace").decode()).translate(_CONTROLS)


def styled(*parts: Part) -> Text:
    """Join texts for the terminal."""
    pairs = ((part, "") if isinstance(part, str) else part for part in parts)
    return Text.assemble(*((plain(text), style) for text, style in pairs))


def say(*parts: Part) -> None:
    """Print a line of results."""
    say_text(styled(*parts))


def say_text(text: Text) -> None:
    """Print a line of results that `styled` has joined."""
    out.print(text, soft_wrap=True)


def remark(*parts: Part) -> None:
    """Print a line about the work, on standard error."""
    err.print(styled(*parts), soft_wrap=True)


def note(text: str) -> None:
    """Print a note on standard error."""
    remark(("note:", "yellow"), f" {text}")


def show_json(value: Any) -> None:
    """Print a value for programs."""
    print(json.dumps(value, indent=2))


def show_table(rows: Iterable[Sequence[Part]], head: Sequence[str] = ()) -> None:
    """Print rows in columns."""
    table = Table(show_header=bool(head), header_style="dim", box=None, padding=(0, 2, 0, 0))
    for name in head:
        table.add_column(styled(name))
    for row in rows:
        table.add_row(*map(styled, row))
    out.print(table)


@contextlib.contextmanager
def busy(text: str) -> Iterator[None]:
    """Show on standard error that the command works, where that is a terminal."""
    with err.status(styled(text)):
        yield


@contextlib.contextmanager
def following(text: str) -> Iterator[Callable[[str], None]]:
    """Show a state below the printed lines, where standard output is a terminal; yields a function that changes it."""
    with out.status(styled(text)) as status:
        yield lambda state: status.update(styled(state))
