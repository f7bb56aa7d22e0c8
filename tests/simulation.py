"""Sessions under a simulated clock: coordinator and learners take turns in one thread, and time costs nothing."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Generator
from functools import partial
from random import Random
from typing import Any

from fedpipe.learners.contribute import contribute
from fedpipe.learners.vote import vote
from fedpipe.rounds.evaluation import Score
from fedpipe.rounds.manifests import Dropped, Record
from fedpipe.rounds.plan import Plan
from fedpipe.rounds.roll import Roll
from fedpipe.sessions.attendance import Answering, Attendance
from fedpipe.sessions.board import Board
from fedpipe.sessions.coordinator import Coordinator, Moment
from fedpipe.sessions.phases import Script
from fedpipe.sessions.scripts import scoring, script_of
from fedpipe.store import MemoryStore, Store, keys
from fedpipe.store.objects import encode

Actor = Generator[float, None, Any]


Scripts = Callable[[Store, Plan], Callable[[Record], Script]]
"""Gives the scripts of a run."""
Answering = Callable[["World", Store, Plan, str, Any, Callable[[Board], float]], dict[str, Answering]]
"""Gives a learner's answers."""


class Killed(BaseException):
    """Stands for the end of a process."""


class World:
    """Actors that yield how long they wait, in the order of time.

    Args:
        seed: of all chance, such as the jitter of looks.
    """

    def __init__(self, seed: int = 0) -> None:
        self.now, self.random = 0.0, Random(seed)
        self.results: dict[str, Any] = {}
        self.kills = 0
        self._order = itertools.count()
        self._queue: list[tuple[float, int, str, Actor, Callable[[], Actor] | None]] = []
        self.store = MemoryStore(clock=lambda: self.now)

    def clock(self) -> float:
        return self.now

    def spawn(self, name: str, actor: Actor, *, after: float = 0.0, again: Callable[[], Actor] | None = None) -> None:
        """Starts an actor; `again` makes a new one when it was killed."""
        heapq.heappush(self._queue, (self.now + after, next(self._order), name, actor, again))

    def drop(self, name: str) -> None:
        """Ends an actor, as a process that is killed."""
        self._queue = [entry for entry in self._queue if entry[2] != name]
        heapq.heapify(self._queue)

    def run(self, limit: float = 1_000_000.0) -> None:
        """Until all actors have ended, but for those that sleep beyond the limit: these are as good as dead.

        `results` has the value or the error of each actor.
        """
        while self._queue and self._queue[0][0] < limit:
            self.now, _, name, actor, again = heapq.heappop(self._queue)
            try:
                seconds = next(actor)
            except StopIteration as end:
                self.results[name] = end.value
            except Killed:
                self.kills += 1
                if again:
                    self.spawn(name, again(), after=self.random.uniform(0.5, 40), again=again)
            except Exception as error:
                self.results[name] = error
            else:
                heapq.heappush(self._queue, (self.now + seconds, next(self._order), name, actor, again))


def answering(
    world: World, store: Store, plan: Plan, name: str, learner: Any, seconds: Callable[[Board], float]
) -> dict[str, Answering]:
    """How a learner answers the phases: it takes so long, and uses a learner that needs no framework."""

    def answer(board: Board) -> Generator[float, None, bool]:
        yield seconds(board)
        if board.phase == "score":
            score = Score(learner=name, weights=board.base, examples=1, settings=plan.measuring)
            store.replace(keys.score(name, plan.run), encode(score))
            return True
        roll, number = Roll((), attempt=board.attempt), board.round
        if board.phase != "vote":
            left = plan.federation.quorum.deadline - (store.age(keys.board(plan.run)) or 0.0)
            done: Any = contribute(store, plan, name, number, board.base, lambda: learner, roll=roll, seconds=left)
        else:
            done = vote(store, plan, name, number, board.base, board.candidate, board.owner, lambda: learner, roll=roll)
        return not isinstance(done, Dropped)

    return dict.fromkeys(("train", "propose", "vote", "score"), answer)


def coordinator(
    world: World, plan: Plan, *, store: Store | None = None, session: str = "s", last: int = 0,
    listener: Callable[[Moment], None] = lambda _: None, scripts: Scripts = script_of, tests: bool = False,
) -> Actor:  # fmt: skip
    """A coordinator, which asks for tests of the last model if it is the last one of its run."""
    chosen = store or world.store
    return Coordinator(
        chosen, plan, session, last=last, clock=world.clock, random=world.random, listener=listener,
        script=None if scripts is script_of else scripts(chosen, plan), final=partial(scoring, chosen, plan) if tests else None,
    ).run()  # fmt: skip


def attendance(
    world: World, plan: Plan, name: str, learner: Any, *, store: Store | None = None, session: str = "s", last: int = 0,
    seconds: Callable[[Board], float] = lambda _: 1.0, answering: Answering = answering,
) -> Actor:  # fmt: skip
    chosen = store or world.store
    answers = answering(world, chosen, plan, name, learner, seconds)
    return Attendance(chosen, plan, name, session, answers, last=last, clock=world.clock, random=world.random).run()
