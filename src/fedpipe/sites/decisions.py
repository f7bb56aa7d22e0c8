"""Decides which plans run at a site, and writes each decision down before anything else happens.

No data are opened here, and no code is imported: the policy and the approvals judge a plan by its
content.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from fedpipe.errors import DroppedError, FedpipeError, InputError, StoreUnavailableError
from fedpipe.federation.mistakes import quantity
from fedpipe.identity.enrolment import read_enrolled
from fedpipe.identity.signing import Signer, make_key, signer_of
from fedpipe.identity.statements import is_signed_by, signed_with
from fedpipe.rounds.plan import Plan, read_plan
from fedpipe.rounds.received import Source, usable
from fedpipe.sites.account import is_large
from fedpipe.sites.approval import Approval, Approvals
from fedpipe.sites.description import Offer, offer_of
from fedpipe.sites.journal import DAY, Journal
from fedpipe.sites.policy import objections, pause
from fedpipe.sites.site import Site
from fedpipe.store import Store, keys
from fedpipe.store.objects import encode, get_bytes

MISSING = "it is missing, although this site has joined or trained"
"""The flaw of a journal without entries."""


def journal_of(site: Site, *, clock: Callable[[], float] = time.time) -> Journal:
    """Open the journal of a site. Raises as `journal_in`."""
    return journal_in(Path(site.state), clock=clock)


def journal_in(state: Path, *, clock: Callable[[], float] = time.time) -> Journal:
    """Open the journal in the folder of a site's state; a new one of a site that has worked says so.

    Raises:
        InputError, CorruptError: as `Journal`.
    """
    journal = Journal(journal_folder(state), signer_in(state), clock=clock)
    if journal.is_new and has_worked(state):
        journal.note("missing", why=MISSING)
    return journal


def has_worked(state: Path) -> bool:
    """Return whether a site has joined, or its agent has run, by its state: its journal has entries then."""
    return any((state / name).exists() for name in ("membership.json", "agent.json"))


def journal_folder(state: Path) -> Path:
    """Return the folder of a site's journal, in that of its state."""
    return state / "journal"


def approvals_of(site: Site, *, clock: Callable[[], float] = time.time) -> Approvals:
    """Open the approvals of a site. Raises InputError."""
    signer = signer_in(Path(site.state))
    return Approvals(Path(site.state, "approvals"), site.approving, signer, clock=clock)


def signer_in(state: Path) -> Signer:
    """Return the signer of a site's own decisions and journal, whose key is made at its first use.

    It is not the key by which the federation knows the site: that one is replaced, and these signatures must last.

    Raises:
        InputError: the key cannot be read or written.
    """
    path = state / "decisions.key"
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        return signer_of(_read_key(path))
    except OSError as error:
        remedy = "Give the user of the agent the right to write there."
        raise InputError(f"the key cannot be written: {error.strerror}", where=str(path), remedy=remedy) from error
    with os.fdopen(handle, "w") as file:
        private = make_key()
        file.write(private)
    return signer_of(private)


def _read_key(path: Path) -> str:
    """Return a key; the process that makes it may not have written it yet."""
    try:
        for pause in (0.01, 0.1, 1.0, 0.0):
            if text := path.read_text().strip():
                break
            time.sleep(pause)
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not text"
        raise InputError(f"the key cannot be read: {why}", where=str(path)) from error
    return text


