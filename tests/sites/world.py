"""Sites under a simulated clock: their agents attend sessions as in tests/simulation.py, with learners of the tests."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator
from typing import Any

from fedpipe.rounds.plan import Plan
from fedpipe.sessions.attendance import Attendance
from fedpipe.sessions.current import Opened, announced
from fedpipe.sites.agent import Agent, Attended
from fedpipe.sites.site import Site
from fedpipe.store import Store
from tests.simulation import Actor, World, answering, coordinator


def site_of(name: str, **more: Any) -> Site:
    return Site(store="memory://tests", federation="tiny", name=name, **more)


def attending(world: World, store: Store, name: str, learner: Any) -> Any:
    """How an agent of the tests attends: each answer takes a second."""

    def attend(plan: Plan, opened: Opened) -> Generator[float, None, Counter[str]]:
        answers = answering(world, store, plan, name, learner, lambda _: 1.0)
        attendance = Attendance(
            store, plan, name, opened.session, answers, last=opened.last, clock=world.clock, random=world.random
        )
        return (yield from attendance.run())

    return attend


def agent(
    world: World, name: str, learner: Any, *, store: Store | None = None, once: bool = True, **more: Any
) -> Generator[float, None, Attended | None]:
    """The agent of a site, which ends after a session."""
    chosen = store or world.store
    made = Agent(site_of(name), chosen, attending(world, chosen, name, learner), clock=world.clock, **more)
    return made.run(once=once)


def announcing(world: World, plan: Plan, *, job: str = "job", **more: Any) -> Actor:
    """A coordinator as its step runs it: its session is announced while it works."""
    opened = Opened(run=plan.run, plan=plan.digest, job=job, since=world.now)
    with announced(world.store, opened):
        return (yield from coordinator(world, plan, session=opened.session, **more))
