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
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Self

from rich.console import Console
from rich.table import Table
from rich.text import Text

SILENCE = 15.0
"""Most seconds without a line, where the output is not a terminal."""
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
    out.print(styled(*parts), soft_wrap=True)


def remark(*parts: Styled) -> None:
    """Print a line on standard error."""
    remark_text(styled(*parts))


def remark_text(text: Text) -> None:
    """Print a line from `styled` on standard error."""
    err.print(text, soft_wrap=True)


def note(text: str) -> None:
    """Print a note on standard error."""
    remark(("note:", "yellow"), f" {text}")


def show_json(value: Any, *, indent: int | None = 2) -> None:
    """Print a value as JSON, for programs; on one line without an indent."""
    print(json.dumps(value, indent=indent))


def show_table(rows: Iterable[Sequence[Styled]], head: Sequence[str] = (), *, whole: int = 0) -> None:
    """Print rows in columns.

    Args:
        rows: the cells.
        head: the columns' names.
        whole: how many columns, from the first, are never cut or broken.
    """
    table = Table(show_header=bool(head), header_style="dim", box=None, padding=(0, 2, 0, 0))
    for number, name in enumerate(head):
        table.add_column(styled(name), no_wrap=number < whole, overflow="fold")
    for row in rows:
        table.add_row(*map(styled, row))
    out.print(table)


class Clock:
    """Prints lines with the seconds since the start on standard error, and a sign of life after each silence.

    It is for pipes and log files, in which nothing moves.

    Args:
        doing: returns what is done at the moment; empty for nothing worth a line.
    """

    def __init__(self, doing: Callable[[], str]) -> None:
        self._doing, self._started, self._spoken = doing, time.monotonic(), time.monotonic()
        self._ended = threading.Event()

    def __enter__(self) -> Self:
        threading.Thread(target=self._beat, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()

    def line(self, text: Text | str) -> None:
        """Print a line."""
        self._spoken = time.monotonic()
        seconds = f"{self._spoken - self._started:6.1f} s  "
        remark_text(styled(seconds).append_text(styled(text) if isinstance(text, str) else text))

    def _beat(self) -> None:
        while not self._ended.wait(max(0.1, self._spoken + SILENCE - time.monotonic())):
            if time.monotonic() - self._spoken < SILENCE:
                continue
            self._spoken = time.monotonic()
            if doing := self._doing():
                self.line(f"still {doing}")


@contextlib.contextmanager
def busy(text: str) -> Iterator[None]:
    """Show activity on standard error."""
    if err.is_terminal:
        with err.status(styled(text)):
            yield
        return
    with Clock(lambda: text) as clock:
        clock.line(text)
        yield


@contextlib.contextmanager
def following(text: str) -> Iterator[Callable[[str], None]]:
    """Show a state below the printed lines; yield a function that changes it."""
    if out.is_terminal:
        with out.status(styled(text)) as status:
            yield lambda state: status.update(styled(state))
        return
    current = [text]
    with Clock(lambda: current[0]) as clock:
        clock.line(text)

        def change(state: str) -> None:
            if state and current[0] == text:
                clock.line(state)
            current[0] = state or current[0]

        yield change
