"""Invitations: one file for each site that may join, with a token that works once.

keys/_administrator.key   the administrator's private key, from which the token follows; made at the first use
<site>.invitation.yaml    the invitation, for the site alone
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import parse_qsl, urlencode, urlsplit

from fedpipe.commands.members import StoredFederation, find_member, open_place
from fedpipe.commands.opened import StoreGiven
from fedpipe.commands.roster import administrator_key
from fedpipe.errors import InputError
from fedpipe.federation.sources import Source
from fedpipe.identity.enrolment import format_time, read_enrolled
from fedpipe.identity.signing import COORDINATOR
from fedpipe.kubeflow.forwarding import names_service
from fedpipe.sites.invitation import (
    MOST_CERTIFICATES,
    MOST_SECONDS,
    Invitation,
    make_invitation,
    new_number,
    write_invitation,
)
from fedpipe.store import check_uri, endpoint_of, keys, open_store
from fedpipe.store.network import named_bundles
from fedpipe.store.objects import encode
from fedpipe.store.uri import region_of

LIFE = float(MOST_SECONDS)


class Invited(NamedTuple):
    """A new invitation: its file, when it expires, and the endpoint that the site must reach; empty for a folder.

    `at_site` is whether the federation file has the learner outside of the pipeline.
    """

    learner: str
    file: Path
    expires: int
    endpoint: str
    at_site: bool


def invite(
    source: Source, learner: str, *, store: StoreGiven = None, keys: str | Path | None = None, expires: float = LIFE,
    out: Path | None = None, endpoint: str = "", ca: Path | None = None,
) -> Invited:  # fmt: skip
    """Writes the invitation of a site; an earlier one of the same site stops working.

    Args:
        source: the federation file, or its content.
        learner: the site's name in the file.
        store: a store to use instead of the federation's.
        keys: folder of the administrator's key; `keys` next to the federation file by default.
        expires: seconds until it expires, at most a week.
        out: the file; `<learner>.invitation.yaml` by default.
        endpoint: the store's endpoint as the site reaches it, if it differs.
        ca: file with the certificate of the store's authority; that of the environment by default.

    Raises:
        InputError: there is no such learner, or it is enrolled; or a file cannot be read or written.
        StoreError: the store cannot be used.
    """
    place = open_place(source, store)
    if learner == COORDINATOR:
        raise InputError("the coordinator is not a site", remedy="Run `fedpipe enroll --coordinator`.")
    member, path = find_member(place, learner), out or Path(f"{learner}.invitation.yaml")
    known = member.enrolment(read_enrolled(place.store))
    if known is not None and known.revoked is None:
        remedy = f"For new keys, run `fedpipe site rotate` at the site. Or run `fedpipe revoke {learner}` first."
        raise InputError(f"{member.who} has been enrolled since {format_time(known.since)}", remedy=remedy)
    if path.exists():
        raise InputError("exists already", where=str(path), remedy="Remove it, or choose another file with --out.")
    if not 0 < expires <= MOST_SECONDS:
        raise InputError("an invitation lives for at most 7 days", where="--expires", remedy="Write for instance 7d.")
    uri = _outside(place, endpoint)
    certificates = _certificates(uri, ca)
    invitation = _made(place, member.name, administrator_key(place.key_folder(keys)), uri, expires, certificates)
    with _noted(place, invitation):
        write_invitation(path, invitation)
    at_site = learner in place.federation.sites
    return Invited(learner, path, invitation.expires, endpoint_of(uri) if place.on_s3 else "", at_site)


def withdraw(source: Source, learner: str, *, store: StoreGiven = None) -> bool:
    """Withdraws the invitation of a site, and returns whether there was one.

    Args:
        source: the federation file, or its content.
        learner: the site's name.
        store: a store to use instead of the federation's.
    """
    place = open_place(source, store)
    key = keys.invitation(find_member(place, learner).name)
    found = place.store.size(key) is not None
    place.store.delete(key)
    return found


def _made(place: StoredFederation, learner: str, private: str, uri: str, expires: float, ca: str) -> Invitation:
    number, now = new_number(), time.time()
    urls = {}
    if place.on_s3:
        from fedpipe.store.s3 import MinioStore

        outside = open_store(uri).below(place.federation.name)
        assert isinstance(outside, MinioStore)
        expires = min(expires, outside.key_life())
        if expires < 60:
            raise InputError("the credentials of the store expire at once", remedy="Use those of an administrator.")
        urls = {
            "request": outside.lend("PUT", keys.joining(learner, number, "request"), expires),
            "answer": outside.lend("GET", keys.joining(learner, number, "answer"), expires),
        }
    return make_invitation(
        private, place.federation.name, learner, uri, created=now, expires=int(now + expires), ca=ca,
        number=number, **urls,
    )  # fmt: skip


@contextlib.contextmanager
def _noted(place: StoredFederation, invitation: Invitation) -> Iterator[None]:
    """Writes the terms to the store; removes them when the caller's block fails."""
    key = keys.invitation(invitation.learner)
    place.store.replace(key, encode(invitation.terms))
    try:
        yield
    except BaseException:
        place.store.delete(key)
        raise


def _outside(place: StoredFederation, endpoint: str) -> str:
    """Returns the URI of the store as the site reaches it, complete: with endpoint and region. Raises InputError."""
    if not place.on_s3:
        if endpoint:
            raise InputError("a folder has no endpoint", where="--endpoint", remedy="Leave it out.")
        return place.uri
    inside = place.federation.store_uri if names_service(place.federation.store_uri) else place.uri
    if not endpoint and names_service(inside):
        what = f"the site cannot reach {endpoint_of(inside)}, which is a name inside the cluster"
        raise InputError(what, where="--endpoint", remedy="Give the store's endpoint as the site reaches it.")
    parts = urlsplit(place.uri)
    query = dict(parse_qsl(parts.query))
    query |= {"endpoint": endpoint or endpoint_of(place.uri), "region": region_of(place.uri)}
    return check_uri(parts._replace(query=urlencode(query, safe=":/")).geturl())


def _certificates(uri: str, given: Path | None) -> str:
    """Returns the certificates that the site must trust; empty where those of its system suffice. Raises InputError."""
    found = [Path(path) for path in named_bundles().values() if Path(path).is_file()]
    if given is None and "endpoint=https:" not in uri:
        return ""
    paths = [given] if given else [path for path in found if path.stat().st_size <= MOST_CERTIFICATES]
    try:
        text = "\n".join(path.read_text(encoding="ascii") for path in paths)
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not PEM"
        raise InputError(f"cannot be read: {why}", where="--ca", remedy="Name a file in PEM form.") from error
    if text and "-----BEGIN CERTIFICATE-----" not in text:
        raise InputError("is not a certificate in PEM form", where="--ca", remedy="Name a file in PEM form.")
    if len(text) > MOST_CERTIFICATES:
        raise InputError("is too large", where="--ca", remedy="Name the certificate of the store's authority alone.")
    return text
