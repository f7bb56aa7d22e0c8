"""Makes and verifies Ed25519 signatures (RFC 8032) of updates and models."""

from __future__ import annotations

import contextlib
import re
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from msgspec import Meta, Struct

from fedpipe.errors import InputError
from fedpipe.store import SECRET_DIR, held
from fedpipe.store.concealment import changed_environment, environ


class Signature(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Holds the signer's public key, the time in seconds since 1970, and the signature, in hexadecimal digits."""

    key: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
    time: Annotated[float, Meta(ge=0, le=2.0**42)]
    value: Annotated[str, Meta(pattern=r"^[0-9a-f]{128}\Z")]


SIGNING_KEY = "FEDPIPE_SIGNING_KEY"
"""Environment variable: the private key of the learner or the coordinator, 64 hexadecimal digits."""
KEYS = "FEDPIPE_KEYS"
"""Environment variable: a folder of private keys, `<learner>.key`, for learners that run on this machine."""
FOUND_KEYS = "FEDPIPE_FOUND_KEYS"
"""Environment variable, set by commands: the folder `keys` next to the federation file, looked at last."""
COORDINATOR = "_coordinator"
"""Stands for the coordinator, whose key signs published models; no learner can have this name."""
ADMINISTRATOR_KEY = "FEDPIPE_ADMINISTRATOR"
"""Environment variable: the public key of the federation's administrator, 64 hexadecimal digits."""
ADMINISTRATOR = "_administrator"
"""Stands for the administrator of a federation, whose key signs the roster; no learner can have this name."""
_OF_SITES = tuple(
    f"fedpipe {kind}".encode()
    for kind in ("request", "journal", "decision", "review", "invitation", "answer", "exchange\njoining ")
)
"""Beginnings of statements by which a site decides, and joins or renews its key. Code of others gets none signed."""
_SIZE = 32


def make_key() -> str:
    """Generates a private key: 64 hexadecimal digits."""
    return secrets.token_hex(_SIZE)


def public_key(private: str) -> str:
    """Returns the public key of a private one, both 64 hexadecimal digits. Raises InputError."""
    return str(_private(private).public_key().export_key(format="raw").hex())


def sign(private: str, data: bytes) -> str:
    """Signs bytes, deterministically, and returns 128 hexadecimal digits. Raises InputError."""
    from Crypto.Signature import eddsa

    return str(eddsa.new(_private(private), "rfc8032").sign(data).hex())


class Signer(NamedTuple):
    """Signs for an identity, wherever its private key is: its public key, and a function from bytes to a signature."""

    public: str
    sign: Callable[[bytes], str]


def signer_of(private: str) -> Signer:
    """Returns the signer of a private key. Raises InputError."""
    return Signer(public_key(private), lambda data: sign(private, data))


def find_signer(learner: str) -> Signer | None:
    """Finds the signer of a learner, or of COORDINATOR: with the key of this process, or in the process that holds it.

    Returns None if there is no key. Raises InputError as `find_key`.
    """
    line = held.line()
    if line is None:
        private = find_key(learner)
        return signer_of(private) if private else None
    public = line.ask(held.Request("public_key", key=learner))[0]
    if public is None:
        return None
    return Signer(public, lambda data: str(line.ask(held.Request("sign", key=learner, payload=True), data)[0]))


def key_answers() -> dict[str, Callable[[str, bytes], Any]]:
    """Returns the answers of a process that holds keys: it names public keys and marks, and signs statements."""

    def find_public(learner: str, _: bytes) -> str | None:
        private = find_key(learner)
        return public_key(private) if private else None

    def signed(learner: str, data: bytes) -> str:
        private = find_key(learner)
        if private is None or not data.startswith(b"fedpipe ") or data.startswith(_OF_SITES):
            raise InputError("only statements of a learner in a run are signed")
        return sign(private, data)

    return {
        "public_key": find_public, "sign": signed, "mark": lambda learner, _: find_mark(learner),
        "administrator": lambda _, __: find_administrator(),
    }  # fmt: skip


def verify(public: str, data: bytes, signature: str) -> bool:
    """Returns whether the key signed these bytes; also False for a malformed key or signature."""
    from Crypto.Signature import eddsa

    try:
        key = eddsa.import_public_key(bytes.fromhex(public))
        eddsa.new(key, "rfc8032").verify(data, bytes.fromhex(signature))
    except ValueError:
        return False
    return True


def _private(text: str) -> Any:
    from Crypto.Signature import eddsa

    try:
        seed = bytes.fromhex((text.split() or [""])[0])
        if len(seed) != _SIZE:
            raise ValueError("wrong length")
        return eddsa.import_private_key(seed)
    except ValueError as error:
        raise InputError(
            "the private key is malformed", where=SIGNING_KEY, remedy="Use 64 hexadecimal digits."
        ) from error


def find_mark(learner: str, environ: Mapping[str, str] = environ) -> tuple[int, str] | None:
    """Finds the state of the privacy ledger when the key was made: its number of entries, and its head.

    It follows the key, in the same secret or file; the administrator who enrolled the learner vouches for it. Returns
    None without one.

    Raises:
        InputError: a file cannot be read, or the mark is malformed.
    """
    if line := held.line():
        found = line.ask(held.Request("mark", key=learner))[0]
        return found and (int(found[0]), str(found[1]))
    words = (_key_text(learner, environ) or "").split()[1:]
    if not words:
        return None
    if len(words) == 2 and words[0].isdecimal() and re.fullmatch(r"sha256:[0-9a-f]{64}", words[1]):
        return int(words[0]), words[1]
    raise InputError(
        "the mark after the private key is malformed",
        where=SIGNING_KEY,
        remedy="Run `fedpipe rotate` for this learner.",
    )


def find_key(learner: str, environ: Mapping[str, str] = environ) -> str | None:
    """Finds the private key of a learner, or of COORDINATOR, on this machine; returns None without one.

    In a container, the key comes from the secret, through `FEDPIPE_SIGNING_KEY` or a mounted file. On a machine that
    plays all learners, it comes from the folder `FEDPIPE_KEYS`, or from `keys` next to the federation file
    (`keys_at_hand`).

    Raises:
        InputError: a file cannot be read.
    """
    text = _key_text(learner, environ)
    return text if text is None else (text.split() or [""])[0]


def find_administrator(environ: Mapping[str, str] = environ) -> str | None:
    """Finds the public key of the federation's administrator on this machine; returns None without one.

    In a container, it comes from the secret, through `FEDPIPE_ADMINISTRATOR` or a mounted file. Elsewhere it is
    `_administrator.pub` in a folder of keys.

    Raises:
        InputError: a file cannot be read, or the key is malformed.
    """
    if line := held.line():
        found = line.ask(held.Request("administrator"))[0]
        return None if found is None else str(found)
    named = f"{ADMINISTRATOR}.pub"
    places = ((SECRET_DIR, "administrator"), (KEYS, named), (FOUND_KEYS, named))
    path = _first_file((environ.get(variable), name) for variable, name in places)
    text = environ.get(ADMINISTRATOR_KEY, "").strip() or (_read_text(path) if path else "")
    if text and not re.fullmatch(r"[0-9a-f]{64}", text):
        where = ADMINISTRATOR_KEY if environ.get(ADMINISTRATOR_KEY) else str(path)
        raise InputError("the administrator's public key is malformed", where=where, remedy="Run `fedpipe roster`.")
    return text or None


def _first_file(places: Iterable[tuple[str | None, str]]) -> Path | None:
    paths = (Path(folder, name) for folder, name in places if folder)
    return next((path for path in paths if path.exists()), None)


def _read_text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the key cannot be read: {error}", where=str(path)) from error


def _key_text(learner: str, environ: Mapping[str, str]) -> str | None:
    """Returns the private key of a learner, and what follows it."""
    if environ.get(SIGNING_KEY):
        return environ[SIGNING_KEY]
    named = f"{learner}.key"
    places = ((SECRET_DIR, "signingkey"), (KEYS, named), (FOUND_KEYS, named))
    path = _first_file((environ.get(variable), name) for variable, name in places)
    return None if path is None else _read_text(path)


def key_folder(source: Path, keys: str | Path | None = None) -> Path:
    """Returns the folder of the key files: `keys`, or the folder of that name next to the federation file."""
    return Path(keys) if keys else source.absolute().parent / "keys"


@contextlib.contextmanager
def keys_at_hand(source: Path, keys: str | Path | None = None) -> Iterator[None]:
    """Lets `find_key` find the keys of a federation, in this process and in those that it starts.

    Args:
        source: the federation file.
        keys: the only folder to look in; by default that of `FEDPIPE_KEYS`, then `keys` next to the file.
    """
    folder = str(key_folder(source, keys).absolute())
    changed = {KEYS: folder, SIGNING_KEY: ""} if keys else {FOUND_KEYS: folder}
    with changed_environment(changed):
        yield
