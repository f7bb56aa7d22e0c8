"""Commands by which a site joins: invite, the answers of `enroll --requests`, site join, site rotate."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from fedpipe.cli import site
from fedpipe.cli.options import FEDERATION, FederationOption, KeysOption, StoreOption, forwarded, given_days
from fedpipe.cli.panels import Panel
from fedpipe.cli.site import SITE, SiteOption
from fedpipe.cli.text import Styled, following, note, remark, say, show_json, show_table
from fedpipe.errors import InputError

if TYPE_CHECKING:
    from fedpipe.commands.admission import Asked, Decision
    from fedpipe.store.base import Credentials

commands = Panel("Identities")
_LOOK = 5.0
"""Seconds between two looks for requests."""
_KINDS = {"join": "joins", "rotation": "new keys", "invited": "invited"}


@commands.add(
    "fedpipe invite hospital-b",
    "fedpipe invite hospital-b --expires 24h --endpoint https://minio.example.org",
    "fedpipe invite hospital-b --withdraw",
)
@forwarded
def invite(
    learner: Annotated[str, typer.Argument(help="A learner of the federation file.", metavar="SITE")],
    file: FederationOption = FEDERATION,
    store: StoreOption = None,
    keys: KeysOption = None,
    expires: Annotated[str, typer.Option("--expires", help="When it expires: 12h, or at most 7d.")] = "7d",
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="The file to write; by default SITE.invitation.yaml.", metavar="FILE"),
    ] = None,
    endpoint: Annotated[
        str, typer.Option("--endpoint", help="The store's endpoint as the site reaches it.", metavar="URL")
    ] = "",
    ca: Annotated[
        Path | None,
        typer.Option("--ca", help="Certificate of the store's authority, in PEM form.", metavar="FILE"),
    ] = None,
    withdraw: Annotated[bool, typer.Option("--withdraw", help="Withdraw the invitation instead.")] = False,
) -> None:
    """Invite a site: write one file, with which it joins by `fedpipe site join FILE`."""
    from fedpipe.commands import invitations

    if withdraw:
        found = invitations.withdraw(file, learner, store=store)
        say(f"the invitation of {learner} no longer works" if found else f"{learner} has no invitation")
        return
    days = given_days(expires, "--expires") or 0.0
    made = invitations.invite(
        file, learner, store=store, keys=keys, expires=days * 24 * 3600, out=out, endpoint=endpoint, ca=ca
    )
    say(f"wrote {made.file}: secret, works once, until {_time(made.expires)}")
    if made.endpoint:
        say(f"the site must reach {made.endpoint}")
    if not made.at_site:
        note(f"{learner} is a pod of the pipeline now; in the federation file, write {{name: {learner}, at: site}}")
    say(f"next, at the site: fedpipe site join {made.file.name}")
    say("and here: fedpipe enroll --requests" + ("" if file == FEDERATION else f" -f {file}"))


class Answering(NamedTuple):
    """The options of `enroll --requests`."""

    accept: str = ""
    refuse: str = ""
    why: str = ""
    watch: bool = False
    as_json: bool = False


def answer_requests(
    file: Path, store: str | None, keys: Path | None, answering: Answering, given: Credentials | None, examples: int
) -> None:
    """List requests of sites, answer one, or answer all until the command is ended.

    Args:
        file: the federation file.
        store: a store to use instead of the federation's.
        keys: folder of the administrator's key.
        answering: the options.
        given: keys of an existing user of the store, for the accepted site.
        examples: the most that an accepted site may claim to have; 0: no limit.
    """
    from fedpipe.commands import admission

    chosen = [name for name in ("accept", "refuse", "watch") if getattr(answering, name)]
    if len(chosen) > 1:
        raise InputError(f"--{chosen[0]} and --{chosen[1]} exclude each other", remedy="Use one of them.")
    if answering.why and not answering.refuse:
        raise InputError("--why is the reason of a refusal", remedy="Use it with --refuse SITE.")
    if given is not None and not answering.accept:
        raise InputError("keys of the store are for one site", where="--access-key", remedy="Use --accept SITE.")
    if answering.watch:
        _watch(file, store, keys, examples)
    elif answering.accept:
        made = admission.accept(file, answering.accept, store=store, keys=keys, given=given, examples=examples)
        _show_decision(made)
    elif answering.refuse:
        _show_decision(admission.refuse(file, answering.refuse, why=answering.why, store=store, keys=keys))
    else:
        found = admission.requests(file, store=store, keys=keys)
        if answering.as_json:
            shown = [one._asdict() for one in found]
            show_json([{key: value for key, value in one.items() if key != "data"} for one in shown])
        elif found:
            show_table(map(_row, found), head=("site", "request", "key", "since", "state"), whole=3)
        else:
            say("there are no requests, and no invitations")


def _watch(file: Path, store: str | None, keys: Path | None, examples: int) -> None:
    from fedpipe.commands.admission import attend

    for number, decisions in enumerate(attend(file, store=store, keys=keys, examples=examples)):
        if number == 0:
            say("accepts requests of sites that fit an open invitation, until it is ended")
        for decision in decisions:
            _show_decision(decision)
        time.sleep(_LOOK)


def _show_decision(made: Decision) -> None:
    if not made.learner:
        note(made.why)
        return
    key = f", key {made.key}" if made.key else ""
    why = f": {made.why}" if made.why else ""
    words = {"accepted": "is accepted", "refused": "is refused", "waits": "waits"}
    say(f"{made.learner} ({_KINDS[made.kind]}{key}) {words[made.outcome]}{why}")


def _row(asked: Asked) -> Sequence[Styled]:
    until = "until " if asked.kind == "invited" else ""
    state = asked.why or ("no request yet" if asked.kind == "invited" else "fits its invitation")
    if asked.kind == "rotation" and not asked.why:
        state = "signed with its current key"
    return asked.learner, _KINDS[asked.kind], asked.key, f"{until}{_time(asked.since)}", state


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")


WaitOption = Annotated[
    float | None,
    typer.Option("--wait", min=0, max=10**7, help="Most seconds to wait for the answer.", metavar="SECONDS"),
]


@site.commands.add("fedpipe site join hospital-b.invitation.yaml", "fedpipe site join FILE -c /etc/fedpipe/site.yaml")
def join(
    invitation: Annotated[Path, typer.Argument(help="The file that the administrator sent.", metavar="FILE")],
    file: SiteOption = SITE,
    wait: WaitOption = None,
) -> None:
    """Join a federation: make this site's key here, ask, wait for the answer, and write site.yaml."""
    from fedpipe.commands import joining
    from fedpipe.sites.joining import fingerprint

    with following("asking to join") as show:
        made = joining.join(invitation, file, wait=wait, listener=show)
    say(f"{made.site} has joined {made.federation}; its key is {fingerprint(made.key)}")
    say(f"{'wrote' if made.written else 'kept'} {made.file}")
    remark("next: write where this site's data are and what it allows into that file, then run `fedpipe site status`")


@site.commands.add("fedpipe site rotate", "fedpipe site rotate -c /etc/fedpipe/site.yaml")
def rotate(
    file: SiteOption = SITE,
    access_key: Annotated[
        str | None, typer.Option("--access-key", help="New access key of the store, handed over.", metavar="KEY")
    ] = None,
    secret_key_file: Annotated[
        Path | None, typer.Option("--secret-key-file", help="File with its secret key.", metavar="FILE")
    ] = None,
    wait: WaitOption = None,
) -> None:
    """Give this site new keys; the request is signed by the current one, and the old keys stop working."""
    from fedpipe.cli.identities import given_user
    from fedpipe.commands import joining
    from fedpipe.sites.joining import fingerprint

    given = given_user(access_key, secret_key_file)
    with following("asking for new keys") as show:
        seconds = joining.SETTLED if wait is None else wait
        key = joining.rotate(file, given=given, wait=seconds, listener=show)
    say(f"this site has new keys; its key is {fingerprint(key)}")
