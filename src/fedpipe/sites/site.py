"""The file site.yaml: where a site's federation is, and all that its owner decides. It is never read from the store."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta, field
from msgspec.structs import replace

from fedpipe.codec import converted
from fedpipe.errors import FedpipeError, InputError
from fedpipe.federation.confidential import check_no_credentials_in
from fedpipe.federation.loading import load
from fedpipe.federation.messages import Grammar, mistake_of
from fedpipe.federation.names import Name, Section
from fedpipe.federation.values import check_values
from fedpipe.identity.signing import ADMINISTRATOR_KEY, FOUND_KEYS, KEYS, SIGNING_KEY, public_key
from fedpipe.sites.approval import Approving, Way, mistakes_of
from fedpipe.sites.policy import HOURS, Policy
from fedpipe.store import SECRET_DIR, Store, check_uri, file_uri, is_uri, open_store
from fedpipe.store.credentials import read_mounted
from fedpipe.store.network import CLIENT_CERTIFICATE, check_certificate, trust

KEYS_OF_STORE = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
"""Variables that come before a folder of keys; of another user of this machine."""
CA_VARIABLE = "AWS_CA_BUNDLE"
"""The variable through which the store's client gets the certificate of `ca`."""
LEAST_LOOK = 15.0
"""Fewest seconds between two looks of an idle site."""
KEY_OR_NONE = r"^([0-9a-f]{64})?\Z"
_MISSING = "Write it as docs/sites.md shows, or join with `fedpipe site join`."


class Site(Section, frozen=True, kw_only=True):
    """A learner on its owner's own machines."""

    store: Annotated[str, Meta(description="URI of the store, such as `s3://bucket/prefix?endpoint=https://host`")]
    federation: Annotated[Name, Meta(description="name of the federation; its folder in the store")]
    name: Annotated[Name, Meta(description="the site's name in the federation file, where it has `at: site`")]
    state: Annotated[str, Meta(description="folder of key, journal, approvals and scratch files")] = "state"
    key: Annotated[str, Meta(description="file of the signing key; by default `<name>.key` in `state`")] = ""
    credentials: Annotated[
        str,
        Meta(description="folder with the files accesskey and secretkey of the store; empty: from the environment"),
    ] = ""
    ca: Annotated[str, Meta(description="file with the certificate of the store's authority; empty: the system's")] = ""
    certificate: Annotated[
        str, Meta(description="PEM file with the site's certificate and key, if the store asks for one; empty: none")
    ] = ""
    administrator: Annotated[
        str,
        Meta(pattern=KEY_OR_NONE, description="public key of the federation's administrator"),
    ] = ""
    renew: Annotated[
        int, Meta(ge=0, le=3650, description="days after which the agent asks for new keys of the site; 0: never")
    ] = 0
    look: Annotated[
        float, Meta(ge=LEAST_LOOK, le=3600, description="seconds between two looks at the store while idle")
    ] = LEAST_LOOK
    approve: Annotated[
        Way | Approving, Meta(description="how a plan is approved before it runs; a word alone takes all defaults")
    ] = "ask"
    policy: Annotated[Policy, Meta(description="limits that the site sets")] = field(default_factory=Policy)

    @property
    def approving(self) -> Approving:
        """Return who approves plans."""
        return self.approve if isinstance(self.approve, Approving) else Approving(by=self.approve)

    def open(self) -> Store:
        """Return the federation's part of the store. Raises StoreError."""
        return open_store(self.store).below(self.federation)

    @property
    def public_key(self) -> str:
        """Return the public part of the signing key; empty where the site has none. Raises InputError."""
        private = self.private_key
        return public_key(private) if private else ""

    @property
    def private_key(self) -> str:
        """Return the private signing key; empty where the site has none. Raises InputError."""
        return (self._key_text().split() or [""])[0]

    def _key_text(self) -> str:
        try:
            return Path(self.key).read_text().strip()
        except FileNotFoundError:
            return ""
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is not text"
            raise InputError(f"the signing key cannot be read: {why}", where=self.key) from error

    def surroundings(self) -> Mapping[str, str]:
        """Return the environment in which the store and the keys are the site's. Raises InputError."""
        found = {SIGNING_KEY: self._key_text(), KEYS: "", FOUND_KEYS: ""}
        found |= dict.fromkeys(KEYS_OF_STORE, "") | {SECRET_DIR: self.credentials} if self.credentials else {}
        found |= {CA_VARIABLE: self.ca} if self.ca else {}
        found |= {CLIENT_CERTIFICATE: self.certificate} if self.certificate else {}
        found |= {ADMINISTRATOR_KEY: self.administrator} if self.administrator else {}
        return found


