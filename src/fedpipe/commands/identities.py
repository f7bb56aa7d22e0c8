"""Identities: a key pair, a user of the store that can do no more than it must, and a Kubernetes Secret.

    keys/<learner>.key           the private key, for a learner that runs on this machine
    keys/<learner>.secret.yaml   the Secret with the key and the store's credentials, for `kubectl apply`

The coordinator is called COORDINATOR where a learner's name is expected, and so are its files. Users are made where
the store is MinIO, by its admin API; for another store, and where the caller is no admin, the policy is told and the
keys of a user that somebody else made are taken. All that can fail comes before the store says that somebody is
enrolled, and is undone when it fails.
"""

from __future__ import annotations

import base64
import contextlib
import difflib
import hashlib
import secrets
import string
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import yaml
from msgspec.structs import replace

from fedpipe.errors import InputError, NotFoundError
from fedpipe.federation.federation import Federation
from fedpipe.federation.file import read_federation
from fedpipe.federation.names import KUBEFLOWS_SECRET
from fedpipe.identity.enrolment import Enrolled, Enrolment, change_enrolled, format_time, read_enrolled
from fedpipe.identity.policies import Policy, coordinator_policy, learner_policy, server_policy
from fedpipe.identity.signing import COORDINATOR, KEYS, find_key, make_key, public_key
from fedpipe.registry.publication import ModelVersion, find_origin, read_model, sign_publication, versions
from fedpipe.store import Store, check_uri, chosen_uri, open_store
from fedpipe.store.files import write_whole
from fedpipe.store.keys import MODELS
from fedpipe.store.s3_client import Credentials

_LETTERS = string.ascii_letters + string.digits


class Identity(NamedTuple):
    """What was made: whose it is, in words, the files, the user of the store, and the Secret's name."""

    who: str
    files: tuple[Path, ...]
    user: str
    secret: str


class _Place(NamedTuple):
    """The federation with its store."""

    federation: Federation
    uri: str

    @property
    def store(self) -> Store:
        return open_store(self.uri).below(self.federation.name)

    @property
    def on_s3(self) -> bool:
        return self.uri.startswith("s3://")

    @property
    def bucket(self) -> str:
        return urlsplit(self.uri).netloc

    @property
    def prefix(self) -> str:
        return "/".join(filter(None, (urlsplit(self.uri).path.strip("/"), self.federation.name)))


class _Member(NamedTuple):
    """A learner or the coordinator."""

    name: str
    secret: str

    @property
    def who(self) -> str:
        return "the coordinator" if self.name == COORDINATOR else repr(self.name)

    @property
    def argument(self) -> str:
        return "--coordinator" if self.name == COORDINATOR else self.name

    def policy(self, place: _Place) -> Policy:
        if self.name == COORDINATOR:
            return coordinator_policy(place.bucket, place.prefix)
        return learner_policy(place.bucket, place.prefix, self.name)

    def enrolment(self, enrolled: Enrolled) -> Enrolment | None:
        return enrolled.coordinator if self.name == COORDINATOR else enrolled.learners.get(self.name)

    def enrolled(self, current: Enrolled, enrolment: Enrolment) -> Enrolled:
        if self.name == COORDINATOR:
            return replace(current, coordinator=enrolment)
        return replace(current, learners=current.learners | {self.name: enrolment})


def enroll(
    source: str | Path, learner: str, *, store: str | None = None, keys: str | Path | None = None,
    given: Credentials | None = None,
) -> Identity:  # fmt: skip
    """Gives a learner, or the coordinator, its identity.

    Args:
        source: the federation file.
        learner: its name in the file, or COORDINATOR.
        store: URI of the store instead of the federation's.
        keys: folder of the keys; `keys` beside the federation file by default.
        given: credentials of a user of the store that somebody made already.

    Raises:
        InputError: there is no such learner, or it is enrolled.
        StoreError: the store cannot be used, or makes no users; nothing was changed.
    """
    place, member = _opened(source, learner, store)
    known = member.enrolment(read_enrolled(place.store))
    if known is not None and known.revoked is None:
        raise InputError(
            f"{member.who} is enrolled since {format_time(known.since)}",
            remedy=f"`fedpipe rotate {member.argument}` gives it new keys.",
        )
    return _identified(place, member, _folder(source, keys), given)


def rotate(
    source: str | Path, learner: str, *, store: str | None = None, keys: str | Path | None = None,
    given: Credentials | None = None,
) -> Identity:  # fmt: skip
    """Gives who is enrolled new keys; the old ones are worth nothing from then on.

    Models that the coordinator signed with its old key have to be signed again (`sign`), or are not served any more.

    Raises:
        InputError: it is not enrolled.
        StoreError: the store cannot be used. Where its user got a new secret already, the old one is worth nothing, and
            the same command again makes everything new.
    """
    place, member = _opened(source, learner, store)
    _check_enrolled(place, member)
    return _identified(place, member, _folder(source, keys), given)


