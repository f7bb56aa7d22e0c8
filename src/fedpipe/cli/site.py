"""Commands of a site, a learner on its owner's own machines: run, status, stop."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedpipe.cli.options import JsonOption
from fedpipe.cli.panels import Panel
from fedpipe.cli.text import busy, say, show_json

if TYPE_CHECKING:
    from fedpipe.commands.site import Status

commands = Panel("A site")

SiteOption = Annotated[Path, typer.Option("--config", "-c", help="The site's file.", metavar="FILE")]
SITE = Path("site.yaml")
"""The file of the commands of a site."""


@commands.add("fedpipe site run", "fedpipe site run -c /etc/fedpipe/site.yaml --once")
def run(
    file: SiteOption = SITE,
    once: Annotated[bool, typer.Option("--once", help="End after one session, the current or the next one.")] = False,
) -> None:
    """Attend the sessions of the federation as this site, until it is asked to end.

    SIGTERM and `fedpipe site stop` end it after the answer that it works on.
    """
    from fedpipe.commands.site import run as attend
    from fedpipe.steps.contract import start_log
    from fedpipe.steps.fence import hide_memory

    start_log()
    hide_memory()
    last = attend(file, once=once)
    if last is not None and once:
        say(f"attended run {last.opened.run}: " + ", ".join(f"{name} {n}" for name, n in last.took_part.items()))


@commands.add("fedpipe site stop", "fedpipe site stop -c /etc/fedpipe/site.yaml")
def stop(
    file: SiteOption = SITE,
    wait: Annotated[
        float, typer.Option("--wait", min=0, max=86_400, help="Seconds that the agent may take.", metavar="SECONDS")
    ] = 3600.0,
) -> None:
    """End the agent after the answer that it works on; the exit code is 1 if it still runs."""
    from fedpipe.commands.site import stop as ask

    with busy("waiting for the agent to end"):
        ended = ask(file, wait=wait)
    say("the agent has ended" if ended else "the agent still runs")
    if not ended:
        raise typer.Exit(1)


@commands.add("fedpipe site status", "fedpipe site status -c /etc/fedpipe/site.yaml --json")
def status(file: SiteOption = SITE, as_json: JsonOption = False) -> None:
    """Show what the agent does and whether the site can take part; the exit code is 1 if it cannot."""
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
    if found.running:
        say(f"agent: {found.doing or found.state}, for {found.seconds:.0f} s")
    words = {True: "in force", False: "not available on this system"}
    for name, text in (("files", "files with keys, and others' files"), ("network", "network")):
        known = words[found.isolation[name]] if found.isolation else "not known before the first training"
        say(f"isolation of the training from {text}: {known}")
    for flaw in found.flaws:
        say((flaw, "red"))
