"""Commands for identities: enroll, rotate, revoke, roster, policy, prepare."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedpipe.cli.options import FEDERATION, FederationOption, KeysOption, StoreOption, forwarded, given_folder
from fedpipe.cli.panels import Panel
from fedpipe.cli.text import say, show_json
from fedpipe.errors import InputError

if TYPE_CHECKING:
    from fedpipe.commands.identities import Identity
    from fedpipe.store.base import Credentials

commands = Panel("Identities")

LearnerName = Annotated[str, typer.Argument(help="A learner of the federation file.", metavar="LEARNER")]
CoordinatorOption = Annotated[
    bool, typer.Option("--coordinator", help="The coordinator instead; its key signs the models that it publishes.")
]
AccessKeyOption = Annotated[
    str | None, typer.Option("--access-key", help="Access key of an existing user of the store.", metavar="KEY")
]
SecretKeyOption = Annotated[
    Path | None, typer.Option("--secret-key-file", help="File with that user's secret key.", metavar="FILE")
]
ExamplesOption = Annotated[
    int | None,
    typer.Option(
        "--examples", min=0, max=2**53, help="Most examples that the learner may claim; 0: no limit.", metavar="N"
    ),
]
_MOUNTED = "a folder with the files accesskey and secretkey"


@commands.add(
    "fedpipe enroll hospital-a",
    "fedpipe enroll --coordinator",
    "fedpipe enroll hospital-a --examples 20000",
    "fedpipe enroll hospital-a --access-key KEY --secret-key-file FILE",
    "fedpipe enroll --requests",
    "fedpipe enroll --requests --accept hospital-b",
    "fedpipe enroll --requests --watch",
)
@forwarded
def enroll(
    learner: LearnerName = "",
    coordinator: CoordinatorOption = False,
    file: FederationOption = FEDERATION,
    store: StoreOption = None,
    keys: KeysOption = None,
    access_key: AccessKeyOption = None,
    secret_key_file: SecretKeyOption = None,
    examples: ExamplesOption = None,
    requests: Annotated[
        bool, typer.Option("--requests", help="List the sites that ask to join, or for new keys.")
    ] = False,
    accept: Annotated[str, typer.Option("--accept", help="Accept the request of this site.", metavar="SITE")] = "",
    refuse: Annotated[str, typer.Option("--refuse", help="Refuse the request of this site.", metavar="SITE")] = "",
    why: Annotated[str, typer.Option("--why", help="The reason of a refusal, which the site sees.")] = "",
    watch: Annotated[
        bool, typer.Option("--watch", help="Accept all requests that fit an open invitation, until it is ended.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="With --requests, print JSON for programs.")] = False,
) -> None:
    """Create a learner's identity: a signing key, a user of the store, a Kubernetes Secret.

    With --requests, list and answer the requests of sites that `fedpipe invite` has invited.
    """
    from fedpipe.cli.joining import Answering, answer_requests
    from fedpipe.commands.identities import enroll as make

    given = given_user(access_key, secret_key_file)
    answering = Answering(accept, refuse, why, watch, as_json)
    if requests or any(answering):
        if learner or coordinator:
            raise InputError("specify a learner or --requests", remedy="Write --requests --accept SITE.")
        answer_requests(file, store, keys, answering, given, examples or 0)
        return
    made = make(file, _member(learner, coordinator), store=store, keys=keys, given=given, examples=examples or 0)
    _show(made, "is enrolled")
    if coordinator:
        _say_to_sign("versions that were published before")


@commands.add("fedpipe rotate hospital-a -f demo/federation.yaml", "fedpipe rotate --coordinator")
@forwarded
def rotate(
    learner: LearnerName = "",
    coordinator: CoordinatorOption = False,
    file: FederationOption = FEDERATION,
    store: StoreOption = None,
    keys: KeysOption = None,
    access_key: AccessKeyOption = None,
    secret_key_file: SecretKeyOption = None,
    examples: ExamplesOption = None,
) -> None:
    """Give an enrolled learner new keys; the old keys stop working."""
    from fedpipe.commands.identities import rotate as make

    given = given_user(access_key, secret_key_file)
    made = make(file, _member(learner, coordinator), store=store, keys=keys, given=given, examples=examples)
    _show(made, "has new keys")
    if coordinator:
        _say_to_sign("versions that the old key signed")


@commands.add("fedpipe revoke hospital-a -f demo/federation.yaml", "fedpipe revoke --coordinator")
@forwarded
def revoke(
    learner: LearnerName = "",
    coordinator: CoordinatorOption = False,
    file: FederationOption = FEDERATION,
    store: StoreOption = None,
    keys: KeysOption = None,
) -> None:
    """Revoke a learner's identity: its updates no longer count."""
    from fedpipe.commands.identities import revoke as take

    left = take(file, _member(learner, coordinator), store=store, keys=keys)
    revoked = "the coordinator is revoked: its models" if coordinator else f"{learner} is revoked: its updates"
    say(f"{revoked} are refused")
    if left:
        say(f"remove its user of the store yourself: {left}, which fedpipe did not create")