def revoke(source: str | Path, learner: str, *, store: str | None = None) -> str:
    """Takes an identity away: nothing that it signs counts any more, and its user of the store is removed.

    Returns:
        The user that is left in a store that fedpipe does not administer; empty without one.

    Raises:
        InputError: it is not enrolled.
        StoreError: the user could not be removed. The learner's updates do not count any more.
    """
    place, member = _opened(source, learner, store)
    known = _check_enrolled(place, member)
    _write_enrolled(place, member, replace(known, revoked=time.time()))  # first, for it is what counts
    if not known.user or known.user != _user(place, member):
        return known.user
    from fedpipe.store.users import Users

    Users(place.uri).remove(known.user)
    return ""


def sign(
    source: str | Path, name: str, numbers: Sequence[int], *, store: str | None = None, keys: str | Path | None = None
) -> list[ModelVersion]:
    """Signs published versions with the coordinator's key, where it was enrolled, or got a new key, after them.

    Args:
        source: the federation file.
        name: of the model.
        numbers: the versions; each must have the digest that its origin tells.
        store: URI of the store instead of the federation's.
        keys: folder of the keys; `keys` beside the federation file by default.

    Raises:
        InputError: the coordinator is not enrolled, or its key is not here.
        NotFoundError: there is no such version; none was signed.
        CorruptError: a version is not what its origin tells; none was signed.
    """
    place = _place(source, store)
    known = _check_enrolled(place, _member(place.federation, source, COORDINATOR))
    folder = _folder(source, keys)
    private = find_key(COORDINATOR, {KEYS: str(folder)}) or find_key(COORDINATOR)
    if private is None or public_key(private) != known.key:
        what = "is not the enrolled one" if private else "is not here"
        raise InputError(f"the coordinator's key {what}", where=str(folder), remedy="Name its folder by --keys.")
    models = place.store.below(MODELS)
    there = versions(models)
    origins = {}
    for entry in (ModelVersion(name, number) for number in numbers):
        origin = find_origin(models, entry)
        if entry.version not in there.get(name, []) or origin is None:
            known_ones = "; ".join(f"{model} {', '.join(map(str, have))}" for model, have in sorted(there.items()))
            raise NotFoundError(f"there is no {entry}", where=models.uri, remedy=f"There are: {known_ones or 'none'}.")
        read_model(models, entry, origin)
        origins[entry] = origin
    for entry, origin in origins.items():
        sign_publication(models, entry, origin, private)
    return list(origins)


def policy_of(source: str | Path, learner: str = "", *, store: str | None = None, server: bool = False) -> Policy:
    """What somebody may do in the store, as a policy of S3.

    Args:
        source: the federation file.
        learner: whose policy; empty for the coordinator's.
        store: URI of the store instead of the federation's.
        server: that of `fedpipe serve` instead.

    Raises:
        InputError: there is no such learner, or the store has no users.
    """
    place = _place(source, store)
    if not place.on_s3:
        raise InputError("a folder has no users", where=place.uri, remedy="Policies are for s3://...")
    if server:
        return server_policy(place.bucket, place.prefix)
    if not learner:
        return coordinator_policy(place.bucket, place.prefix)
    return _member(place.federation, source, learner).policy(place)


def prepare(uri: str, *, coordinator: Credentials | None = None, server: Credentials | None = None) -> list[str]:
    """Makes a federation's bucket and the users of its coordinator and its server; what is there is brought up to date.

    Args:
        uri: of the federation's own part of the store: `s3://bucket/prefix/NAME`, with its endpoint.
        coordinator: of the user to make for the coordinator's steps.
        server: of the user to make for `fedpipe serve`.

    Returns:
        What was done, a line each.

    Raises:
        InputError: the URI names no federation of an S3 store.
        StoreError: the store refuses, or makes no users.
    """
    from fedpipe.store.s3 import MinioStore
    from fedpipe.store.users import Users

    parts = urlsplit(check_uri(uri))
    prefix = parts.path.strip("/")
    if parts.scheme != "s3" or not prefix:
        raise InputError(
            "names no federation of a store", where=uri, remedy="Write s3://bucket/prefix/NAME?endpoint=..."
        )
    store = open_store(uri)
    assert isinstance(store, MinioStore)
    made = store.make_bucket()
    store.probe()
    done = [f"bucket {parts.netloc} {'was made' if made else 'is there'}, and honours conditional writes"]
    for who, credentials, policy in (
        ("coordinator", coordinator, coordinator_policy(parts.netloc, prefix)),
        ("server", server, server_policy(parts.netloc, prefix)),
    ):
        if credentials is not None:
            Users(uri).put(credentials, policy)
            done.append(f"user {credentials.access_key} may do what the {who} needs below {prefix}/")
    return done


