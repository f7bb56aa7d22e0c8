"""A new key of a site takes the place of the old one: in its decisions and its journal, which its key signs.

Both keys are known while this happens, so that it can be done again after a crash.
"""

from __future__ import annotations

import re
from pathlib import Path

from msgspec.structs import replace

from fedpipe.errors import CorruptError, InputError
from fedpipe.identity.signing import Signer
from fedpipe.identity.statements import is_signed_by, signed_with
from fedpipe.sites.approval import Approval
from fedpipe.sites.journal import Journal
from fedpipe.store.files import write_whole
from fedpipe.store.objects import canonical, decode


def succeed(state: Path, old: Signer, new: Signer) -> None:
    """Sign the decisions and the end of the journal of a site with its new key.

    Args:
        state: the folder of the site.
        old: signs with the key until now.
        new: signs with the new one.

    Raises:
        InputError: a file cannot be read or written.
        CorruptError: a decision or the journal was changed before: it is signed by neither key.
    """
    approvals = state / "approvals"
    for path in sorted(approvals.iterdir()) if approvals.is_dir() else []:
        if re.fullmatch("[0-9a-f]{64}", path.name):
            _sign(path, old, new)
    if (state / "journal").is_dir():
        Journal(state / "journal", old, also=new.public).hand_over(new)


def _sign(path: Path, old: Signer, new: Signer) -> None:
    try:
        approval = decode(path.read_bytes(), Approval, where=str(path))
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", where=str(path)) from error
    if is_signed_by(approval, new.public):
        return
    if not is_signed_by(approval, old.public):
        what = "a byte of the decision was changed"
        raise CorruptError(what, where=str(path), remedy="Remove the file, and decide again: fedpipe site pending.")
    time = approval.signature.time if approval.signature else 0.0
    write_whole(path, canonical(signed_with(replace(approval, signature=None), new, lambda: time)), mode=0o600)
