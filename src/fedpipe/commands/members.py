"""Learners and the coordinator as holders of keys, in a federation with its store."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from msgspec.structs import replace

from fedpipe.commands.opened import StoreGiven, file_of, settle
from fedpipe.errors import InputError
from fedpipe.federation.federation import Federation
from fedpipe.federation.names import KUBEFLOWS_SECRET
from fedpipe.federation.sources import Source
from fedpipe.identity.enrolment import Enrolled, Enrolment, change_enrolled, format_time, read_enrolled
from fedpipe.identity.policies import Policy, coordinator_policy, learner_policy
from fedpipe.identity.signing import COORDINATOR, key_folder
from fedpipe.store import Store, open_store
from fedpipe.suggestion import suggestion


class StoredFederation(NamedTuple):
    """A federation, its file and the URI of its store."""

    federation: Federation
    source: Path
    uri: str

    @property
    def store(self) -> Store:
        """The federation's own part of the store."""
        return open_store(self.uri).below(self.federation.name)

    @property
    def on_s3(self) -> bool:
        """Whether the store is S3, which has users."""
        return self.uri.startswith("s3://")

    @property
    def bucket(self) -> str:
        """The bucket of an S3 store."""
        return urlsplit(self.uri).netloc

    @property
    def prefix(self) -> str:
        """The prefix of the federation in its bucket."""
        return "/".join(filter(None, (urlsplit(self.uri).path.strip("/"), self.federation.name)))

    def key_folder(self, keys: str | Path | None) -> Path:
        """Returns the folder of the key files: `keys`, or the folder of that name next to the federation file."""
        return key_folder(self.source, keys)


class Member(NamedTuple):
    """A learner or the coordinator, and the name of its Kubernetes Secret."""

    name: str
    secret: str

    @property
    def who(self) -> str:
        """The member in a sentence."""
        return "the coordinator" if self.name == COORDINATOR else repr(self.name)

    @property
    def argument(self) -> str:
        """The member on the command line."""
        return "--coordinator" if self.name == COORDINATOR else self.name

    def policy(self, place: StoredFederation) -> Policy:
        """Returns the S3 policy of the member's user."""
        if self.name == COORDINATOR:
            return coordinator_policy(place.bucket, place.prefix)
        return learner_policy(place.bucket, place.prefix, self.name)

    def enrolment(self, enrolled: Enrolled) -> Enrolment | None:
        """Returns the member's enrolment, revoked ones too."""
        return enrolled.coordinator if self.name == COORDINATOR else enrolled.learners.get(self.name)

    def enroll(self, place: StoredFederation, enrolment: Enrolment) -> None:
        """Writes the member's enrolment to the store."""
        change_enrolled(place.store, lambda current: self._enrolled(current, enrolment))

    def _enrolled(self, current: Enrolled, enrolment: Enrolment) -> Enrolled:
        if self.name == COORDINATOR:
            return replace(current, coordinator=enrolment)
        return replace(current, learners=current.learners | {self.name: enrolment})


def open_place(source: Source, store: StoreGiven = None) -> StoredFederation:
    """Reads a federation; `store` is used instead of the store that it names."""
    federation, uri = settle(source, store)
    return StoredFederation(federation, file_of(source), uri)


def find_member(place: StoredFederation, name: str) -> Member:
    """Returns the learner of this name, or the coordinator for COORDINATOR. Raises InputError."""
    federation = place.federation
    if name == COORDINATOR:  # Kubeflow's own secret is not ours to replace
        own = federation.secret not in ("", KUBEFLOWS_SECRET)
        return Member(COORDINATOR, federation.secret if own else f"fedpipe-{federation.name}")
    names = [learner.name for learner in federation.learners]
    if name in names:
        return Member(name, federation.learner(name).secret or f"fedpipe-{federation.name}-{name}")
    remedy = suggestion(name, names, listed="Learners")
    raise InputError(f"there is no learner {name!r}", where=str(place.source), remedy=remedy)


def check_enrolled(place: StoredFederation, member: Member) -> Enrolment:
    """Returns the member's enrolment. Raises InputError where it is not enrolled, or was revoked."""
    known = member.enrolment(read_enrolled(place.store))
    if known is not None and known.revoked is None:
        return known
    why = f": it was revoked on {format_time(known.revoked)}" if known and known.revoked else ""
    raise InputError(f"{member.who} is not enrolled{why}", remedy=f"Run `fedpipe enroll {member.argument}`.")