def _opened(source: str | Path, learner: str, store: str | None) -> tuple[_Place, _Member]:
    place = _place(source, store)
    return place, _member(place.federation, source, learner)


def _place(source: str | Path, store: str | None) -> _Place:
    federation = read_federation(Path(source))
    return _Place(federation, chosen_uri(store, federation.store_uri))


def _member(federation: Federation, source: str | Path, learner: str) -> _Member:
    if learner == COORDINATOR:  # Kubeflow's own secret is not ours to replace
        own = federation.secret != KUBEFLOWS_SECRET
        return _Member(COORDINATOR, federation.secret if own else f"fedpipe-{federation.name}")
    names = [member.name for member in federation.learners]
    if learner in names:
        return _Member(learner, federation.learner(learner).secret or f"fedpipe-{federation.name}-{learner}")
    close = difflib.get_close_matches(learner, names, n=1)
    remedy = f"Did you mean {close[0]!r}?" if close else f"Learners: {', '.join(names)}."
    raise InputError(f"there is no learner {learner!r}", where=str(source), remedy=remedy)


def _check_enrolled(place: _Place, member: _Member) -> Enrolment:
    known = member.enrolment(read_enrolled(place.store))
    if known is None or known.revoked is not None:
        when = f" since it was revoked on {format_time(known.revoked)}" if known and known.revoked else ""
        raise InputError(f"{member.who} is not enrolled{when}", remedy=f"`fedpipe enroll {member.argument}` does that.")
    return known


def _folder(source: str | Path, keys: str | Path | None) -> Path:
    return Path(keys) if keys else Path(source).absolute().parent / "keys"


def _identified(place: _Place, member: _Member, folder: Path, given: Credentials | None) -> Identity:
    """Makes user, files and enrolment, in this order; what was made is undone when a later part fails."""
    private = make_key()
    with contextlib.ExitStack() as undo:
        credentials = given
        if place.on_s3 and given is None:
            credentials = undo.enter_context(_new_user(place, member))
        files = undo.enter_context(_written(folder, member, private, credentials))
        user = credentials.access_key if credentials else ""
        _write_enrolled(place, member, Enrolment(key=public_key(private), user=user, since=time.time()))
    return Identity(member.who.strip("'"), files, user, member.secret)


def _write_enrolled(place: _Place, member: _Member, enrolment: Enrolment) -> None:
    change_enrolled(place.store, lambda current: member.enrolled(current, enrolment))


def _user(place: _Place, member: _Member) -> str:
    """A name of its own among all users of the server, where another bucket may hold a federation of this name."""
    where = hashlib.sha256(f"{place.bucket}/{place.prefix}".encode()).hexdigest()[:8]
    return f"fedpipe-{place.federation.name}-{member.name}-{where}"


@contextlib.contextmanager
def _new_user(place: _Place, member: _Member) -> Iterator[Credentials]:
    """A user of the store with the member's policy; one that was there keeps its name and gets another secret."""
    from fedpipe.store.users import Users

    users, name = Users(place.uri), _user(place, member)
    made = Credentials(name, "".join(secrets.choice(_LETTERS) for _ in range(40)))
    there = users.has(name)
    try:
        users.put(made, member.policy(place))
        yield made
    except BaseException:
        if not there:
            users.remove(name)
        raise


@contextlib.contextmanager
def _written(
    folder: Path, member: _Member, private: str, credentials: Credentials | None
) -> Iterator[tuple[Path, ...]]:
    """The files, readable by nobody else; those of an earlier identity come back when something fails later."""
    texts = {folder / f"{member.name}.key": f"{private}\n"}
    if credentials is not None:
        texts[folder / f"{member.name}.secret.yaml"] = _secret_manifest(member, private, credentials)
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


def _secret_manifest(member: _Member, private: str, credentials: Credentials) -> str:
    labels = {"app.kubernetes.io/part-of": "fedpipe"}
    if member.name != COORDINATOR:
        labels["fedpipe/learner"] = member.name
    values = {"accesskey": credentials.access_key, "secretkey": credentials.secret_key, "signingkey": private}
    return yaml.safe_dump({
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": member.secret, "labels": labels},
        "type": "Opaque",
        "data": {key: base64.b64encode(value.encode()).decode() for key, value in values.items()},
    })  # fmt: skip
