"""The keys of a site, in its folder `state`: how they get there when it joins, and how new ones take their place.

    <site>.key                 the private key, and the mark of the privacy ledger
    store/accesskey, secretkey the keys of the store
    ca.pem                     the certificate of the store's authority, if the invitation has one
    membership.json            the federation, and the administrator's public keys
    joining.json               a request to join that is not answered yet, and the new key
    rotation.json              a request for new keys that is not granted yet, and these keys

Files with keys are readable by this user alone. A step that was interrupted is done again with the same keys.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, NamedTuple

from msgspec import Meta, Struct
from msgspec.structs import replace

from fedpipe.errors import InputError, StoreError, StoreUnavailableError
from fedpipe.federation.names import Name
from fedpipe.identity.enrolment import PublicKey, find_enrolled
from fedpipe.identity.signing import make_key, public_key, signer_of
from fedpipe.sites.invitation import Invitation
from fedpipe.sites.joining import Accepted, make_request, make_rotation
from fedpipe.sites.site import Site
from fedpipe.store import Store, keys, open_store
from fedpipe.store.base import Credentials
from fedpipe.store.credentials import new_secret
from fedpipe.store.files import write_whole
from fedpipe.store.objects import decoded_file, encode

_Number = Annotated[str, Meta(pattern=r"^[0-9a-f]{32}\Z")]
_Hex = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
Opener = Callable[[Credentials | None], Store]
"""Opens the federation's part of the store with the given keys, or with the current ones."""


