"""The work of a site's commands about plans and its journal: pending, approve, refuse, review, check, journal."""

from __future__ import annotations

import getpass
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Literal, NamedTuple

from fedpipe.commands.arguments import AGES, seconds_of_age
from fedpipe.errors import InputError
from fedpipe.federation.federation import Federation
from fedpipe.federation.file import read_federation
from fedpipe.federation.loading import load
from fedpipe.identity.signing import make_key, public_key, signer_of
from fedpipe.rounds.plan import Plan
from fedpipe.sites.approval import Approval, read_review, review_of
from fedpipe.sites.audit import Flaw, find_flaw
from fedpipe.sites.decisions import MISSING, approvals_of, has_worked, journal_folder, journal_in, journal_of, signer_in
from fedpipe.sites.demands import demands_of
from fedpipe.sites.description import Description
from fedpipe.sites.journal import Entry, entries_of, files_of
from fedpipe.sites.policy import Effective, effective, objections
from fedpipe.sites.running import wake
from fedpipe.sites.site import check_state, read_site
from fedpipe.store.files import write_whole
from fedpipe.store.objects import canonical, decode

_LARGEST_PLAN = 64 * 2**20


class Waiting(NamedTuple):
    """A plan that waits for a decision, and how it differs from the one that was approved last.

    Args:
        digest: names the plan in decisions.
        since: seconds since 1970.
        run: the run that asked first.
        description: of the plan.
        code: unified diff of model.py.
        settings: differences such as `training.rounds: 5 -> 6`.
        signed: number of reviewers who have signed it.
    """

    digest: str
    since: float
    run: str
    description: Description
    code: str
    settings: list[str]
    signed: int


def pending(file: str | Path) -> list[Waiting]:
    """Return the plans that wait for a decision, oldest first.

    Args:
        file: the site's site.yaml.

    Raises:
        InputError: the file or the folder of the approvals cannot be used.
        CorruptError: a decision was changed.
    """
    approvals = approvals_of(read_site(file))
    return [
        Waiting(
            one.digest, one.since, one.run, one.description, *approvals.difference(one.description),
            signed=len(approvals.reviewers_of(one.digest)),
        )
        for one in approvals.pending()
    ]  # fmt: skip


def decide(
    file: str | Path, digest: str, verdict: Literal["approved", "refused"], *, why: str = "",
    reviews: tuple[Path, ...] = (),
) -> Approval | None:  # fmt: skip
    """Approve or refuse a plan at a site, and write it into the journal.

    Args:
        file: the site's site.yaml.
        digest: of the plan or its beginning; empty for the only one that waits.
        verdict: the decision.
        why: the reason.
        reviews: files of reviewers; with these, the plan is approved once enough have signed.

    Returns:
        The decision; None when reviews were added.

    Raises:
        InputError: no plan or several fit the digest, or a review does not count.
    """
    site = read_site(file)
    approvals, journal = approvals_of(site), journal_of(site)
    for path in reviews:
        review = read_review(path)
        approvals.add_review(review)
        journal.note("reviewed", plan=review.plan, key=review.signature and review.signature.key)
    if reviews:
        wake(site)
        return None
    made = approvals.answer(digest, verdict, why, _user())
    journal.note(made.verdict, plan=made.plan, code=made.code, why=why or None, by=made.by, who=made.who)
    wake(site)
    return made


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return ""


def review(file: str | Path, digest: str, key: Path, out: Path | None = None) -> str:
    """Sign a plan as a reviewer, for the site or to a file, and return the plan's digest.

    Args:
        file: the site's site.yaml.
        digest: of the plan or its beginning; empty for the only one that waits.
        key: file of the reviewer's private key.
        out: a file for `fedpipe site approve --review`; by default, the site gets the review.

    Raises:
        InputError: the key cannot be read, or the plan is unknown.
    """
    site, signer = read_site(file), signer_of(_key_in(key))
    approvals = approvals_of(site)
    plan = approvals.described(digest).digest
    made = review_of(plan, signer)
    if out is not None:
        write_whole(out, canonical(made))
        return plan
    approvals.add_review(made)
    journal_of(site).note("reviewed", plan=plan, key=made.signature and made.signature.key)
    wake(site)
    return plan


