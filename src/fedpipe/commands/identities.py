"""Identities: a key pair, a user of the store with minimal rights, and a Kubernetes Secret.

    keys/<learner>.key           the private key, for a learner that runs on this machine
    keys/<learner>.secret.yaml   the Secret with the key and the store's credentials, for `kubectl apply`

COORDINATOR takes the place of a learner's name for the coordinator, in the names of files too. Users are created with
MinIO's admin API. For other stores, and without an administrator's credentials, an administrator creates the user with
the printed policy and passes its keys. Every step that can fail comes before the store records the enrolment, and is
undone when a later one fails.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import yaml
from msgspec.structs import replace

from fedpipe.commands.members import Member, StoredFederation, check_enrolled, find_member, open_place
from fedpipe.commands.opened import StoreGiven
from fedpipe.commands.roster import administrator_key, renew_roster
from fedpipe.errors import InputError
from fedpipe.federation.sources import Source
from fedpipe.identity.enrolment import Enrolment, format_time, read_enrolled
from fedpipe.identity.policies import Policy, check_prefix, coordinator_policy, dealer_policy, server_policy
from fedpipe.identity.signing import COORDINATOR, make_key, public_key
from fedpipe.rounds.floors import floors_in
from fedpipe.rounds.ledger import state_of_ledger
from fedpipe.store import check_uri, open_store
from fedpipe.store.base import Credentials
from fedpipe.store.credentials import new_secret
from fedpipe.store.files import write_whole


class Identity(NamedTuple):
    """A new identity: the member's name in a sentence, the files, the user of the store, and the Secret's name.

    `is_site` says that the member is a site, whose key is better made there.
    """

    who: str
    files: tuple[Path, ...]
    user: str
    secret: str
    is_site: bool = False


def enroll(
    source: Source, learner: str, *, store: StoreGiven = None, keys: str | Path | None = None,
    given: Credentials | None = None, examples: int = 0,
) -> Identity:  # fmt: skip
    """Gives a learner, or the coordinator, its identity.

    Args:
        source: the federation file, or its content.
        learner: its name in the file, or COORDINATOR.
        store: a store to use instead of the federation's.
        keys: folder of the key files; `keys` next to the federation file by default.
        given: credentials of an existing user of the store.
        examples: the most that the learner may claim to have; 0: no limit.

    Raises:
        InputError: there is no such learner, or it is already enrolled.
        StoreError: the store cannot be used, or cannot create users; nothing was changed.
    """
    place = open_place(source, store)
    member = find_member(place, learner)
    known = member.enrolment(read_enrolled(place.store))
    if known is not None and known.revoked is None:
        raise InputError(
            f"{member.who} has been enrolled since {format_time(known.since)}",
            remedy=f"Run `fedpipe rotate {member.argument}` to replace its keys.",
        )
    return _identified(place, member, place.key_folder(keys), given, examples)


def rotate(
    source: Source, learner: str, *, store: StoreGiven = None, keys: str | Path | None = None,
    given: Credentials | None = None, examples: int | None = None,
) -> Identity:  # fmt: skip
    """Gives an enrolled learner, or the coordinator, new keys; the old keys stop working.

    `examples` replaces the number of examples of the enrolment, if given.

    Models that the coordinator signed with its old key are not served until they are signed again (`sign`).

    Raises:
        InputError: it is not enrolled.
        StoreError: the store cannot be used. If its user already has a new secret, the old one no longer works: run the
            same command again.
    """
    place = open_place(source, store)
    member = find_member(place, learner)
    known = check_enrolled(place, member)
    most = known.examples if examples is None else examples
    return _identified(place, member, place.key_folder(keys), given, most)


def revoke(
    source: Source, learner: str, *, store: StoreGiven = None, keys: str | Path | None = None
) -> str:  # fmt: skip
    """Revokes an identity: its signatures no longer count, and its user of the store is removed.

    Args:
        source: the federation file, or its content.
        learner: its name in the file, or COORDINATOR.
        store: a store to use instead of the federation's.
        keys: folder of the key files, with the administrator's, for a federation with secure sums.

    Returns:
        The user that remains, where fedpipe did not create it; empty without one.

    Raises:
        InputError: it is not enrolled.
        StoreError: the user could not be removed. The learner's updates no longer count.
    """
    place = open_place(source, store)
    member = find_member(place, learner)
    known = check_enrolled(place, member)
    member.enroll(place, replace(known, revoked=time.time()))  # first: this is what makes the updates stop counting
    if place.federation.secure and any(one.revoked is None for one in read_enrolled(place.store).learners.values()):
        renew_roster(place, place.key_folder(keys))
    if not known.user or known.user != user_of(place, member):
        return known.user
    from fedpipe.store.users import Users

    Users(place.uri).remove(known.user)
    return ""


def policy_of(
    source: Source, learner: str = "", *, store: StoreGiven = None, server: bool = False, dealer: bool = False
) -> Policy:  # fmt: skip
    """Returns the S3 policy of a learner, the coordinator, the dealer of shards or the server.

    Args:
        source: the federation file, or its content.
        learner: the learner; empty for the coordinator.
        store: a store to use instead of the federation's.
        server: returns the policy of `fedpipe serve` instead.
        dealer: returns the policy of the shard step instead.

    Raises:
        InputError: there is no such learner, or the store has no users.
    """
    place = open_place(source, store)
    if not place.on_s3:
        raise InputError("a folder has no users", where=place.uri, remedy="Use an s3:// store.")
    if dealer:
        return dealer_policy(place.bucket, place.prefix)
    if server:
        return server_policy(place.bucket, place.prefix)
    return find_member(place, learner or COORDINATOR).policy(place)


def prepare(
    uri: str, *, coordinator: Credentials | None = None, server: Credentials | None = None,
    dealer: Credentials | None = None, noncurrent_days: int = 0,
) -> list[str]:  # fmt: skip
    """Creates a federation's bucket and the users of coordinator, dealer and server, or updates existing ones.

    Args:
        uri: of the federation's own part of the store: `s3://bucket/prefix/NAME`, with its endpoint.
        coordinator: credentials for a user that the coordinator's steps use.
        server: credentials for a user that `fedpipe serve` uses.
        dealer: credentials for a user of the step that deals shards, which the coordinator's user then cannot.
        noncurrent_days: days after which old versions of objects go, in a bucket with versions; 0 for no such rule.

    Returns:
        A line for each thing that was done.

    Raises:
        InputError: the URI names no federation in an S3 store.
        StoreError: the store refuses, or cannot create users.
    """
    from fedpipe.store.lifecycle import expire_old_versions
    from fedpipe.store.s3 import MinioStore
    from fedpipe.store.users import Users

    parts = urlsplit(check_uri(uri))
    prefix = parts.path.strip("/")
    if parts.scheme != "s3" or not prefix:
        raise InputError(
            "is not the URI of a federation in an S3 store",
            where=uri,
            remedy="Write s3://bucket/prefix/NAME?endpoint=...",
        )
    check_prefix(parts.netloc, prefix)
    store = open_store(uri)
    assert isinstance(store, MinioStore)
    made = store.make_bucket()
    store.probe()
    done = [f"bucket {parts.netloc} {'was created' if made else 'exists'} and honours conditional writes"]
    if noncurrent_days:
        expire_old_versions(store, noncurrent_days)
        done.append(f"old versions below {prefix}/ are removed after {noncurrent_days} days")
    for who, credentials, policy in (
        ("coordinator", coordinator, coordinator_policy(parts.netloc, prefix, deals=dealer is None)),
        ("dealer", dealer, dealer_policy(parts.netloc, prefix)),
        ("server", server, server_policy(parts.netloc, prefix)),
    ):
        if credentials is not None:
            Users(uri).put(credentials, policy)
            done.append(f"user {credentials.access_key} has the rights of the {who} below {prefix}/")
    return done


def _identified(
    place: StoredFederation, member: Member, folder: Path, given: Credentials | None, examples: int
) -> Identity:
    """Creates user, files and enrolment, in this order, and undoes them when a later part fails."""
    if examples and member.name == COORDINATOR:
        raise InputError("the coordinator has no examples", where="--examples", remedy="Leave it out.")
    floors, private = _floors(folder, member), make_key()
    with contextlib.ExitStack() as undo:
        credentials = given
        if place.on_s3 and given is None:
            credentials = undo.enter_context(new_user(place, member))
        text = " ".join([private, *ledger_mark(place, member)])
        others = {"floors": floors} if floors else {}
        if place.federation.secure and member.name != COORDINATOR:
            others["administrator"] = public_key(administrator_key(folder))
        files = undo.enter_context(_written(folder, member, text, credentials, others))
        user = credentials.access_key if credentials else ""
        made = Enrolment(key=public_key(private), user=user, since=time.time(), examples=examples)
        member.enroll(place, made)
    if place.federation.secure and member.name != COORDINATOR:
        renew_roster(place, folder)
    return Identity(member.who.strip("'"), files, user, member.secret, member.name in place.federation.sites)


def _floors(folder: Path, member: Member) -> str:
    """Returns the learner's floors, for its Secret; empty without any. Raises InputError if they are malformed."""
    path = folder / f"{member.name}.floors.yaml"
    if member.name == COORDINATOR or not path.exists():
        return ""
    floors_in(path)
    return path.read_text()


