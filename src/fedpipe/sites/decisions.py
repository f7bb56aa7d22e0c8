"""Decides which plans run at a site, and writes each decision down before anything else happens.

No data are opened here, and no code is imported: the policy and the approvals judge a plan by its
content.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from fedpipe.errors import FedpipeError
from fedpipe.identity.signing import Signer, signer_of
from fedpipe.rounds.plan import Plan
from fedpipe.sites.approval import Approval, Approvals, offer_of
from fedpipe.sites.journal import Journal
from fedpipe.sites.policy import objections, pause
from fedpipe.sites.site import Site
from fedpipe.store import Store, keys
from fedpipe.store.objects import encode, get_bytes


def journal_of(site: Site, *, clock: Callable[[], float] = time.time) -> Journal:
    """Open the journal of a site. Raises InputError and CorruptError as `Journal`."""
    return Journal(journal_folder(site), _signer(site), clock=clock)


def journal_folder(site: Site) -> Path:
    """Return the folder of a site's journal."""
    return Path(site.state, "journal")


def approvals_of(site: Site, *, clock: Callable[[], float] = time.time) -> Approvals:
    """Open the approvals of a site. Raises InputError."""
    return Approvals(Path(site.state, "approvals"), site.approving, _signer(site), site.public_key, clock=clock)


def _signer(site: Site) -> Signer | None:
    private = site.private_key
    return signer_of(private) if private else None


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
        self._read: tuple[str, bytes] | None = None

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
            code = self._code(store, plan.code)
            offer = offer_of(plan, code, site.name, store.uri)
        except FedpipeError as error:
            self._journal.note("refused", run=plan.run, code=plan.code, why=error.what)
            raise
        flaws = objections(site.policy, plan.federation, site.name, examples=examples)
        if plan.federation.name != site.federation:
            flaws = (f"the plan is of the federation {plan.federation.name!r}; this site's is {site.federation!r}",)
        decided = self._approvals.decide(offer, flaws)
        self._note(plan, decided)
        return decided

    def _code(self, store: Store, digest: str) -> bytes:
        """Return the code of a plan, which is read once while the plan waits."""
        if self._read is None or self._read[0] != digest:
            self._read = digest, get_bytes(store, digest)
        return self._read[1]

    def pause(self) -> str:
        """Return why the policy does not allow training at this moment; empty if it does."""
        now = datetime.fromtimestamp(self._clock()).astimezone()
        return pause(self._site.policy, self._journal.usage(), now)

    def show(self, store: Store, decided: Approval) -> None:
        """Show a decision to the coordinator, if it is not the last one. Raises StoreError."""
        if self._shown is None or not _same(self._shown, decided):
            store.replace(keys.approval(self._site.name), encode(decided))
            self._shown = decided

    def _note(self, plan: Plan, decided: Approval) -> None:
        known = self._known.get(plan.run)
        if known is None or not _same(known, decided):
            self._journal.note(
                decided.verdict, run=plan.run, plan=decided.plan, code=decided.code, why=decided.why or None,
                by=decided.by,
            )  # fmt: skip
            self._known[plan.run] = decided


def _same(one: Approval, other: Approval) -> bool:
    return (one.plan, one.verdict, one.why) == (other.plan, other.verdict, other.why)