def _key_in(path: Path) -> str:
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not text"
        remedy = "Make one: fedpipe site reviewer FILE."
        raise InputError(f"the key cannot be read: {why}", where=str(path), remedy=remedy) from error


def reviewer(path: Path) -> str:
    """Write a new private key of a reviewer, and return the public one. Raises InputError."""
    if path.exists():
        raise InputError("exists already", where=str(path), remedy="Name a new file.")
    private = make_key()
    write_whole(path, f"{private}\n".encode(), mode=0o600)
    return public_key(private)


class Compared(NamedTuple):
    """A plan and a policy: all that the plan asks beyond it, or the settings that run."""

    objections: tuple[str, ...]
    runs: Effective | None


def check(file: str | Path, source: str | Path) -> Compared:
    """Compare a plan or a federation with the policy of a site.

    Args:
        file: the site's site.yaml.
        source: a federation file, or a plan as it is in the store.

    Raises:
        InputError: a file cannot be used.
    """
    site, federation = read_site(file), _federation_in(Path(source))
    found = objections(site.policy, federation, site.name)
    return Compared(found, None if found else effective(site.policy, demands_of(federation, site.name)))


def _federation_in(path: Path) -> Federation:
    try:
        with path.open("rb") as file:
            head = file.read(_LARGEST_PLAN)
    except OSError as error:
        remedy = "Name a federation file, or a plan from the store."
        raise InputError(f"cannot be read: {error.strerror}", where=str(path), remedy=remedy) from error
    if head.startswith(b"{"):
        return decode(head, Plan, where=str(path)).federation
    return read_federation(path)


def journal(file: str | Path, since: str = "") -> Iterator[Entry]:
    """Return the entries of a site's journal.

    Args:
        file: the site's site.yaml.
        since: a time such as `2026-11-28` or `2026-11-28T18:00`, or an age such as `12h` or `8w`; empty: all.

    Raises:
        InputError: the file or the time is malformed.
        CorruptError: an entry is malformed.
    """
    return entries_of(journal_folder(_state_of(file)), since=_time(since) if since else 0.0)


def verify(file: str | Path) -> Flaw | None:
    """Return the first place at which a site's journal was changed; None if it is whole. Raises InputError."""
    state = _state_of(file)
    folder = journal_folder(state)
    if not files_of(folder) and not (folder / "head").exists() and has_worked(state):
        return Flaw(folder.name, 0, MISSING)
    return find_flaw(folder, signer_in(state).public)


def _state_of(file: str | Path) -> Path:
    """Return the folder of a site's state; one that has asked to join in vain has a journal, and no site.yaml."""
    path = Path(file)
    early = path.absolute().parent / "state"
    return early if not path.exists() and journal_folder(early).is_dir() else Path(read_site(path).state)


def noting(file: str | Path, state: str = "state") -> Callable[..., object]:
    """Return the function that appends to the journal of a site, also before it has a site.yaml.

    Args:
        file: the site.yaml, or where it will be.
        state: the folder of the site's state, next to the file, if there is no file yet.

    Raises:
        InputError: the journal cannot be written.
        CorruptError: the journal was changed.
    """
    path = Path(file)
    content = load(path) if path.exists() else {}  # its keys of the store may not be there yet, so it is not checked
    named = content.get("state") if isinstance(content, dict) else None
    folder = path.absolute().parent / str(named or state)
    check_state(folder)
    return journal_in(folder).note


def _time(text: str) -> float:
    if (age := seconds_of_age(text)) is not None:
        return time.time() - age
    try:
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError) as error:
        remedy = f"Write 2026-11-28 or 2026-11-28T18:00; or {AGES}."
        raise InputError(f"{text!r} is not a time", where="--since", remedy=remedy) from error
