"""The help of the command: panels of commands, examples, and no text that can be markup."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, TypeVar

import typer
from rich.markup import escape
from typer.core import TyperGroup

Function = TypeVar("Function", bound=Callable[..., Any])
_TEXTS = ("help", "short_help", "epilog", "rich_help_panel")


class Panel(typer.Typer):
    """The commands of one panel of `fedpipe --help`."""

    def __init__(self, title: str) -> None:
        super().__init__()
        self._title = title

    def add(self, *examples: str, name: str | None = None, **settings: Any) -> Callable[[Function], Function]:
        """Decorate the function of a command.

        Args:
            examples: command lines for the end of its help.
            name: of the command, where it differs from the function's.
            settings: see `typer.Typer.command`.
        """
        lines = "\n".join(f"$ {example}" for example in examples)
        epilog = f"{'Examples' if len(examples) > 1 else 'Example'}:\n{lines}"
        return self.command(name, epilog=epilog, rich_help_panel=self._title, **settings)


class LiteralGroup(TyperGroup):
    """A group whose help, and that of all commands below it, is shown as it is written.

    Typer takes help as rich's markup, in which `[/NAME]` is an error and `[bold]` vanishes.
    """

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        _escape(self)


def _escape(command: Any) -> None:
    for described in (command, *command.params):
        for name in _TEXTS:
            if text := getattr(described, name, None):
                setattr(described, name, _literal(text))
    for inner in getattr(command, "commands", {}).values():
        _escape(inner)


def _literal(text: str) -> str:
    """Return the markup that shows a text; an empty tag keeps rich from taking `:word:` for an emoji."""
    return re.sub(r":(?=\S+:)", ":[none][/none]", escape(text))