_NO_KEY = ("is not a public key", "Write its 64 hexadecimal digits.")
_FORMS = {
    HOURS: ("is not a part of the day", "Write it as '18:00-06:00', in quotes."),
    r"^[0-9a-f]{64}\Z": _NO_KEY, KEY_OR_NONE: _NO_KEY,
    r"^sha256:[0-9a-f]{64}\Z": ("is not a digest", "Write the whole digest, as `fedpipe site pending` shows it."),
}  # fmt: skip
_GRAMMAR = Grammar(Site, "docs/sites.md", _FORMS)


def read_site(path: str | Path) -> Site:
    """Read and check site.yaml; relative paths in it start at its folder.

    Args:
        path: the file.

    Raises:
        InputError: names the key, the mistake and the remedy.
    """
    path = Path(path)
    return parse_site(load(path, missing=_MISSING), path.absolute().parent, where=str(path))


def parse_site(content: Any, folder: Path, *, where: str) -> Site:
    """Check builtin values and return the site, with absolute paths.

    Args:
        content: of a site.yaml.
        folder: where relative paths start.
        where: names the file in messages.

    Raises:
        InputError: names the key, the mistake and the remedy.
    """
    if not isinstance(content, dict):
        raise InputError("is not a table of keys and values", where=where, remedy=_MISSING)
    check_no_credentials_in(content, where=where)
    check_values(content, where=where)
    try:
        site = converted(content, Site)
    except msgspec.ValidationError as error:
        path, what, remedy = mistake_of(_GRAMMAR, str(error), content)
        raise InputError(what, where=f"{where}: {path}" if path else where, remedy=remedy) from error
    for flaw in mistakes_of(site.approving):
        raise InputError(flaw.what, where=f"{where}: approve.{flaw.key}", remedy=flaw.remedy)
    site = _resolved(site, folder, where)
    _check(site, where)
    return site


def _resolved(site: Site, folder: Path, where: str) -> Site:
    def place(text: str) -> str:
        return str((folder / text).resolve()) if text else ""

    try:
        store = check_uri(site.store, folder=folder)
    except FedpipeError as error:
        raise InputError(error.what, where=f"{where}: store", remedy=error.remedy) from error
    data = site.policy.data
    if data and not is_uri(data):
        data = place(data) if place(data).isprintable() else file_uri(Path(place(data)))
    state = place(site.state) or str(folder)
    return replace(
        site, store=store, state=state, key=place(site.key) or str(Path(state, f"{site.name}.key")),
        credentials=place(site.credentials), ca=place(site.ca),
        certificate=place(site.certificate), policy=replace(site.policy, data=data),
    )  # fmt: skip


def _check(site: Site, where: str) -> None:
    """Check what the file names on this machine. Raises InputError with the key's path."""
    checks: dict[str, tuple[str, Callable[[], object]]] = {
        "ca": (site.ca, lambda: trust(site.ca)),
        "certificate": (site.certificate, lambda: check_certificate(site.certificate, "certificate")),
        "credentials": (site.credentials, lambda: read_mounted(site.credentials)),
        "state": (site.state, lambda: check_state(Path(site.state))),
        "key": (site.key, lambda: site.public_key),
    }
    for path, (given, check) in checks.items():
        if not given:
            continue
        try:
            check()
        except FedpipeError as error:
            place = f"{where}: {path}, {error.where}" if error.where else f"{where}: {path}"
            raise InputError(error.what, where=place, remedy=error.remedy) from error


def check_state(folder: Path) -> None:
    """Make the site's folder, which others may not read, and check that it can be written. Raises InputError."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        user = os.environ.get("USER") or os.getuid()
        raise InputError(
            f"the folder cannot be written: {error.strerror}", where=str(folder),
            remedy=f"Give the user of the agent, {user}, the right to write there, or choose another folder.",
        ) from error  # fmt: skip
