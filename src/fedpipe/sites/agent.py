"""The agent of a site: it finds the sessions of its federation, and attends one after the other.

It is a generator that yields seconds to wait, as coordinator and attendance are, so that tests run it by a simulated
clock. It does not compute: the function that attends a session does, in another process (`fedpipe.sites.training`).
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections import Counter
from collections.abc import Callable, Generator
from typing import Any, Literal, NamedTuple, Protocol

from fedpipe.errors import FedpipeError, RoundError, StoreUnavailableError
from fedpipe.rounds.plan import Plan, read_plan
from fedpipe.rounds.protocol import check_spoken
from fedpipe.sessions.current import Opened, poll_current
from fedpipe.sessions.presence import RENEWED, Presence, State, put_presence
from fedpipe.sessions.pulse import GONE, silence
from fedpipe.sites.site import Site
from fedpipe.store import Store

log = logging.getLogger("fedpipe")

_EAGER = 60.0
"""Seconds after a session in which the next one is awaited with shorter looks: a run may have several."""
_AGAIN = 60.0
"""Seconds after a failure at the site until it returns to the session."""
_SILENT: dict[State, str] = {"idle": "awaits a session", "ended": "has ended"}
"""The words of the log for states that are shown without a text."""
_NEXT: dict[State, str] = {"waits": ". Look at it with `fedpipe site pending`"}
Attend = Callable[[Plan, Opened], Generator[float, None, Counter[str]]]
"""Attends a session to its end, and returns how often the site took part in each phase."""


class Decision(NamedTuple):
    """The decision on a plan: it runs when `approved`; else it `waits`, `pauses` or is `refused`; and the reason."""

    verdict: Literal["approved", "waits", "pauses", "refused"]
    why: str = ""


class Decide(Protocol):
    """Decides whether a plan may run at the site, before any data are opened. It is asked again at each look."""

    def __call__(self, plan: Plan, opened: Opened, /) -> Decision:
        """Return the decision on a plan. Raises FedpipeError where none can be made."""


class Note(Protocol):
    """Keeps an account of everything that the agent does."""

    def __call__(self, event: str, **fields: Any) -> object:
        """Keep an event with its fields. Raises InputError where nothing can be kept: nothing is done then."""


def approve_any(plan: Plan, opened: Opened, /) -> Decision:
    """Approve every plan."""
    return Decision("approved")


def keep_nothing(event: str, **fields: Any) -> None:
    """Keep no account."""


class Attended(NamedTuple):
    """A session that the site has attended: how often it took part in each phase, and why it left early."""

    opened: Opened
    took_part: Counter[str]
    why: str = ""


class _Left(NamedTuple):
    """When a session was left that has not ended, and why; `silent`: nobody coordinated it."""

    at: float
    why: str
    silent: bool


class Agent:
    """Attends the sessions of a federation as one of its sites.

    Args:
        site: its file.
        store: the federation's store.
        attend: attends a session.
        decide: decides on plans.
        note: keeps the account of the site.
        read: reads a plan by its digest.
        stops: whether the agent was asked to end; it finishes the answer that it is working on.
        show: takes each new state, for people at the site.
        clock: seconds of this process; no other clock is compared with them.
    """

    def __init__(
        self, site: Site, store: Store, attend: Attend, *, decide: Decide = approve_any, note: Note = keep_nothing,
        read: Callable[[Store, str], Plan] = read_plan, stops: Callable[[], bool] = lambda: False,
        show: Callable[[State, str], None] = lambda *_: None, clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self._site, self._store, self._attend = site, store, attend
        self._decide, self._note, self._stops, self._show, self._clock = decide, note, stops, show, clock
        self._read_plan = read
        self._sessions: tuple[Opened, ...] = ()
        self._version = ""
        self._ended: set[Opened] = set()
        self._left: dict[Opened, _Left] = {}
        self._plans: dict[Opened, Plan] = {}
        self._state: tuple[State, str] = ("idle", "")
        self._is_away = False  # the store did not answer the last request
        self._since = self._written = self._attended_at = float("-inf")

    def run(self, *, once: bool = False) -> Generator[float, None, Attended | None]:
        """Attend sessions until asked to end; yield seconds to wait.

        Args:
            once: end after one session, the current or the next one.

        Returns:
            The last session that was attended; None without one.
        """
        last: Attended | None = None
        self._enter("idle", "")
        while not self._stops():
            opened = self._looked()
            if once and last is not None and self._is_over(last.opened):
                break
            if opened is not None and (plan := self._plans.get(opened)) is not None:
                last = yield from self._attended(opened, plan)
            yield self._site.look if self._clock() - self._attended_at > _EAGER else 1.0
        self._enter("ended", "")
        return last

    def _is_over(self, opened: Opened) -> bool:
        """Return whether a session that was attended has ended, or nobody coordinates it any more."""
        left = self._left.get(opened)
        return opened in self._ended or opened not in self._sessions or (left is not None and left.silent)

    def _looked(self) -> Opened | None:
        """Look once at the store, and return a session to attend; None without one, or if the store does not answer."""
        try:
            renewed = self._renews()
            self._is_away = False
            if renewed:
                return None
            self._read()
            return self._chosen()
        except StoreUnavailableError as error:
            self._is_away = True
            self._show("fails", f"cannot reach the store: {error.what}")
            log.warning("the store does not answer; trying again: %s", error)
        except (FedpipeError, OSError) as error:
            log.warning("the site cannot continue: %s", error)
            self._enter("fails", f"cannot continue: {_reason_of(error)}")
        return None

    def _renews(self) -> bool:
        """Renew the presence in the place of a look when it is due, so that an idle site makes one request a look."""
        due = self._clock() - self._written >= RENEWED and self._state[0] == "idle"
        if due:
            self._write()
        return due

    def _read(self) -> None:
        """Read which sessions are current, or the pulse of one that nobody coordinated."""
        now = self._clock()
        silent = next((one for one, left in self._left.items() if left.silent and now - left.at >= GONE), None)
        if silent is not None:
            heard = silence(self._store, silent.run, silent.session)
            left = self._left.pop(silent)
            if heard is None or heard > GONE:
                self._left[silent] = left._replace(at=now)
            return
        moved = poll_current(self._store, self._version)
        if moved is None:
            return
        self._sessions, self._version = moved
        self._ended &= set(self._sessions)
        for known in (self._left, self._plans):
            for one in [one for one in known if one not in self._sessions]:
                del known[one]

    def _chosen(self) -> Opened | None:
        """Return the first session that runs here: a plan of this site, approved, that has not ended."""
        state: tuple[State, str] = ("idle", "")
        for opened in self._sessions:
            if opened in self._ended:
                continue
            left = self._left.get(opened)
            if left is not None and (left.silent or self._clock() - left.at < _AGAIN):
                state = ("fails", left.why)
                continue
            try:
                plan = self._plan(opened)
                decision = self._decide(plan, opened) if plan is not None else None
            except StoreUnavailableError:
                raise
            except (FedpipeError, OSError) as error:
                log.warning("the site cannot take part in run %s: %s", opened.run, error)
                state = ("fails", f"cannot take part in run {opened.run}: {_reason_of(error)}")
                continue
            if decision is None:
                self._ended.add(opened)
            elif decision.verdict == "approved":
                return opened
            else:
                state = _state_of(decision, opened)
        self._enter(*state)
        return None

    def _plan(self, opened: Opened) -> Plan | None:
        """Return the plan of a session; None where it is not for this site."""
        if opened not in self._plans:
            plan = self._read_plan(self._store, opened.plan)
            named = (plan.run, plan.federation.name) == (opened.run, self._site.federation)
            if not named or self._site.name not in plan.federation.sites:
                log.info("run %s has no part for this site", opened.run)
                return None
            check_spoken(plan.format, self._site.name)
            self._plans[opened] = plan
        return self._plans[opened]

    def _attended(self, opened: Opened, plan: Plan) -> Generator[float, None, Attended]:
        """Attend a session, until it has ended, fails, or the agent is asked to end."""
        took_part: Counter[str] = Counter()
        why = ""
        try:
            self._left.pop(opened, None)
            self._note("attends", run=opened.run, session=opened.session, plan=opened.plan, code=plan.code)
            self._enter("attends", f"attends run {opened.run}")
            attending = self._attend(plan, opened)
            while True:
                if self._stops():
                    attending.close()
                    why = "the agent was asked to end"
                    break
                try:
                    seconds = next(attending)
                except StopIteration as end:
                    took_part = end.value
                    self._ended.add(opened)
                    break
                yield seconds
        except StoreUnavailableError as error:
            why = str(error)
            log.warning("the store does not answer; the site will return to run %s: %s", opened.run, error)
        except (FedpipeError, OSError) as error:
            why = f"left run {opened.run}: {_reason_of(error)}"
            log.warning("the site left run %s: %s", opened.run, error)
            self._left[opened] = _Left(self._clock(), why, isinstance(error, RoundError))
        self._attended_at = self._clock()
        try:
            self._note("left", run=opened.run, session=opened.session, took_part=dict(took_part), why=why)
        except (FedpipeError, OSError) as error:
            log.warning("the site's account of run %s is incomplete: %s", opened.run, error)
        return Attended(opened, took_part, why)

    def _enter(self, state: State, text: str) -> None:
        """Change the state, and say so in the store and at the site."""
        if (state, text) == self._state and self._written > float("-inf"):
            return
        self._state, self._since = (state, text), self._clock()
        log.info("%s %s%s", self._site.name, text or _SILENT[state], _NEXT.get(state, ""))
        self._show(state, text)
        if state == "fails":
            with contextlib.suppress(FedpipeError, OSError):  # this may be the failure
                self._note("failed", why=text)
        if state == "ended" and self._is_away:
            return  # to wait for an answer would delay the end
        try:
            self._write()
        except FedpipeError as error:
            self._is_away = isinstance(error, StoreUnavailableError)
            log.warning("the site cannot leave its presence in the store: %s", error)

    def _write(self) -> None:
        state, text = self._state
        now = self._clock()
        self._written = now
        seconds = max(0.0, now - self._since)
        put_presence(self._store, Presence(learner=self._site.name, state=state, text=text[:500], seconds=seconds))


def _reason_of(error: FedpipeError | OSError) -> str:
    """Return the reason of an error for the operator of the federation: without paths of the site."""
    return error.what if isinstance(error, FedpipeError) else error.strerror or type(error).__name__


_WORDS: dict[str, tuple[State, str]] = {
    "waits": ("waits", "waits for approval of the plan of"),
    "pauses": ("waits", "does not train now for"),
    "refused": ("refuses", "refuses the plan of"),
}


def _state_of(decision: Decision, opened: Opened) -> tuple[State, str]:
    """Return the state of an agent whose site does not run a plan, and its text."""
    state, words = _WORDS[decision.verdict]
    return state, f"{words} run {opened.run}{f': {decision.why}' if decision.why else ''}"
