"""The `fedpipe` command: its groups of commands, and how it ends."""

from __future__ import annotations

import io
from typing import Annotated

import typer

from fedpipe.cli import follow, identities, joining, kubeflow, rare, run, serving, site_decisions, start, store
from fedpipe.cli.ending import INTERRUPTED, STOPPED, EndedError, ended_by_signals, is_busy, leave, show_cursor
from fedpipe.cli.panels import LiteralGroup
from fedpipe.cli.text import remark, replace_unprintable, say
from fedpipe.errors import FedpipeError
from fedpipe.version import __version__

app = typer.Typer(
    name="fedpipe",
    cls=LiteralGroup,
    help="Federated training as Kubeflow Pipelines, and on this machine.",
    epilog="Example:\n$ fedpipe init demo && fedpipe run demo/federation.yaml",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",  # for the panels
    context_settings={"help_option_names": ["-h", "--help"]},
)
for group in (start, run, follow, serving, identities, joining):
    app.add_typer(group.commands)
app.add_typer(
    site_decisions.commands, name="site", help="Take part from the data owner's own machines.", rich_help_panel="Sites",
    no_args_is_help=True, epilog="Example:\n$ fedpipe site run",
)  # fmt: skip
for group in (store, kubeflow, rare):
    app.add_typer(group.commands)


def main() -> int:
    """Run the command and return its exit code; an error is one message, never a traceback."""
    replace_unprintable()
    try:
        with ended_by_signals():
            code = _run()
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except EndedError as end:
        remark(f"\nended by {end.number.name}; run the same command again to resume")
        leave(128 + end.number)
    if code == INTERRUPTED:  # typer 0.29 turns a KeyboardInterrupt into this exit code
        show_cursor()
        remark(f"\n{STOPPED}")
        if is_busy():
            leave(code)
    return code


def _run() -> int:
    try:
        code = app(prog_name="fedpipe", standalone_mode=False)  # returns the code of typer.Exit
    except FedpipeError as error:
        remark(("fedpipe:", "bold red"), f" {error}")
        return error.exit_code
    except typer.Exit as stop:
        code = stop.exit_code
    except Exception as error:
        if hasattr(error, "show") and hasattr(error, "exit_code"):  # a mistake in the command line
            shown = io.StringIO()
            error.show(file=shown)
            remark(shown.getvalue().rstrip("\n"))
            return int(error.exit_code)
        raise
    return code if isinstance(code, int) else 0


@app.callback(invoke_without_command=True)
def options(
    version: Annotated[bool, typer.Option("--version", help="Show the version.", is_eager=True)] = False,
) -> None:
    """Federated training as Kubeflow Pipelines, and on this machine."""
    if version:
        say(f"fedpipe {__version__}")
        raise typer.Exit
