"""The roster of a federation: the learners' public keys, which its administrator signs.

keys/_administrator.key   the administrator's private key, made at the first use
keys/_administrator.pub   its public key, which each learner needs for secure sums
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from fedpipe.commands.members import StoredFederation, open_place
from fedpipe.commands.opened import StoreGiven
from fedpipe.errors import InputError
from fedpipe.federation.sources import Source
from fedpipe.identity.enrolment import read_enrolled
from fedpipe.identity.roster import put_roster
from fedpipe.identity.signing import ADMINISTRATOR, make_key, public_key
from fedpipe.store.files import write_whole


class SignedRoster(NamedTuple):
    """A signed roster: the learners in it, the others of the federation file, and the file of the public key."""

    learners: tuple[str, ...]
    missing: tuple[str, ...]
    file: Path


def roster(source: Source, *, store: StoreGiven = None, keys: str | Path | None = None) -> SignedRoster:
    """Signs the public keys of all learners that are enrolled, as the administrator of the federation.

    Args:
        source: the federation file, or its content.
        store: a store to use instead of the federation's.
        keys: folder of the key files; `keys` next to the federation file by default.

    Raises:
        InputError: no learner is enrolled, or the administrator's key cannot be read or written.
        StoreError: the store cannot be used.
    """
    place = open_place(source, store)
    return renew_roster(place, place.key_folder(keys))


def renew_roster(place: StoredFederation, folder: Path) -> SignedRoster:
    """Signs the roster with the key in a folder, which is made at the first use. Raises InputError as `roster`."""
    enrolled = read_enrolled(place.store)
    if not any(item.revoked is None for item in enrolled.learners.values()):
        raise InputError("no learner is enrolled", where=place.uri, remedy="Run `fedpipe enroll LEARNER` for each.")
    signed = put_roster(place.store, place.federation.name, enrolled, administrator_key(folder))
    missing = [one.name for one in place.federation.learners if one.name not in signed.learners]
    return SignedRoster(tuple(sorted(signed.learners)), tuple(missing), folder / f"{ADMINISTRATOR}.pub")


def administrator_key(folder: Path) -> str:
    """Returns the administrator's private key; makes one if the folder has none. Raises InputError."""
    path = folder / f"{ADMINISTRATOR}.key"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            if not (folder / ".gitignore").exists():
                write_whole(folder / ".gitignore", b"*\n")
            write_whole(path, f"{make_key()}\n".encode(), mode=0o600)
        private = path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the administrator's key cannot be used: {error}", where=str(path)) from error
    _write_public(folder / f"{ADMINISTRATOR}.pub", f"{public_key(private)}\n")
    return private


def find_administrator_key(folder: Path) -> str:
    """Returns the administrator's private key of a folder. Raises InputError if there is none."""
    if not (folder / f"{ADMINISTRATOR}.key").exists():
        remedy = "Run it where `fedpipe invite` wrote the key, or name its folder with --keys."
        raise InputError("there is no key of the administrator", where=str(folder), remedy=remedy)
    return administrator_key(folder)


def _write_public(path: Path, text: str) -> None:
    """Writes the public key unless it is there: the folder may be a mounted secret, which cannot be written."""
    if not path.exists() or path.read_text() != text:
        write_whole(path, text.encode())
