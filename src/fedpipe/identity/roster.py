"""The roster: the public keys of all learners of a federation, signed by its administrator.

Learners of a secure sum trust each other's keys by it, and by nothing else in the store. The administrator's key
reaches them outside of the store: it is `administrator` in a learner's mounted secret, or `_administrator.pub` in the
folder of the keys.
"""

from __future__ import annotations

import time
from typing import Annotated

from msgspec import Meta, Struct
from msgspec.structs import replace

from fedpipe.errors import DroppedError, InputError
from fedpipe.federation.federation import Federation
from fedpipe.federation.names import MOST_LEARNERS, Name
from fedpipe.identity.enrolment import Enrolled, Enrolment, PublicKey, flaw_of, make_signature
from fedpipe.identity.signing import KEYS, Signature, find_administrator, find_key, public_key, signer_of
from fedpipe.store import Store, keys
from fedpipe.store.objects import canonical, encode, find

SIGN = "Sign one as the administrator: fedpipe roster"
_WHERE = "algorithm.secure"


class Roster(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The public key of each learner that is enrolled and not revoked."""

    format: int = 1
    federation: Name
    learners: Annotated[dict[Name, PublicKey], Meta(max_length=MOST_LEARNERS)]
    signature: Signature | None = None


def put_roster(store: Store, federation: str, enrolled: Enrolled, private: str) -> Roster:
    """Sign the keys of all that are enrolled, and write them.

    Args:
        store: the federation's store.
        federation: its name.
        enrolled: those who are enrolled.
        private: the administrator's key.
    """
    known = {name: item.key for name, item in enrolled.learners.items() if item.revoked is None}
    roster = Roster(federation=federation, learners=known)
    made = make_signature(signer_of(private), lambda s: _content(roster, s), time.time)
    signed = replace(roster, signature=made)
    store.replace(keys.ROSTER, encode(signed))
    return signed


def read_roster(store: Store, federation: str, administrator: str) -> dict[str, str]:
    """Return the public key of each learner, as the administrator signed them.

    Args:
        store: the federation's store.
        federation: its name.
        administrator: its public key, from a place that is not the store.

    Raises:
        InputError: there is no roster, or it is not the administrator's.
        StoreError: it cannot be read.
    """
    roster = find(store, keys.ROSTER, Roster)
    where = f"{store.uri}/{keys.ROSTER}"
    if roster is None:
        raise InputError("there is no roster of the learners' keys", where=where, remedy=f"{SIGN}.")
    if roster.federation != federation:
        raise InputError(f"the roster is of the federation {roster.federation!r}", where=where, remedy=f"{SIGN}.")
    pinned = Enrolment(key=administrator, since=0.0)
    if flaw := flaw_of(pinned, roster.signature, lambda s: _content(roster, s), "the administrator", "the roster"):
        raise InputError(flaw, where=where, remedy=f"{SIGN}. If its key has changed, give learners the new one.")
    return dict(roster.learners)


def check_members(roster: dict[str, str], learners: tuple[str, ...]) -> None:
    """Compare a roster with the learners of a plan: with fewer, a sum would hide less than the administrator allows.

    Raises:
        DroppedError: they differ.
    """
    if missing := sorted(set(learners) - roster.keys()):
        raise DroppedError(
            f"the roster has no key of {missing[0]}", remedy="Enrol it, then run `fedpipe roster`.", lasting=True
        )
    if extra := sorted(roster.keys() - set(learners)):
        raise DroppedError(
            f"the roster has {extra[0]}, but the plan does not",
            remedy="Revoke it, then run `fedpipe roster`.",
            lasting=True,
        )


def check_roster(store: Store, federation: Federation) -> dict[str, str]:
    """Check that all learners of a federation with secure sums can trust each other's keys; return the public keys.

    Raises:
        InputError: there is no roster, it is not the administrator's, or it has other learners.
        StoreError: it cannot be read.
    """
    try:
        administrator = find_administrator()
        if administrator is None:
            raise InputError(
                "needs the public key of the administrator, who signs the roster",
                remedy="Enrol the learners, and sign their keys: fedpipe roster. The key is then in the folder keys/.",
            )
        roster = read_roster(store, federation.name, administrator)
        check_members(roster, tuple(learner.name for learner in federation.learners))
    except (InputError, DroppedError) as error:
        found = f" ({error.where})" if error.where else ""
        raise InputError(f"{error.what}{found}", where=_WHERE, remedy=error.remedy) from error
    return roster


def check_signers(federation: Federation, roster: dict[str, str]) -> None:
    """Check that the learners that train here have the private keys of the roster. Raises InputError."""
    for learner in federation.pods:  # a site's key is at the site
        name, private = learner.name, find_key(learner.name)
        if private is None or public_key(private) != roster[name]:
            raise InputError(
                f"{name} must sign for secure sums, but its key is {'missing' if private is None else 'another one'}",
                where=_WHERE,
                remedy=f"Set {KEYS} to the folder of the keys, or use --keys; by default it is keys/ next to the file.",
            )


def _content(roster: Roster, signature: Signature) -> bytes:
    return b"fedpipe roster\n" + canonical(replace(roster, signature=replace(signature, value="0" * 128)))