def _member(learner: str, coordinator: bool) -> str:
    """Return the name of the learner, or COORDINATOR. Raises InputError."""
    from fedpipe.identity.signing import COORDINATOR

    if coordinator == bool(learner):
        raise InputError("specify a learner or --coordinator")
    return COORDINATOR if coordinator else learner


def given_user(access_key: str | None, secret_key_file: Path | None) -> Credentials | None:
    """Return the keys of an existing user, None without one. Raises InputError."""
    from fedpipe.store.base import Credentials

    if access_key is None and secret_key_file is None:
        return None
    if access_key is None or secret_key_file is None:
        raise InputError("a user has two keys", where="--access-key", remedy="Use --access-key and --secret-key-file.")
    try:
        return Credentials(access_key, secret_key_file.read_text().strip())
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot be read: {error}", where=str(secret_key_file)) from error


def _show(made: Identity, what: str) -> None:
    say(f"{made.who} {what}")
    for path in made.files:
        say(f"wrote {path}")
    if made.is_site:
        say("this machine has the private key of a site: carry it there, and delete it here")
        say("by `fedpipe invite` or `fedpipe site rotate`, the site makes the key itself")
    if made.user:
        say(f"its user of the store: {made.user}")
        say(f"next: kubectl apply -n NAMESPACE -f {made.files[-1]}")
        say(f"and in the federation file, for {made.who}: secret: {made.secret}")


def _say_to_sign(which: str) -> None:
    say(f"{which} are no longer served until you run `fedpipe sign NAME VERSION`")


@commands.add("fedpipe roster -f demo/federation.yaml")
@forwarded
def roster(file: FederationOption = FEDERATION, store: StoreOption = None, keys: KeysOption = None) -> None:
    """Sign the learners' public keys as the administrator, for secure sums."""
    from fedpipe.commands.roster import roster as sign

    made = sign(file, store=store, keys=keys)
    say(f"the roster has {len(made.learners)} learners: {', '.join(made.learners)}")
    if made.missing:
        say(f"not enrolled, so not in the roster: {', '.join(made.missing)}")
    say(f"each learner needs the administrator's public key: {made.file}")


@commands.add("fedpipe policy hospital-a", "fedpipe policy", "fedpipe policy --server")
def policy(
    learner: Annotated[str, typer.Argument(help="A learner; by default the coordinator.", metavar="LEARNER")] = "",
    file: FederationOption = FEDERATION,
    store: StoreOption = None,
    server: Annotated[bool, typer.Option("--server", help="The policy of `fedpipe serve` instead.")] = False,
    dealer: Annotated[bool, typer.Option("--dealer", help="The policy of the step that deals shards.")] = False,
) -> None:
    """Print the S3 policy of a learner, the coordinator, the dealer of shards or the server."""
    from fedpipe.commands.identities import policy_of

    show_json(policy_of(file, learner, store=store, server=server, dealer=dealer))


@commands.add("fedpipe prepare 's3://bucket/hospitals/digits?endpoint=http://minio:9000' --server keys")
def prepare(
    uri: Annotated[str, typer.Argument(help="The federation's part of the store.", metavar="s3://BUCKET/PREFIX/NAME")],
    coordinator: Annotated[
        Path | None,
        typer.Option(
            "--coordinator", parser=given_folder, metavar="DIR", help=f"Keys of the coordinator's user: {_MOUNTED}."
        ),
    ] = None,
    server: Annotated[
        Path | None,
        typer.Option("--server", parser=given_folder, metavar="DIR", help=f"Keys of the server's user: {_MOUNTED}."),
    ] = None,
    dealer: Annotated[
        Path | None,
        typer.Option(
            "--dealer",
            parser=given_folder,
            metavar="DIR",
            help="Keys of the user that deals shards, instead of the coordinator's.",
        ),
    ] = None,
    noncurrent_days: Annotated[
        int,
        typer.Option(
            "--noncurrent-days", min=0, max=36500, help="Days after which old versions of objects go; 0: never."
        ),
    ] = 0,
) -> None:
    """Create a federation's bucket, and users for its coordinator and server, as the store's administrator."""
    from fedpipe.commands.identities import prepare as make
    from fedpipe.store.credentials import read_mounted

    users = [read_mounted(folder) if folder else None for folder in (coordinator, server, dealer)]
    given = {"coordinator": users[0], "server": users[1], "dealer": users[2]}
    for line in make(uri, **given, noncurrent_days=noncurrent_days):
        say(line)
