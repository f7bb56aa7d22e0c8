"""1000 learners in one session under a simulated clock: rounds an hour against dropout, and requests to the store.

    python -m benchmarks.session_scale

Trainings take a lognormal time with a median of 60 s; with the given probability a learner dies in a round and comes
back after five minutes on average. The coordinator and the learners are the real ones; only time is not.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Generator
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table
from tests.faults.stores import HookedStore
from tests.federations import PlusOneLearner, fresh, make_federation, make_plan
from tests.simulation import Killed, World, answering

from fedpipe.rounds.beginning import begin
from fedpipe.rounds.history import history
from fedpipe.sessions.attendance import Attendance
from fedpipe.sessions.board import Board
from fedpipe.sessions.coordinator import Coordinator, Moment

DEADLINE = 300.0


class Scale(NamedTuple):
    """The measurements of a simulated session, as means over its rounds."""

    learners: int
    asked: str
    dropout: float
    rounds_an_hour: float
    updates: float
    requests_of_coordinator: float
    requests_of_a_learner: float
    requests_a_second: float


def simulate(count: int, dropout: float, rounds: int, *, wanted: int = 0, seed: int = 0) -> Scale:
    """A session of `count` learners.

    Args:
        count: learners.
        dropout: probability that a learner dies in a round that asks it.
        rounds: of the session.
        wanted: learners per round, with 1.3 times as many asked; 0: all.
        seed: of everything.
    """
    world, requests = World(seed), Counter[str]()
    names = tuple(f"k{number:04}" for number in range(count))
    quorum: dict[str, Any] = {"deadline": DEADLINE, "min_learners": (wanted or count) // 4}
    if wanted:
        quorum |= {"learners_per_round": wanted, "over_selection": 1.3}
    plan = make_plan(make_federation(names, training={"rounds": rounds, "batch_size": 1}, quorum=quorum))
    begin(world.store, plan, fresh)
    closed: list[float] = []

    def counted(who: str) -> Any:
        def count_one(_number: int, _name: str, _key: str) -> None:
            requests[who] += 1

        return HookedStore(world.store, count_one)

    def listen(moment: Moment) -> None:
        if moment.what == "closed":
            closed.append(world.now)

    def learner(name: str) -> Generator[float, None, Any]:
        store = counted("learner")
        work = answering(world, store, plan, name, PlusOneLearner(1.0), lambda _: world.random.lognormvariate(4.1, 0.4))

        def answer(board: Board) -> Generator[float, None, bool]:
            if world.random.random() < dropout:
                yield world.random.expovariate(1 / 300)
                raise Killed
            return (yield from work[board.phase](board))

        attendance = Attendance(store, plan, name, "s", {"train": answer}, clock=world.clock, random=world.random)
        return (yield from attendance.run())

    world.spawn(
        "coordinator",
        Coordinator(counted("coordinator"), plan, "s", clock=world.clock, listener=listen, random=world.random).run(),
    )
    for name in names:
        world.spawn(name, learner(name), after=world.random.uniform(0, 30), again=lambda name=name: learner(name))  # type: ignore[misc]
    world.run()
    if isinstance(world.results["coordinator"], Exception):
        raise world.results["coordinator"]
    records, hours = history(world.store, plan.run)[1:], closed[-1] / 3600
    return Scale(
        count,
        f"{wanted} of them" if wanted else "all",
        dropout,
        round(len(records) / hours, 1),
        round(sum(len(record.updates) for record in records) / len(records), 1),
        round(requests["coordinator"] / len(records), 0),
        round(requests["learner"] / len(records) / count, 1),
        round(sum(requests.values()) / closed[-1], 1),
    )


def main() -> None:
    """The table of docs/sessions.md."""
    table = Table(*(name.replace("_", " ") for name in Scale._fields))
    for count, dropout, wanted in (
        (10, 0.0, 0), (100, 0.0, 0), (1000, 0.0, 0), (1000, 0.05, 0), (1000, 0.2, 0), (1000, 0.4, 0),
        (1000, 0.0, 100), (1000, 0.2, 100), (1000, 0.4, 100),
    ):  # fmt: skip
        scale = simulate(count, dropout, 20 if count < 1000 else 8, wanted=wanted)
        print(json.dumps(scale._asdict()), flush=True)
        table.add_row(*map(str, scale))
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
