"""Commands of a site, a learner on its owner's own machines: site status."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedpipe.cli.options import JsonOption
from fedpipe.cli.panels import Panel
from fedpipe.cli.text import say, show_json

if TYPE_CHECKING:
    from fedpipe.commands.site import Status

commands = Panel("A site")

SiteOption = Annotated[Path, typer.Option("--config", "-c", help="The site's file.", metavar="FILE")]
SITE = Path("site.yaml")
"""The file of the commands of a site."""


@commands.add("fedpipe site status", "fedpipe site status -c /etc/fedpipe/site.yaml --json")
def status(file: SiteOption = SITE, as_json: JsonOption = False) -> None:
    """Show whether the site can take part; the exit code is 1 if it cannot."""
    from fedpipe.commands.site import status as look

    found = look(file)
    if as_json:
        show_json(found._asdict())
    else:
        _show(found)
    if found.flaws:
        raise typer.Exit(1)


def _show(found: Status) -> None:
    say(f"{found.site} of {found.federation}, at {found.store}")
    say(f"signing key: {found.key or 'none'}")
    words = {True: "enrolled", False: "not enrolled", None: "unknown"}
    say(f"enrolment: {words[found.enrolled]}")
    for flaw in found.flaws:
        say((f"{flaw}", "red"))
