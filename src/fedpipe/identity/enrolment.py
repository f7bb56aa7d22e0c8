"""Keeps the public keys of enrolled identities, in one object that no learner may write (`keys.ENROLLED`).

The object has an entry for each enrolled learner and for the coordinator. An entry has the public key, the user of the
store, and the times of enrolment and revocation.

An enrolled coordinator signs the models that it publishes (`fedpipe.registry.publication`). An enrolled learner must
sign its updates, ballots, scores and statistics (`fedpipe.identity.statements`). The signature covers the whole
statement and the time; an update has federation, run, round, base, learner, digest of the weights, examples, and more.
So stolen credentials of the store are not enough to impersonate a learner, and an update cannot be reused for another
round or base.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Annotated

from msgspec import Meta, Struct
from msgspec.structs import replace

from fedpipe.errors import (
    ConflictError,
    NotFoundError,
    StoreError,
    StoreUnavailableError,
)
from fedpipe.federation.names import Name
from fedpipe.identity.signing import Signature, Signer, verify
from fedpipe.store import Store, keys
from fedpipe.store.objects import decode, encode

_TRIES = 20
PublicKey = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]

Time = Annotated[float, Meta(ge=0, le=2.0**37)]
"""Seconds since 1970 that a calendar can show."""


class Enrolment(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Holds an identity: its public key, and its user of the store (empty without one).

    Times are in seconds since 1970. `examples` is the most that a learner may claim to have; 0: no limit.
    """

    key: PublicKey
    user: str = ""
    since: Time
    revoked: Time | None = None
    examples: Annotated[int, Meta(ge=0, le=2**53)] = 0


class Enrolled(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Holds all learners that are or were enrolled, and the coordinator if it is."""

    format: int = 1
    learners: dict[Name, Enrolment] = {}
    coordinator: Enrolment | None = None


NOBODY = Enrolled()


def flaw_of(
    enrolment: Enrolment, signature: Signature | None, content: Callable[[Signature], bytes], who: str, what: str
) -> str:
    """Returns what is wrong with a signature; empty if it is valid.

    Args:
        enrolment: of the required signer.
        signature: the signature found; None without one.
        content: returns the signed bytes, given the signature without its value.
        who: names the required signer in messages.
        what: names the signed thing in messages.
    """
    if enrolment.revoked is not None:
        return f"{who} was revoked on {format_time(enrolment.revoked)}"
    if signature is None:
        return f"{what} is not signed, and {who} is enrolled"
    if signature.key != enrolment.key:
        return f"{what} is signed with another key than the enrolled one"
    if not verify(enrolment.key, content(signature), signature.value):
        return f"the signature does not fit {what}"
    return ""


def make_signature(signer: Signer, content: Callable[[Signature], bytes], clock: Callable[[], float]) -> Signature:
    """Signs with the current time.

    Args:
        signer: signs with its key.
        content: returns the bytes to sign, given the signature without its value.
        clock: returns seconds since 1970.
    """
    empty = Signature(key=signer.public, time=float(clock()), value="0" * 128)
    return replace(empty, value=signer.sign(content(empty)))


def format_time(seconds: float) -> str:
    """Formats seconds since 1970 for people."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")


def read_enrolled(store: Store) -> Enrolled:
    """Reads who is enrolled; without the object, nobody is. Raises CorruptError."""
    return _read(store)[0]


def find_enrolled(store: Store) -> Enrolled:
    """Reads who is enrolled, as a user that may list only this key.

    Some stores answer "forbidden" for an object that is missing.

    Raises:
        CorruptError: the object is malformed.
        StoreError: the object exists and may not be read, or the store does not answer.
    """
    try:
        return read_enrolled(store)
    except StoreUnavailableError:
        raise
    except StoreError:
        if keys.ENROLLED in store.keys(keys.ENROLLED):
            raise
        return NOBODY


def _read(store: Store) -> tuple[Enrolled, str | None]:
    try:
        blob = store.read(keys.ENROLLED)
    except NotFoundError:
        return NOBODY, None
    return decode(blob.data, Enrolled, where=f"{store.uri}/{keys.ENROLLED}"), blob.version


def change_enrolled(store: Store, change: Callable[[Enrolled], Enrolled]) -> Enrolled:
    """Changes who is enrolled by compare-and-swap, and returns the result.

    Args:
        store: the federation's store.
        change: returns the new value, given the current one. If it raises, nothing changes.

    Raises:
        ConflictError: others changed the object at every try.
    """
    for _ in range(_TRIES):
        current, version = _read(store)
        after = change(current)
        data = encode(after)
        if store.create(keys.ENROLLED, data) if version is None else store.swap(keys.ENROLLED, data, version):
            return after
    raise ConflictError(
        "others changed the enrolled identities at every try",
        where=f"{store.uri}/{keys.ENROLLED}",
        remedy="Repeat the command.",
    )
