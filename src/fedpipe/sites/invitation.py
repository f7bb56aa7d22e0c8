"""An invitation: the one file that a site needs to join a federation.

It has the place of the store, the administrator's public key, two URLs for one object each, and a token. The token is a
secret of the administrator and the site, and follows from the administrator's private key. So the store keeps only the
terms, with a hash of the token, and the administrator needs no other file to recognise it.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct
from msgspec.structs import asdict, replace

from fedpipe.codec import converted
from fedpipe.errors import FederationError, InputError, one_line
from fedpipe.federation.loading import load
from fedpipe.federation.names import Name
from fedpipe.identity.enrolment import PublicKey, Time, format_time
from fedpipe.identity.sealing import derived, exchange_of
from fedpipe.identity.signing import Signature, public_key, sign, signer_of
from fedpipe.identity.statements import is_signed_by, signed_with
from fedpipe.store import check_uri
from fedpipe.store.files import write_whole

MOST_SECONDS = 7 * 24 * 3600
"""The longest life of an invitation: S3 allows no longer one for a presigned URL."""
MOST_CERTIFICATES = 2**16
"""Most characters of the certificates in an invitation."""
ASK = "Ask the federation's administrator for a new invitation."
_Seconds = Annotated[int, Meta(ge=0, le=2**37)]
_Secret = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
_Url = Annotated[str, Meta(pattern=r"^(https?://[!-~]{1,4000})?\Z")]


class Invitation(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An invitation, or its terms, in which the hash of the token takes the token's place.

    `request` and `answer` are URLs that allow one request each; empty for a store that is a folder. `exchange` is the
    key that the administrator seals with.
    """

    format: Annotated[int, Meta(ge=1, le=1)] = 1
    federation: Name
    learner: Name
    store: Annotated[str, Meta(min_length=1, max_length=2000)]
    administrator: PublicKey
    exchange: _Secret
    number: Annotated[str, Meta(pattern=r"^[0-9a-f]{32}\Z")]
    created: Time
    expires: _Seconds
    request: _Url = ""
    answer: _Url = ""
    ca: Annotated[str, Meta(max_length=MOST_CERTIFICATES)] = ""
    token: _Secret
    signature: Signature | None = None

    @property
    def terms(self) -> Invitation:
        """The terms, which the store may keep: without the token."""
        return replace(self, token=hashlib.sha256(bytes.fromhex(self.token)).hexdigest())


def make_invitation(
    private: str, federation: str, learner: str, store: str, *, created: float, expires: int, ca: str = "",
    number: str = "", request: str = "", answer: str = "",
) -> Invitation:  # fmt: skip
    """Make and sign an invitation.

    Args:
        private: the administrator's key.
        federation: its name.
        learner: the site's name.
        store: its URI, as the site reaches it.
        created: seconds since 1970.
        expires: seconds since 1970.
        ca: certificates in PEM form, if the store has an authority of its own.
        number: 32 hexadecimal digits, which the URLs contain; new ones by default.
        request: a URL to write the request; empty for a folder.
        answer: a URL to read the answer.
    """
    number = number or new_number()
    invitation = Invitation(
        federation=federation, learner=learner, store=store, administrator=public_key(private),
        exchange=exchange_of(signer_of(private), place_of(federation, learner)).public.hex(), number=number,
        created=float(created), expires=expires, request=request, answer=answer, ca=ca,
        token=token_of(private, federation, learner, number),
    )  # fmt: skip
    signed = signed_with(invitation.terms, signer_of(private), lambda: created)
    return replace(invitation, signature=signed.signature)


def new_number() -> str:
    """Return the number of a new invitation."""
    return secrets.token_hex(16)


def token_of(private: str, federation: str, learner: str, number: str) -> str:
    """Return the token of an invitation. It follows from a signature that is never published.

    Args:
        private: the administrator's key.
        federation: its name.
        learner: the site's name.
        number: of the invitation.
    """
    signed = sign(private, f"fedpipe invitation token\n{federation}/{learner}/{number}".encode())
    return derived(bytes.fromhex(signed), "fedpipe invitation token").hex()


def place_of(federation: str, learner: str) -> str:
    """Return the place of the exchange between a site and the administrator; code of others never gets its key."""
    return f"joining {federation}/{learner}"


def is_signed(terms: Invitation, administrator: str) -> bool:
    """Return whether the administrator signed these terms."""
    return terms.administrator == administrator and is_signed_by(terms, administrator)


def write_invitation(path: Path, invitation: Invitation) -> None:
    """Write the file, which this user alone may read. Raises InputError."""
    until = format_time(invitation.expires)
    lines = [
        f"# Invitation of {invitation.learner} to the federation {invitation.federation}, until {until}.",
        "# It is secret, and works once. At the site: fedpipe site join FILE",
        json.dumps(_plain(invitation), indent=2),
    ]
    write_whole(path, ("\n".join(lines) + "\n").encode(), mode=0o600)


def _plain(invitation: Invitation) -> dict[str, Any]:
    found = {key: value for key, value in asdict(invitation).items() if value != ""}
    return found | {"signature": asdict(invitation.signature)} if invitation.signature else found


def read_invitation(path: Path) -> Invitation:
    """Read an invitation, and check that it is whole.

    Args:
        path: the file.

    Raises:
        InputError: it cannot be read, or was altered.
    """
    where = str(path)
    try:
        content = load(path)
    except FederationError as error:
        raise InputError(error.what, where=where, remedy="Name the file that `fedpipe invite` wrote.") from error
    try:
        invitation = converted(content, Invitation)
    except msgspec.ValidationError as error:
        what = f"is not an invitation, because {one_line(error)}"
        raise InputError(what, where=where, remedy="Name the file that `fedpipe invite` wrote.") from error
    if not is_signed(invitation.terms, invitation.administrator):
        raise InputError("the invitation was altered: its signature does not fit", where=where, remedy=ASK)
    check_uri(invitation.store)
    return invitation


def check_open(invitation: Invitation, now: float, where: str) -> None:
    """Check that an invitation has not expired. Raises InputError.

    Args:
        invitation: the invitation.
        now: seconds since 1970.
        where: its file, for the message.
    """
    if now >= invitation.expires:
        what = f"the invitation expired on {format_time(invitation.expires)}; here it is {format_time(now)}"
        raise InputError(what, where=where, remedy=ASK)