class Decisions:
    """Decides about plans for a site.

    Args:
        site: whose policy and approvals count.
        journal: gets every decision, once.
        clock: seconds since 1970.

    Raises:
        InputError: the folder of the approvals cannot be written.
    """

    def __init__(self, site: Site, journal: Journal, *, clock: Callable[[], float] = time.time) -> None:
        self._site, self._journal, self._clock = site, journal, clock
        self._approvals = approvals_of(site, clock=clock)
        self._known: dict[str, Approval] = {}
        self._shown: Approval | None = None
        self._offers: dict[tuple[str, str], Offer] = {}
        self._current: tuple[Store, Plan] | None = None
        self._refused: set[tuple[Any, ...]] = set()
        self._too_large = 0.0, 0  # when the current plan had an object too large for the day, and its bytes

    def read(self, store: Store, digest: str) -> Plan:
        """Return a plan by its digest; one that is malformed is refused, and written down.

        Raises:
            CorruptError: its bytes are not those of the digest, or not a plan.
            StoreError: it cannot be read.
        """
        try:
            return read_plan(store, digest)
        except StoreUnavailableError:
            raise
        except FedpipeError as error:
            self._refuse(error, object=f"plan {digest}")
            raise

    def _refuse(self, error: FedpipeError, **fields: Any) -> None:
        """Write down, once, that something from the store cannot be used."""
        if (mark := (*fields.values(), error.what)) not in self._refused:
            self._refused.add(mark)
            self._journal.note("refused", **fields, why=error.what)

    def decide(self, store: Store, plan: Plan, *, examples: int | None = None) -> Approval:
        """Decide about a plan, before its code is imported and any data are opened.

        Args:
            store: the federation's store, which has the code.
            plan: from the store, by its digest.
            examples: number of the site's train examples, if it is known.

        Returns:
            The decision: `approved`, `refused` or `waits`, with the reason.

        Raises:
            StoreError: the store does not answer.
            InputError: the decision cannot be written down, so nothing may run.
        """
        site = self._site
        try:
            known = self._offers.get((store.uri, plan.digest))
            offer = known or offer_of(plan, get_bytes(store, plan.code), site.name, store.uri)
        except StoreUnavailableError:
            raise
        except FedpipeError as error:
            self._refuse(error, run=plan.run, code=plan.code)
            raise
        if self._current is None or self._current[1].digest != plan.digest:
            self._too_large = 0.0, 0
        self._current = store, plan
        self._offers = {(store.uri, plan.digest): offer}  # it is looked at again and again while it waits
        flaws = objections(site.policy, plan.federation, site.name, examples=examples)
        if plan.federation.name != site.federation:
            flaws = (f"the plan is of the federation {plan.federation.name!r}; this site's is {site.federation!r}",)
        try:
            decided = self._approvals.decide(offer, flaws)
        except FedpipeError as error:
            self._refuse(error, run=plan.run, plan=offer.description.digest)
            raise
        self._note(plan, decided)
        return decided

    def pause(self) -> str:
        """Return why the plan of the last decision does not train at this moment; empty if it does.

        A person at the site may have refused it in the meantime.

        Raises:
            StoreError, InputError: as `decide`.
        """
        if self._current is not None and (decided := self.decide(*self._current)).verdict != "approved":
            return f"the site {decided.shown}"
        now = self._clock()
        since, size = self._too_large
        again = self._excess(size) if now < since + DAY else ""  # it would be too large again
        return pause(self._site.policy, self._journal.usage(), datetime.fromtimestamp(now).astimezone()) or again

    def note(self, event: str, **fields: Any) -> object:
        """Append to the journal what the agent is about to do.

        Raises:
            DroppedError: it sends content beyond the bytes of a day, which must not leave.
            InputError: nothing can be written down, so nothing may be done.
        """
        if event == "sent" and is_large(fields["object"]) and (why := self._excess(int(fields["bytes"]))):
            self._too_large = self._clock(), int(fields["bytes"])
            self._journal.note("refused", object=fields["object"], bytes=fields["bytes"], why=why)
            raise DroppedError(why)
        return self._journal.note(event, **fields)

    def _excess(self, size: int) -> str:
        """Return why so many bytes more cannot leave today; empty if they can."""
        most = self._site.policy.bytes_a_day
        sent = self._journal.usage().bytes + size if most and size else 0
        if not most or sent <= quantity(most):
            return ""
        return f"{sent} bytes would have left in 24 hours; this site's policy allows {most}"

    def show(self, store: Store, decided: Approval) -> None:
        """Show a decision to the coordinator, if it is not the last one. Raises StoreError."""
        if self._shown is None or not _same(self._shown, decided):
            private = self._site.private_key  # by which the federation knows the site
            shown = signed_with(decided, signer_of(private), self._clock) if private else decided
            store.replace(keys.approval(self._site.name), encode(shown))
            self._shown = decided

    def _note(self, plan: Plan, decided: Approval) -> None:
        known = self._known.get(plan.run)
        if known is None or not _same(known, decided):
            self._journal.note(
                decided.verdict, run=plan.run, plan=decided.plan, code=decided.code, why=decided.why or None,
                by=decided.by,
            )  # fmt: skip
            self._known[plan.run] = decided


def shown_decision(store: Store, site: str) -> Approval | None:
    """Return the last decision that a site shows, for people; None without one, or if an enrolled site did not sign it.

    Raises:
        StoreError, CorruptError: it is not known who is enrolled.
    """
    found = usable(Source(store, "_approval", keys.approval(site), "decision"), Approval, learner=site)
    enrolment = read_enrolled(store).learners.get(site)
    if found is None or enrolment is None or is_signed_by(found, enrolment.key):
        return found
    return None


def _same(one: Approval, other: Approval) -> bool:
    return (one.plan, one.verdict, one.why) == (other.plan, other.verdict, other.why)
