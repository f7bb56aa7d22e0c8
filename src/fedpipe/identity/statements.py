"""Signed statements of learners: updates, ballots, scores, statistics, and the entries of privacy ledgers.

A statement is a struct with the field `signature`. The signature covers the canonical bytes of the whole statement, its
kind and its place. So no statement can stand for one of another kind, run or federation.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, TypeVar

from msgspec.structs import replace

from fedpipe.errors import DroppedError
from fedpipe.identity.enrolment import Enrolled, flaw_of, make_signature
from fedpipe.identity.signing import Signature, Signer, find_signer, signer_of, verify
from fedpipe.store.objects import canonical

S = TypeVar("S")
_NAMES = {
    "Update": "update", "Ballot": "ballot", "Score": "score", "Report": "statistics", "Entry": "ledger",
    "Offer": "key of a secure sum", "Masked": "masked vector", "Agreement": "agreement to a sum",
    "Reveal": "reveal of a sum", "Parcel": "parcel", "Aligned": "alignment",
    "JournalHead": "journal", "Approval": "decision of a site", "Review": "review of a plan",
    "Invitation": "invitation", "Answer": "answer to a site",
    "Request": "request to join", "Rotation": "request for keys",
}  # fmt: skip
"""The kind of each struct, as it is signed and named in messages."""
_PLURAL = {"statistics"}


def signed(statement: S, private: str, clock: Callable[[], float] = time.time, *, place: str = "") -> S:
    """Sign a statement.

    Args:
        statement: complete.
        private: the learner's key.
        clock: seconds since 1970.
        place: federation and run, of a statement that does not name them.
    """
    return signed_with(statement, signer_of(private), clock, place)


def signed_with(statement: S, signer: Signer, clock: Callable[[], float] = time.time, place: str = "") -> S:
    """Sign a statement with a key that may be in another process."""
    made = make_signature(signer, lambda s: content_of(statement, s, place), clock)
    changed: S = replace(statement, signature=made)  # type: ignore[type-var]
    return changed


def signed_by(statement: S, learner: str, *, place: str = "") -> S:
    """Sign a statement with the learner's key of this machine; without one, return it as it is."""
    signer = find_signer(learner)
    return signed_with(statement, signer, time.time, place) if signer else statement


def check_signed(statement: Any, enrolled: Enrolled, *, place: str = "") -> None:
    """Check the signature of a learner's statement; a learner that was never enrolled need not sign.

    Raises:
        DroppedError: the reason why it is refused.
    """
    enrolment = enrolled.learners.get(statement.learner)
    if enrolment is None:
        return
    name = _NAMES[type(statement).__name__]
    what = f"its {name}"
    flaw = flaw_of(enrolment, statement.signature, lambda s: content_of(statement, s, place), "it", what)
    if flaw:
        raise DroppedError(flaw.replace(f"{what} is", f"{what} are") if name in _PLURAL else flaw)


def is_signed_by(statement: Any, public: str | None, *, place: str = "") -> bool:
    """Return whether a statement has a signature that fits it, by this key; with None, by any key."""
    signature = statement.signature
    if signature is None or (public is not None and signature.key != public):
        return False
    return verify(signature.key, content_of(statement, signature, place), signature.value)


def content_of(statement: Any, signature: Signature, place: str = "") -> bytes:
    """Return the bytes that are signed: the canonical statement with an empty signature, under a prefix of its own."""
    where = f" {place}" if place else ""
    prefix = f"fedpipe {_NAMES[type(statement).__name__]}{where}\n"
    return prefix.encode() + canonical(replace(statement, signature=replace(signature, value="0" * 128)))