def ledger_mark(place: StoredFederation, member: Member) -> list[str]:
    """Returns the number of entries of a learner's privacy ledger and its head; nothing without entries."""
    if member.name == COORDINATOR:
        return []
    count, head = state_of_ledger(place.store, member.name)
    return [str(count), head] if head else []


def user_of(place: StoredFederation, member: Member) -> str:
    """Returns the name of a member's user.

    It is unique on the server, where another bucket may hold a federation of the same name.
    """
    where = hashlib.sha256(f"{place.bucket}/{place.prefix}".encode()).hexdigest()[:8]
    return f"fedpipe-{place.federation.name}-{member.name}-{where}"


@contextlib.contextmanager
def new_user(place: StoredFederation, member: Member, secret: str = "") -> Iterator[Credentials]:
    """Creates a user of the store with the member's policy; an existing one keeps its name and gets a new secret.

    Args:
        place: the federation.
        member: of it.
        secret: the new secret; a random one by default.

    Raises:
        StoreError: the store cannot create users. The user is removed again if the caller's block fails.
    """
    from fedpipe.store.users import Users

    users, name = Users(place.uri), user_of(place, member)
    made = Credentials(name, secret or new_secret())
    existed = users.has(name)
    try:
        users.put(made, member.policy(place))
        yield made
    except BaseException:
        if not existed:
            users.remove(name)
        raise


