"""Commands of a site about plans and its journal: pending, approve, refuse, review, reviewer, check, journal."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from fedpipe.cli.options import JsonOption
from fedpipe.cli.site import SITE, SiteOption
from fedpipe.cli.site import commands as commands
from fedpipe.cli.text import plain, say, show_json

if TYPE_CHECKING:
    from fedpipe.commands.site_decisions import Waiting
    from fedpipe.sites.journal import Entry
    from fedpipe.sites.policy import Effective

DigestArgument = Annotated[
    str, typer.Argument(help="Digest of a plan, or its beginning; by default the one that waits.", metavar="DIGEST")
]
WhyOption = Annotated[str, typer.Option("--why", help="The reason, for the journal and the federation's operator.")]


@commands.add("fedpipe site pending", "fedpipe site pending --json")
def pending(file: SiteOption = SITE, as_json: JsonOption = False) -> None:
    """Show the plans that wait, and how each differs from the one that was approved last."""
    from fedpipe.commands.site_decisions import pending as find

    found = find(file)
    if as_json:
        show_json([{**one._asdict(), "description": msgspec.to_builtins(one.description)} for one in found])
        return
    if not found:
        say("no plan waits")
    for one in found:
        _show(one)


def _show(one: Waiting) -> None:
    described = one.description
    say((one.digest, "bold"))
    say(f"waits since {_moment(one.since)} for run {one.run} of {described.federation} at {described.place}")
    say(f"code {described.code}, fedpipe {described.fedpipe}, image {described.image or 'not known'}")
    if one.signed:
        say(f"signed by {one.signed} of the reviewers")
    for line in one.settings:
        say(f"  {line}")
    for line in one.code.splitlines():
        colour = {"+": "green", "-": "red", "@": "cyan"}.get(line[:1], "")
        say((f"  {line}", colour))
    say(f"next: fedpipe site approve {one.digest[7:19]}, or fedpipe site refuse {one.digest[7:19]} --why REASON")


@commands.add("fedpipe site approve", "fedpipe site approve 3f2a --why 'ticket 4711'")
def approve(
    digest: DigestArgument = "",
    file: SiteOption = SITE,
    why: WhyOption = "",
    review: Annotated[
        list[Path] | None, typer.Option("--review", help="File of a reviewer; repeatable.", metavar="FILE")
    ] = None,
) -> None:
    """Approve a plan: its code, its settings, this version of fedpipe and this image."""
    from fedpipe.commands.site_decisions import decide

    made = decide(file, digest, "approved", why=why, reviews=tuple(review or ()))
    say(f"approved {made.plan}" if made else "the reviews are kept; the plan runs once enough reviewers have signed")


@commands.add("fedpipe site refuse --why 'sends too many metrics'")
def refuse(digest: DigestArgument = "", file: SiteOption = SITE, why: WhyOption = "") -> None:
    """Refuse a plan, also one that was approved before."""
    from fedpipe.commands.site_decisions import decide

    made = decide(file, digest, "refused", why=why)
    assert made is not None
    say(f"refused {made.plan}")


@commands.add("fedpipe site review 3f2a --key reviewer.key", "fedpipe site review --key reviewer.key --out review.json")
def review(
    digest: DigestArgument = "",
    file: SiteOption = SITE,
    key: Annotated[Path, typer.Option("--key", help="File of the reviewer's private key.", metavar="FILE")] = Path(
        "reviewer.key"
    ),
    out: Annotated[
        Path | None, typer.Option("--out", help="Write the review to a file instead.", metavar="FILE")
    ] = None,
) -> None:
    """Sign a plan as a reviewer, for `approve: {by: signed-by}`."""
    from fedpipe.commands.site_decisions import review as sign

    say(f"signed {sign(file, digest, key, out)}")


@commands.add("fedpipe site reviewer reviewer.key")
def reviewer(
    file: Annotated[Path, typer.Argument(help="File of the new private key.", metavar="FILE")],
) -> None:
    """Make a reviewer's key, and print the public one for `approve.reviewers` in site.yaml."""
    from fedpipe.commands.site_decisions import reviewer as make

    say(make(file))


@commands.add("fedpipe site check federation.yaml")
def check(
    source: Annotated[Path, typer.Argument(help="A federation file, or a plan from the store.", metavar="FILE")],
    file: SiteOption = SITE,
) -> None:
    """Show what a plan asks beyond the site's policy; the exit code is 1 if it asks for more."""
    from fedpipe.commands.site_decisions import check as compare

    found = compare(file, source)
    for objection in found.objections:
        say((objection, "red"))
    if found.runs is None:
        raise typer.Exit(1)
    say("the policy of this site allows it:")
    for line in _settings_of(found.runs):
        say(f"  {line}")


def _settings_of(runs: Effective) -> list[str]:
    """Return the settings that run at the site, in words."""
    asked = runs.demands
    work = f"{asked.steps} steps" if asked.steps else f"{asked.epochs} epochs"
    metrics = "the usual metrics" if runs.metrics is None else ", ".join(runs.metrics) or "no metric"
    privacy = f"epsilon at most {asked.privacy.target_epsilon:g}" if asked.privacy else "none"
    norm = f" of updates with an L2 norm of at most {asked.norm:g}" if asked.norm else ""
    return [
        f"a round: {work} in batches of {asked.batch_size}, with at least {asked.learners} learners",
        f"privacy: {privacy}; {f'secure sums{norm}' if asked.secure else 'the coordinator sees single updates'}",
        f"resources: {runs.cores or 'all'} cores, {runs.memory or 'all'} memory, {runs.gpus} GPUs",
        f"leaves: weights, {metrics}, {'counts by class, ' if runs.tallies else ''}of at least {runs.examples} examples"
        f"{', event files' if asked.tensorboard else ''}"
        f"{', activations or gradients of each row' if asked.algorithm == 'split' else ''}",
    ]


@commands.add("fedpipe site journal --since 12h", "fedpipe site journal --verify")
def journal(
    file: SiteOption = SITE,
    verify: Annotated[bool, typer.Option("--verify", help="Check that no byte was changed.")] = False,
    since: Annotated[
        str, typer.Option("--since", help="A time such as 2026-11-28, or an age such as 12h.", metavar="TIME")
    ] = "",
    as_json: JsonOption = False,
) -> None:
    """Show what the site has read, decided, trained and sent; with --verify, the exit code is 3 if it was changed."""
    from fedpipe.commands.site_decisions import journal as read
    from fedpipe.commands.site_decisions import verify as look

    if verify:
        flaw = look(file)
        if as_json:
            show_json({"flaw": flaw and flaw._asdict()})
        else:
            say((f"the journal was changed: {flaw}", "red") if flaw else "the journal is whole")
        if flaw:
            raise typer.Exit(3)
        return
    for entry in read(file, since):
        if as_json:
            show_json(msgspec.to_builtins(entry), indent=None)
        else:
            say(_line(entry))


def _line(entry: Entry) -> str:
    fields = ", ".join(f"{name} {plain(str(value))}" for name, value in entry.fields.items())
    return f"{entry.n:6}  {_moment(entry.at)}  {entry.event:<10}  {fields}"


def _moment(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds).astimezone():%Y-%m-%d %H:%M:%S}"
