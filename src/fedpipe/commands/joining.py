"""A site joins a federation, and renews its keys."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any, Literal, NamedTuple

from fedpipe.commands.site_decisions import noting
from fedpipe.errors import CorruptError, DroppedError, InputError, StoreError, StoreUnavailableError
from fedpipe.federation.loading import load
from fedpipe.identity.enrolment import find_enrolled
from fedpipe.identity.signing import public_key
from fedpipe.sites.invitation import ASK, Invitation, check_open, read_invitation
from fedpipe.sites.joining import LIMIT, fingerprint, read_answer
from fedpipe.sites.membership import Pending, SiteKeys, keys_of, opener_of
from fedpipe.sites.site import CA_VARIABLE, Site, check_state, read_site
from fedpipe.store import Store, keys, open_store
from fedpipe.store.base import Credentials
from fedpipe.store.concealment import changed_environment
from fedpipe.store.files import write_whole
from fedpipe.store.lent import Lent

LOOK = 2.0
"""Seconds between two looks for an answer."""
SETTLED = 60.0
"""Seconds after which a site that was accepted must be able to use its keys of the store."""
Listener = Callable[[str], object]


_NOT_YET = "Run the same command again to continue."


class Joined(NamedTuple):
    """A site that has joined: its name, federation and public key, and its site.yaml, which was written or kept."""

    site: str
    federation: str
    key: str
    file: Path
    written: bool


def join(
    invitation: str | Path, config: str | Path = "site.yaml", *, wait: float | None = None,
    listener: Listener = str,
) -> Joined:  # fmt: skip
    """Joins a federation: makes the site's key here, asks, waits for the answer, and writes the site's files.

    A site that has joined by this invitation stays as it is; only a site.yaml that is missing is written again.

    Args:
        invitation: the file that the administrator sent.
        config: the site.yaml to write; one that exists is kept.
        wait: most seconds to wait for the answer; by default until the invitation expires.
        listener: receives the progress.

    Raises:
        InputError: the invitation is not valid, another site.yaml is there, or the administrator refused.
        StoreError: the store cannot be used.
        StoreUnavailableError: there is no answer yet; the same call continues.
    """
    _check_home(Path(config))
    if not (path := Path(invitation)).is_file():
        read_invitation(path)  # it raises: a mistyped name leaves no journal
    note = noting(config)
    try:
        return _join(path, Path(config), wait, listener, note)
    except (InputError, CorruptError) as error:
        note("not-joined", why=str(error))
        raise


def _join(path: Path, config: Path, wait: float | None, listener: Listener, note: Callable[..., object]) -> Joined:
    now = time.time()
    invitation = read_invitation(path)
    files = _files_of(config, invitation)
    if files.membership and files.membership.number == invitation.number and files.pending is None:
        written = _write_config(config, invitation)
        return Joined(invitation.learner, invitation.federation, read_site(config).public_key, config, written)
    check_open(invitation, now, str(path))
    check_state(files.state)
    pending = files.begin(invitation, now)
    with changed_environment({CA_VARIABLE: str(files.state / "ca.pem")} if invitation.ca else {}):
        box = _box(invitation)
        key = public_key(pending.key)
        sent = box.create(pending.request.encode())
        note("asked", federation=invitation.federation, key=key, invitation=invitation.number)
        where = "is in the store" if sent else "waits in the store, unless another one by this invitation came first"
        listener(f"the request of the key {fingerprint(key)} {where}")
        answer = _awaited(box, invitation, now + wait if wait is not None else float(invitation.expires), listener)
        _take(files, invitation, pending, answer, path)
    written = _write_config(config, invitation)
    files.end()
    _check_use(read_site(config), key, listener)
    note("joined", federation=invitation.federation, key=key, invitation=invitation.number)
    return Joined(invitation.learner, invitation.federation, key, config, written)


def rotate(
    config: str | Path = "site.yaml", *, given: Credentials | None = None, wait: float = SETTLED,
    listener: Listener = str,
) -> str:  # fmt: skip
    """Gives a site new keys: a request that the current key signs, and that needs no person to be granted.

    Args:
        config: the site.yaml.
        given: new keys of the store that an administrator handed over; otherwise the site chooses a secret.
        wait: most seconds to wait until the new key is enrolled.
        listener: receives the progress.

    Returns:
        The new public key.

    Raises:
        InputError: the site has not joined by an invitation.
        StoreUnavailableError: the request is not granted yet; the same call continues.
        StoreError: the store cannot be used.
    """
    site = read_site(config)
    files = keys_of(site)
    end = time.monotonic() + wait
    with changed_environment(site.surroundings()):
        earlier = files.renewal
        if earlier is not None and files.settle(opener_of(site)):
            key = public_key(earlier.key)
        else:
            key = public_key(files.renew(opener_of(site), time.time(), given).key)
            noting(config)("asked", federation=site.federation, key=key)
            listener("the request for new keys is in the store")
        while not files.settle(opener_of(site)):
            if time.monotonic() >= end:
                what = "the request for new keys is not granted yet"
                raise StoreUnavailableError(
                    what, remedy=f"{_NOT_YET} The administrator sees it by `enroll --requests`."
                )
            time.sleep(LOOK)
    noting(config)("rotated", federation=site.federation, key=key)
    return key


class _FolderBox(NamedTuple):
    """Where the request goes and the answer comes from, in a store that is a folder."""

    store: Store
    invitation: Invitation

    def create(self, data: bytes) -> bool:
        return self.store.create(self._key("request"), data)

    def find(self) -> bytes | None:
        blob = self.store.poll(self._key("answer"), limit=LIMIT)
        return blob.data if blob else None

    def _key(self, what: Literal["request", "answer"]) -> str:
        return keys.joining(self.invitation.learner, self.invitation.number, what)


class _LentBox(NamedTuple):
    """The same in an S3 store, to which the site has no keys yet: by the URLs of its invitation."""

    client: Lent
    invitation: Invitation

    def create(self, data: bytes) -> bool:
        return self.client.create(self.invitation.request, data)

    def find(self) -> bytes | None:
        return self.client.find(self.invitation.answer)


_Box = _FolderBox | _LentBox


def _box(invitation: Invitation) -> _Box:
    if invitation.request:
        return _LentBox(Lent(), invitation)
    return _FolderBox(open_store(invitation.store).below(invitation.federation), invitation)


def _awaited(box: _Box, invitation: Invitation, end: float, listener: Listener) -> bytes:
    """Waits for the answer, also while the store is away. Raises StoreUnavailableError without one in time."""
    started = time.time()
    while True:
        try:
            if answer := box.find():
                return answer
            why = f"waits for the administrator of {invitation.federation}"
        except StoreUnavailableError as error:
            why = error.what
        now = time.time()
        if now + LOOK > end:
            raise StoreUnavailableError(f"there is no answer yet: it {why}", remedy=_NOT_YET)
        listener(f"{why}, for {now - started:.0f} s")
        time.sleep(LOOK)


def _take(files: SiteKeys, invitation: Invitation, pending: Pending, answer: bytes, path: Path) -> None:
    """Checks the answer and writes the keys. Raises InputError when the administrator refused."""
    try:
        accepted = read_answer(answer, invitation, pending.key, pending.request.encode())
    except DroppedError as error:
        raise InputError(error.what, where=str(path), remedy=ASK) from error
    if invitation.request and accepted.credentials is None:
        raise CorruptError("the answer has no keys of the store", where=str(path), remedy=ASK)
    files.complete(invitation, pending, accepted)


def _check_home(config: Path) -> None:
    home = config.absolute().parent
    if not home.is_dir():
        raise InputError("the folder does not exist", where=str(home), remedy="Create it first.")


def _files_of(config: Path, invitation: Invitation) -> SiteKeys:
    """Returns the files of the site's keys. Raises InputError for the site.yaml of another site."""
    home = config.absolute().parent
    default = SiteKeys.of(home / "state", invitation.learner)
    if not config.exists():
        return default
    content = load(config)
    found: dict[str, Any] = content if isinstance(content, dict) else {}
    wanted = {"federation": invitation.federation, "name": invitation.learner, "store": invitation.store}
    if invitation.request and not found.get("credentials"):
        remedy = "Add the line `credentials: state/store`, or name another file with --config."
        raise InputError("has no folder for the keys of the store", where=f"{config}: credentials", remedy=remedy)
    for key, value in wanted.items():
        if found.get(key) != value:
            what = f"is of another site: it has {str(found.get(key))[:200]!r}, the invitation {value!r}"
            raise InputError(what, where=f"{config}: {key}", remedy="Name another file with --config.")
    default = SiteKeys.of(home / str(found.get("state") or "state"), invitation.learner)
    places = {"key": default.key, "credentials": default.credentials}
    named = {key: home / str(found[key]) if found.get(key) else place for key, place in places.items()}
    return SiteKeys(default.state, named["key"], named["credentials"])


