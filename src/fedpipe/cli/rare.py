"""Commands that are seldom typed by hand: step."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from fedpipe.cli.panels import Panel

commands = Panel("Seldom typed by hand")


@commands.add("fedpipe step train '{{$}}'", context_settings={"ignore_unknown_options": True})
def step(
    name: Annotated[str, typer.Argument(help="The step.", metavar="STEP")],
    executor_input: Annotated[str, typer.Argument(help="KFP's executor input, as JSON.", metavar="JSON")],
) -> None:
    """Run one step of a pipeline, as its container does."""
    from fedpipe.steps.supervision import main as run_step

    sys.exit(run_step([name, executor_input]))
