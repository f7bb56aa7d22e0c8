"""The only way to the terminal: everything is printed as text, and never read as markup.

Names, paths, error messages and log lines come from outside. `plain` strips their control sequences, and styles are
passed separately, so that no text can style or steer the terminal.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

Styled = str | tuple[str, str]
"""A text, or a text and its style."""

_SEQUENCE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[ -/]*[0-~])")
"""Control sequences of a terminal (ECMA-48): CSI, such as colours; OSC, such as titles and links; short ones."""
_CONTROLS = dict.fromkeys((*range(9), *range(11, 32), *range(127, 160), *range(0x202A, 0x202F), *range(0x2066, 0x206A)))
"""Control characters except tab and newline, and those that change the direction of writing."""


def console(*, stderr: bool = False) -> Console:
    """Return a console that prints strings as they are."""
    return Console(stderr=stderr, markup=False, emoji=False, highlight=False)


def replace_unprintable() -> None:
    """Let standard output and error show `?` for a character that the terminal's encoding lacks."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


out, err = console(), console(stderr=True)


def plain(text: str) -> str:
    """Return a text without control sequences and control characters.

    >>> plain("\\x1b[31mred\\x1b[0m [/b]")
    'red [/b]'
    """
    return _SEQUENCE.sub("", text.encode(errors="replace").decode()).translate(_CONTROLS)


def styled(*parts: Styled) -> Text:
    """Join texts for the terminal."""
    pairs = ((part, "") if isinstance(part, str) else part for part in parts)
    return Text.assemble(*((plain(text), style) for text, style in pairs))


def say(*parts: Styled) -> None:
    """Print a line on standard output."""
    say_text(styled(*parts))


def say_text(text: Text) -> None:
    """Print a line from `styled` on standard output."""
    out.print(text, soft_wrap=True)


def remark(*parts: Styled) -> None:
    """Print a line on standard error."""
    err.print(styled(*parts), soft_wrap=True)


def note(text: str) -> None:
    """Print a note on standard error."""
    remark(("note:", "yellow"), f" {text}")


def show_json(value: Any) -> None:
    """Print a value as JSON, for programs."""
    print(json.dumps(value, indent=2))


def show_table(rows: Iterable[Sequence[Styled]], head: Sequence[str] = ()) -> None:
    """Print rows in columns."""
    table = Table(show_header=bool(head), header_style="dim", box=None, padding=(0, 2, 0, 0))
    for name in head:
        table.add_column(styled(name))
    for row in rows:
        table.add_row(*map(styled, row))
    out.print(table)


@contextlib.contextmanager
def busy(text: str) -> Iterator[None]:
    """Show activity on standard error, if it is a terminal."""
    with err.status(styled(text)):
        yield


@contextlib.contextmanager
def following(text: str) -> Iterator[Callable[[str], None]]:
    """Show a state below the printed lines, if standard output is a terminal; yield a function that changes it."""
    with out.status(styled(text)) as status:
        yield lambda state: status.update(styled(state))
