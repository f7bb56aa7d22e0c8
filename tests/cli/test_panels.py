"""The help of every command: whole, within 100 columns, with examples that parse, and never markup."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import typer
from rich.text import Text
from typer.testing import CliRunner

from fedpipe.cli.main import app
from fedpipe.cli.panels import LiteralGroup, Panel
from tests.cli.conftest import Result

ROOT: Any = typer.main.get_command(app)
HOSTILE = r"[/NAME] [bold]x[/bold] \[y] :warning: [link=a]b"


def commands(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command and group below a command, and itself."""
    yield path, command
    for name, inner in getattr(command, "commands", {}).items():
        yield from commands(inner, (*path, name))


COMMANDS = {" ".join(("fedpipe", *path)): (path, command) for path, command in commands(ROOT)}


def written(text: str | None) -> str:
    """A text of the tree as it was written."""
    return Text.from_markup(text or "", emoji=False).plain


@pytest.mark.parametrize(("path", "command"), COMMANDS.values(), ids=COMMANDS.keys())
def test_help(
    path: tuple[str, ...], command: Any, fedpipe: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    done = fedpipe(*path, "--help")
    assert (done.code, done.err) == (0, "")
    assert max(map(len, done.out.splitlines())) <= 100
    assert "…" not in done.out
    words = re.sub(r"[│╭╮╰╯─]", " ", done.out).split()
    shown = [p for p in command.params if not p.hidden]
    options = [option for p in shown for option in p.opts if option.startswith("-")]
    for text in (command.help, command.epilog, *(p.help for p in shown), *options):
        assert set(written(text).split()) <= set(words), text
    for example in examples(command):
        assert f"$ {example}" in [line.strip() for line in done.out.splitlines()]


def examples(command: Any) -> list[str]:
    """The command lines at the end of the help."""
    return [line.removeprefix("$ ") for line in written(command.epilog).splitlines() if line.startswith("$ ")]


@pytest.mark.parametrize("command", [command for _, command in COMMANDS.values()], ids=COMMANDS.keys())
def test_examples_parse(command: Any) -> None:
    assert examples(command)
    for example in examples(command):
        for line in example.split(" && "):
            fedpipe, name, *arguments = shlex.split(line)
            assert fedpipe == "fedpipe"
            called, groups = ROOT.commands[name], [ROOT]
            while getattr(called, "commands", {}):
                groups.append(called)
                name, *arguments = arguments
                called = called.commands[name]
            assert called.make_context(name, arguments).params
            assert command is called or command in groups


def test_the_panels_are_in_order_of_use(fedpipe: Callable[..., Result]) -> None:
    assert re.findall(r"╭─ ([\w ]+) ─", fedpipe("--help").out) == [
        "Options", "Start", "Run on this machine", "Follow runs", "Publish and serve", "Identities", "Sites",
        "The store", "Kubeflow", "Seldom typed by hand",
    ]  # fmt: skip


def test_no_text_is_markup() -> None:
    panel = Panel(f"panel {HOSTILE}")

    @panel.add(f"example {HOSTILE}")
    def inner(
        given: str = typer.Argument("", help=f"argument {HOSTILE}", metavar="[NAME]"),
        chosen: str = typer.Option("[/a]", help=f"option {HOSTILE}", metavar="[/b]"),
    ) -> None:
        pass

    inner.__doc__ = f"inner {HOSTILE}"
    for name in ("one", "two"):
        panel.command(name, help=f"{name} {HOSTILE}")(lambda: None)
    literal = typer.Typer(cls=LiteralGroup, help=f"group {HOSTILE}", rich_markup_mode="rich")
    literal.add_typer(panel)
    nested = typer.Typer(help=f"nested {HOSTILE}")
    nested.command("deep", help=f"deep {HOSTILE}")(lambda: None)
    literal.add_typer(nested, name="nested")
    told = ""
    for arguments in ([], ["inner"], ["nested"], ["nested", "deep"]):
        done = CliRunner().invoke(literal, [*arguments, "--help"], env={"COLUMNS": "200"})
        assert done.exit_code == 0, done.exception
        told += done.output
    for name in ("panel", "example", "argument", "option", "inner", "one", "two", "group", "nested", "deep"):
        assert f"{name} {HOSTILE}" in told
