"""The work of a site's own commands: its agent, its status, and its end."""

from __future__ import annotations

import contextlib
import logging
import time
from functools import partial
from pathlib import Path
from typing import NamedTuple

import msgspec

from fedpipe.errors import CorruptError, FedpipeError, InputError, RoundError, StoreError, StoreUnavailableError
from fedpipe.identity.enrolment import format_time, read_enrolled
from fedpipe.rounds.plan import Plan
from fedpipe.sessions.current import Opened, poll_current
from fedpipe.sessions.pacing import drive
from fedpipe.sites.account import accounted
from fedpipe.sites.agent import Agent, Attended, Decision
from fedpipe.sites.decisions import Decisions, journal_of
from fedpipe.sites.membership import keys_of
from fedpipe.sites.renewal import KeyWatch
from fedpipe.sites.rows import prepared
from fedpipe.sites.running import Control, ask_to_end, is_running, last_state, only_one
from fedpipe.sites.site import Site, read_site
from fedpipe.sites.training import Trainer, scratch
from fedpipe.store import Store, is_uri, open_store
from fedpipe.store.concealment import changed_environment
from fedpipe.store.multipart import UPLOADS
from fedpipe.version import __version__

log = logging.getLogger("fedpipe")

_START = 8.0
"""Seconds that the first request may take before the agent starts without an answer."""


class Status(NamedTuple):
    """The state of a site.

    Args:
        site: its name.
        federation: the federation's name.
        store: URI of the store.
        key: public part of its signing key; empty without one.
        enrolled: whether the federation knows that key; None when the store did not say.
        running: whether its agent runs on this machine.
        state: what the agent does, or did last: `idle`, `attends`, `waits`, `refuses`, `fails` or `ended`.
        doing: the same in words.
        seconds: how long that has lasted.
        isolation: whether the process that trains is kept from `files` with keys and from the `network`; None before
            the first training.
        flaws: all that keeps the site from taking part, each with its remedy.
    """

    site: str
    federation: str
    store: str
    key: str
    enrolled: bool | None
    running: bool
    state: str
    doing: str
    seconds: float
    isolation: dict[str, bool] | None
    flaws: tuple[str, ...]


def run(file: str | Path, *, once: bool = False) -> Attended | None:
    """Attend the sessions of a federation as a site, until asked to end.

    Args:
        file: its site.yaml.
        once: end after one session, the current or the next one.

    Returns:
        The last session that was attended; None without one.

    Raises:
        InputError: the file, or something that it names, cannot be used; or another agent runs.
        StoreError: the store, or a proxy on the way, refuses the first request.
        RoundError: with `once`, the session was left before its end.
    """
    site = read_site(file)
    _check_ready(site, str(file))
    with only_one(site) as control, control.signals():
        last, again = _attended(site, control, once, first=True)
        while again:
            last, again = _attended(read_site(file), control, once)
    if once and last is not None and last.why:
        raise RoundError(f"the session of run {last.opened.run} was left: {last.why}")
    return last


def _attended(site: Site, control: Control, once: bool, *, first: bool = False) -> tuple[Attended | None, bool]:
    """Let the agent attend sessions, and return the last one, and whether it must begin again with new keys."""
    journal = journal_of(site)
    watch = KeyWatch(site, journal.note)
    renewed = False

    def stops() -> bool:
        nonlocal renewed
        renewed = renewed or watch.changed(idle=control.is_idle)
        return control.stops() or renewed

    uploads = Path(site.state) / "uploads"
    with contextlib.suppress(OSError):  # uploads are not resumed then
        uploads.mkdir(mode=0o700, exist_ok=True)  # before the process that trains starts, which may not open it
    with changed_environment({**site.surroundings(), UPLOADS: str(uploads)}):
        if first:
            _check_store(site)
        decisions = Decisions(site, journal)
        store = accounted(site.open(), decisions.note, site.name)
        trainer = Trainer(site, store, note=decisions.note, pause=decisions.pause, show=control.show_isolation)
        agent = Agent(
            site, store, trainer.attend, decide=partial(_decided, store, decisions), note=journal.note,
            read=decisions.read, stops=stops, show=control.show,
        )  # fmt: skip
        journal.note("started", version=__version__)
        last = drive(agent.run(once=once), control.sleep)
        journal.note("stopped")
    return last, renewed and not control.stops() and not (once and last is not None and not last.why)