class Membership(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A federation that a site has joined, by which invitation."""

    format: int = 1
    federation: Name
    learner: Name
    administrator: PublicKey
    exchange: _Hex
    number: _Number


class Pending(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A request to join that is not answered yet: by which invitation, the new private key, and the request's text."""

    format: int = 1
    number: _Number
    key: _Hex
    request: str


class Renewal(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """New keys that are not granted yet.

    `secret` is empty for a site that keeps its keys of the store. `handed` are keys that an administrator handed over;
    otherwise the site chose its secret, which works once it is granted. `granted` when the new key is enrolled, and
    `taken` when the store takes the new secret: what is left can be done without the store.
    """

    format: int = 1
    key: _Hex
    access: str = ""
    secret: str = ""
    handed: bool = False
    granted: bool = False
    taken: bool = False
    request: str

    @property
    def credentials(self) -> Credentials | None:
        """The new keys of the store; none without a secret."""
        return Credentials(self.access, self.secret) if self.secret else None


class SiteKeys(NamedTuple):
    """The files of a site's keys.

    Args:
        state: its folder.
        key: the file of the signing key.
        credentials: the folder with the keys of the store.
    """

    state: Path
    key: Path
    credentials: Path

    @classmethod
    def of(cls, state: Path, learner: str) -> SiteKeys:
        """Return the files of a site that joins."""
        return cls(state, state / f"{learner}.key", state / "store")

    @property
    def membership(self) -> Membership | None:
        """The federation that the site has joined. Raises InputError."""
        return decoded_file(self.state / "membership.json", Membership)

    @property
    def pending(self) -> Pending | None:
        """The request to join that is not answered yet. Raises InputError."""
        return decoded_file(self.state / "joining.json", Pending)

    @property
    def renewal(self) -> Renewal | None:
        """The keys that are not granted yet. Raises InputError."""
        return decoded_file(self.state / "rotation.json", Renewal)

    def begin(self, invitation: Invitation, now: float) -> Pending:
        """Make the request to join, or return the one of an earlier call. Raises InputError."""
        pending = self.pending
        if pending is not None and pending.number == invitation.number:
            return pending
        private = pending.key if pending else make_key()
        request = make_request(invitation, private, now).decode()
        made = Pending(number=invitation.number, key=private, request=request)
        self._write(self.state / "joining.json", encode(made))
        if invitation.ca:
            write_whole(self.state / "ca.pem", invitation.ca.encode())
        return made

    def complete(self, invitation: Invitation, pending: Pending, accepted: Accepted) -> None:
        """Write the keys of a site that was accepted. Raises InputError."""
        if accepted.credentials is not None:
            self._write_credentials(accepted.credentials)
        self._write(self.key, f"{' '.join([pending.key, accepted.mark]).strip()}\n".encode())
        made = Membership(
            federation=invitation.federation, learner=invitation.learner, administrator=invitation.administrator,
            exchange=invitation.exchange, number=invitation.number,
        )  # fmt: skip
        self._write(self.state / "membership.json", encode(made))

    def end(self) -> None:
        """Forget the request to join, once all files of the site are written."""
        (self.state / "joining.json").unlink(missing_ok=True)

    def renew(self, opened: Opener, now: float, given: Credentials | None = None) -> Renewal:
        """Ask for new keys, or ask again as an earlier call did.

        Args:
            opened: opens the federation's part of the store.
            now: seconds since 1970.
            given: new keys of the store that an administrator handed over; otherwise the site chooses its secret.

        Raises:
            InputError: the site has not joined, or a file cannot be written.
            StoreError: the store cannot be used.
        """
        renewal = self.renewal or self._new(now, given)
        if renewal.handed and renewal.credentials:
            self._write_credentials(renewal.credentials)
        store, _ = self._usable(opened, None if renewal.handed else renewal.credentials)
        store.replace(keys.rotation(self._joined().learner), renewal.request.encode())
        return renewal

    def settle(self, opened: Opener) -> bool:
        """Take the new keys as soon as they are enrolled, and return whether that is done.

        Args:
            opened: opens the federation's part of the store.

        Raises:
            InputError: a file cannot be read or written.
            StoreError: the store cannot be used.
        """
        renewal, joined = self.renewal, self._joined()
        if renewal is None or renewal.granted:
            return self.recover()
        renewed = None if renewal.handed else renewal.credentials
        store, taken = self._usable(opened, renewed)
        known = find_enrolled(store).learners.get(joined.learner)
        if known is None or known.key != public_key(renewal.key):
            return False
        self._write(self.state / "rotation.json", encode(replace(renewal, granted=True, taken=taken)))
        return self.recover()

    def recover(self) -> bool:
        """Put granted keys in their places, also after a crash, and return whether no request is left.

        It needs no store.

        Raises:
            InputError: a file cannot be read or written.
        """
        renewal = self.renewal
        if renewal is None or not renewal.granted:
            return renewal is None
        if renewal.taken and renewal.credentials:
            self._write_credentials(renewal.credentials)
        mark = self.key.read_text().split()[1:]
        self._write(self.key, f"{' '.join([renewal.key, *mark])}\n".encode())
        (self.state / "rotation.json").unlink(missing_ok=True)
        return True

    def age(self, now: float) -> float:
        """Return the seconds since the signing key was written."""
        return now - self.key.stat().st_mtime

    def _joined(self) -> Membership:
        if found := self.membership:
            return found
        remedy = "Ask its administrator for an invitation, then run `fedpipe site join FILE`."
        raise InputError("this site has not joined a federation", where=str(self.state), remedy=remedy)

    def _new(self, now: float, given: Credentials | None) -> Renewal:
        joined, new = self._joined(), make_key()
        keys_of_store = given
        if given is None and (self.credentials / "accesskey").exists():
            keys_of_store = Credentials((self.credentials / "accesskey").read_text().strip(), new_secret())
        request = make_rotation(
            joined.federation, joined.learner, signer_of(self.key.read_text().split()[0]), new, now,
            exchange=joined.exchange, secret=keys_of_store.secret_key if keys_of_store and not given else "",
        )  # fmt: skip
        access, secret = keys_of_store[:2] if keys_of_store else ("", "")
        made = Renewal(key=new, access=access, secret=secret, handed=given is not None, request=request.decode())
        self._write(self.state / "rotation.json", encode(made))
        return made

    def _usable(self, opened: Opener, renewed: Credentials | None) -> tuple[Store, bool]:
        """Return a store that answers, and whether it takes the new keys; the old ones may have stopped working."""
        if renewed is not None:
            store = opened(renewed)
            try:
                find_enrolled(store)
                return store, True
            except StoreUnavailableError:
                raise
            except StoreError:
                pass  # the user has its old secret
        return opened(None), False

    def _write_credentials(self, credentials: Credentials) -> None:
        try:
            self.credentials.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"cannot be written: {error.strerror}", where=str(self.credentials)) from error
        self._write(self.credentials / "accesskey", f"{credentials.access_key}\n".encode())
        self._write(self.credentials / "secretkey", f"{credentials.secret_key}\n".encode())

    def _write(self, path: Path, data: bytes) -> None:
        write_whole(path, data, mode=0o600)


def keys_of(site: Site) -> SiteKeys:
    """Return the files of the keys of a site."""
    state = Path(site.state)
    return SiteKeys(state, Path(site.key), Path(site.credentials) if site.credentials else state / "store")


def opener_of(site: Site) -> Opener:
    """Return the function that opens the federation's part of the store of a site."""

    def opened(credentials: Credentials | None) -> Store:
        return open_store(site.store, credentials=credentials).below(site.federation)

    return opened