def _write_config(config: Path, invitation: Invitation) -> bool:
    """Writes site.yaml unless it exists, and returns whether it did. Raises InputError."""
    if config.exists():
        return False
    lines = []
    if invitation.request:
        lines.append("credentials: state/store      # a folder with the files accesskey and secretkey")
    if invitation.ca:
        lines.append("ca: state/ca.pem              # certificate of the store's authority")
    template = resources.files("fedpipe") / "templates" / "site.yaml"
    text = template.read_text().format(
        store=json.dumps(invitation.store), federation=invitation.federation, name=invitation.learner,
        administrator=json.dumps(invitation.administrator), lines="\n".join(lines),
    )  # fmt: skip
    write_whole(config, text.encode(), mode=0o600)
    return True


def _check_use(site: Site, key: str, listener: Listener) -> None:
    """Waits until the store takes the site's keys and shows that it is enrolled. Raises StoreError."""
    end = time.monotonic() + SETTLED
    while True:
        try:
            with changed_environment(site.surroundings()):
                known = find_enrolled(site.open()).learners.get(site.name)
            if known is not None and known.key == key:
                return
            fault = StoreError(
                "the store does not show that this site is enrolled", remedy="Run `fedpipe site status`."
            )
        except StoreError as error:
            fault = error
        if time.monotonic() > end:
            raise fault
        listener("the new keys are not known to the store yet")
        time.sleep(LOOK)