def _check_ready(site: Site, where: str) -> None:
    """Check what the agent needs from its start: the name by which the site has joined, and data that fit the policy.

    Raises:
        InputError: one of them is missing, or does not fit.
    """
    joined = keys_of(site).membership
    if joined is not None and (joined.federation, joined.learner) != (site.federation, site.name):
        what = f"the site has joined {joined.federation} as {joined.learner}, not {site.federation} as {site.name}"
        raise InputError(what, where=where, remedy="Correct federation and name, or give this site a state of its own.")
    data = site.policy.data
    if not data:
        remedy = "Name the site's own data there, or a URI for `load` of the model's file."
        raise InputError("is missing", where=f"{where}: policy.data", remedy=remedy)
    if not is_uri(data) and not set("*?[") & set(data) and not Path(data).exists():  # `load` may take a pattern
        what = f"there is no file or folder {data}"
        raise InputError(what, where=f"{where}: policy.data", remedy="Check the path.")
    with scratch(site) as folder:
        prepared(site.policy, Path(folder))


def _check_store(site: Site) -> None:
    """Check that neither the store nor a proxy refuses the site; one that does not answer is awaited later.

    Raises:
        StoreError: it refuses.
    """
    try:
        poll_current(open_store(site.store, deadline=_START).below(site.federation))
    except StoreUnavailableError as error:
        log.warning("the store does not answer; the agent keeps trying: %s", error)
    except CorruptError:
        pass  # the next coordinator writes the list again


def _decided(store: Store, decisions: Decisions, plan: Plan, _: Opened) -> Decision:
    """Decide about a plan by the site's policy and approvals, and show the decision to the coordinator."""
    approval = decisions.decide(store, plan)
    try:
        decisions.show(store, approval)
    except StoreError as error:
        log.warning("the site cannot show its decision in the store: %s", error)
    if approval.verdict != "approved":
        return Decision(approval.verdict, approval.why)
    why = decisions.pause()
    return Decision("pauses", why) if why else Decision("approved")


def stop(file: str | Path, *, wait: float = 3600.0) -> bool:
    """Ask the agent of a site to end after the answer that it works on, and wait for it.

    Args:
        file: its site.yaml.
        wait: seconds that it may take.

    Returns:
        Whether no agent runs any more.

    Raises:
        InputError: the file, or something that it names, cannot be used.
    """
    return ask_to_end(read_site(file), wait=wait)


def status(file: str | Path) -> Status:
    """Look whether a site can take part, and what its agent does. Writes nothing to the store.

    Args:
        file: its site.yaml.

    Raises:
        InputError: the file, or something that it names, cannot be used.
    """
    site = read_site(file)
    flaws: list[str] = []
    enrolled = None
    if not site.public_key:
        flaws.append(f"the site has no signing key in {site.key}. Join with `fedpipe site join`")
    try:
        with changed_environment(site.surroundings()):
            enrolment = read_enrolled(site.open()).learners.get(site.name)
    except FedpipeError as error:
        flaws.append(str(error))
    else:
        enrolled = enrolment is not None and enrolment.revoked is None and enrolment.key == site.public_key
        if enrolment is not None and enrolment.revoked is not None:
            flaws.append(f"{site.name} was revoked on {format_time(enrolment.revoked)}. Ask the federation's operator")
        elif enrolment is not None and not enrolled:
            flaws.append(f"{site.name} is enrolled with another key. Ask the federation's operator")
    running, last = is_running(site), last_state(site)
    if not running:
        flaws.append("its agent does not run. Start it: fedpipe site run")
    elif last is not None and last.state in ("waits", "refuses", "fails"):
        flaws.append(f"the site {last.text}")
    return Status(
        site=site.name, federation=site.federation, store=site.store, key=site.public_key, enrolled=enrolled,
        running=running, state=last.state if last else "", doing=last.text if last else "",
        seconds=max(0.0, time.time() - last.since) if last else 0.0,
        isolation=msgspec.to_builtins(last.isolation) if last else None,
        flaws=tuple(flaws),
    )  # fmt: skip