@contextlib.contextmanager
def _written(
    folder: Path, member: Member, private: str, credentials: Credentials | None, others: Mapping[str, str]
) -> Iterator[tuple[Path, ...]]:
    """Writes the files, readable by this user alone; restores those of an earlier identity when a later part fails."""
    texts = {folder / f"{member.name}.key": f"{private}\n"}
    if credentials is not None:
        texts[folder / f"{member.name}.secret.yaml"] = _secret_manifest(member, private, credentials, others)
    before = {path: path.read_bytes() if path.exists() else None for path in texts}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / ".gitignore").exists():
            write_whole(folder / ".gitignore", b"*\n")
        for path, text in texts.items():
            write_whole(path, text.encode(), mode=0o600)
        yield tuple(texts)
    except BaseException as error:
        for path, data in before.items():
            if data is not None:
                write_whole(path, data, mode=0o600)
            else:
                with contextlib.suppress(OSError):
                    path.unlink()
        if isinstance(error, OSError):
            raise InputError(f"cannot be written: {error.strerror}", where=str(folder)) from error
        raise


def _secret_manifest(member: Member, private: str, credentials: Credentials, others: Mapping[str, str]) -> str:
    labels = {"app.kubernetes.io/part-of": "fedpipe"}
    if member.name != COORDINATOR:
        labels["fedpipe/learner"] = member.name
    values = {"accesskey": credentials.access_key, "secretkey": credentials.secret_key, "signingkey": private}
    values |= others
    return yaml.safe_dump({
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": member.secret, "labels": labels},
        "type": "Opaque",
        "data": {key: base64.b64encode(value.encode()).decode() for key, value in values.items()},
    })  # fmt: skip
