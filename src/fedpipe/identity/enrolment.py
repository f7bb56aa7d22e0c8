"""Who is enrolled, with which public key: one object in the store that no learner may write.

    enrolled    learner to public key, store user, and when it was enrolled or revoked; the same of the coordinator

A coordinator that is enrolled signs the models that it publishes (`publication`). A learner that is enrolled must sign
its updates. The signature is over all of the update's manifest (federation, run, round, base, learner, digest of the
weights, examples, ...) and the time; whoever has stolen the credentials of the store, but not the key, cannot pass for
the learner, and an update cannot be used again for another round or base.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Annotated

from msgspec import Meta, Struct
from msgspec.structs import replace

from fedpipe.errors import (
    ConflictError,
    CorruptError,
    NotFoundError,
    StoreError,
    StoreUnavailableError,
)
from fedpipe.federation.names import Name
from fedpipe.identity.signing import Signature, public_key, sign, verify
from fedpipe.store import Store
from fedpipe.store.objects import decode, encode

_KEY = "enrolled"
_TRIES = 20
PublicKey = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]


class Enrolment(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An identity: its public key, and its user of the store (empty without one). Times are since 1970."""

    key: PublicKey
    user: str = ""
    since: float
    revoked: float | None = None


class Enrolled(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All learners that are or were enrolled, and the coordinator if it is."""

    format: int = 1
    learners: dict[Name, Enrolment] = {}
    coordinator: Enrolment | None = None


NOBODY = Enrolled()


def flaw_of(
    enrolment: Enrolment, signature: Signature | None, content: Callable[[Signature], bytes], who: str, what: str
) -> str:
    """What is wrong with a signature; empty when it is good.

    Args:
        enrolment: of who must have signed.
        signature: the one that was found; None without one.
        content: gives what is signed, from the signature without its value.
        who: must have signed, in words.
        what: is signed, in words.
    """
    if enrolment.revoked is not None:
        return f"{who} was revoked on {told_time(enrolment.revoked)}"
    if signature is None:
        return f"{what} is not signed, and {who} is enrolled"
    if signature.key != enrolment.key:
        return f"{what} is signed with another key than the enrolled one"
    if not verify(enrolment.key, content(signature), signature.value):
        return f"the signature does not fit {what}"
    return ""


def make_signature(private: str, content: Callable[[Signature], bytes], clock: Callable[[], float]) -> Signature:
    """A signature of now.

    Args:
        private: the signer's key.
        content: gives what is signed, from the signature without its value.
        clock: seconds since 1970.
    """
    empty = Signature(key=public_key(private), time=clock(), value="0" * 128)
    return replace(empty, value=sign(private, content(empty)))


def told_time(seconds: float) -> str:
    """Seconds since 1970 as people read them."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")


def read_enrolled(store: Store) -> Enrolled:
    """Who is enrolled; nobody in a federation that enrolls nobody. Raises CorruptError."""
    return _read(store)[0]


def find_enrolled(store: Store) -> Enrolled:
    """As `read_enrolled`, for who may list this one key: some stores answer "forbidden" for what is missing.

    Raises:
        CorruptError: it cannot be read.
        StoreError: it is there and may not be read, or the store does not answer.
    """
    try:
        return read_enrolled(store)
    except StoreUnavailableError:
        raise
    except StoreError:
        if _KEY in store.keys(_KEY):
            raise
        return NOBODY


def _read(store: Store) -> tuple[Enrolled, str | None]:
    try:
        blob = store.read(_KEY)
    except NotFoundError:
        return NOBODY, None
    found = decode(blob.data, Enrolled, where=f"{store.uri}/{_KEY}")
    if found.format != 1:
        raise CorruptError(f"is of format {found.format}", where=f"{store.uri}/{_KEY}", remedy="Upgrade fedpipe.")
    return found, blob.version


def change_enrolled(store: Store, change: Callable[[Enrolled], Enrolled]) -> Enrolled:
    """Changes who is enrolled by compare-and-swap, and returns it.

    Args:
        store: the federation's store.
        change: gives the next from the current; may raise, and nothing is changed.

    Raises:
        ConflictError: others changed it at every try.
    """
    for _ in range(_TRIES):
        current, version = _read(store)
        after = change(current)
        data = encode(after)
        if store.create(_KEY, data) if version is None else store.swap(_KEY, data, version):
            return after
    raise ConflictError("who is enrolled was changed by others at every try", where=f"{store.uri}/{_KEY}")
