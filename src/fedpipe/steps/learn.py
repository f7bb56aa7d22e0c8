"""A learner's part of a session: it trains and votes whenever the board asks, until the session has ended."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable

from msgspec import Struct

from fedpipe.learners.contribute import contribute
from fedpipe.learners.learner import Learner
from fedpipe.learners.vote import vote
from fedpipe.rounds.history import read_record
from fedpipe.rounds.manifests import Ballot, Dropped, Update
from fedpipe.rounds.plan import Plan, RunPlace, read_plan
from fedpipe.rounds.roll import Roll
from fedpipe.rounds.timings import Timing, note
from fedpipe.sessions.attendance import Attendance, at_once
from fedpipe.sessions.board import Board
from fedpipe.sessions.pacing import drive
from fedpipe.steps.contract import Hands, Metrics
from fedpipe.store import Store, keys


class Inputs(Struct, frozen=True, kw_only=True):
    """Who learns in which session: rounds [first, last] of the run, to its end when last is 0, of this KFP job."""

    place: RunPlace
    learner: str
    first: int = 1
    last: int = 0
    job: str = ""


class Outputs(Struct, frozen=True, kw_only=True):
    """How often the learner trained and voted."""

    trained: int
    voted: int
    metrics: Metrics


def find(inputs: Inputs) -> Outputs | None:
    """Nothing is left to do when the session's last round is committed."""
    store = inputs.place.open()
    last = inputs.last or read_plan(store, inputs.place.plan).federation.training.rounds
    return _outputs(0, 0) if read_record(store, inputs.place.run, last) else None


def run(inputs: Inputs, hands: Hands) -> Outputs:
    """Attends the session. A learner that cannot train or vote is dropped from the round and stays."""
    return attend(inputs, hands, perform)


def attend(inputs: Inputs, hands: Hands, work: Callable[[Inputs, Board], bool]) -> Outputs:
    """Attends the session; the work that the board asks for is done where the hands say."""
    store = inputs.place.open()
    plan = read_plan(store, inputs.place.plan)

    def answer(board: Board) -> bool:
        return bool(hands.call(work, inputs, board))

    session = f"{inputs.job}-{inputs.first}"
    attendance = Attendance(store, plan, inputs.learner, session, at_once(answer), last=inputs.last)
    return _outputs(*drive(attendance.run(), hands.sleep))


def perform(inputs: Inputs, board: Board) -> bool:
    """Trains or votes with Keras, as the board asks. Says whether the learner took part."""

    def make(store: Store, plan: Plan, label: str, folder: str) -> Learner:
        from fedpipe.learners.keras.learner import make_keras_learner

        return make_keras_learner(store, plan, inputs.learner, label, folder, place=inputs.place)

    return act(inputs, board, make)


def act(inputs: Inputs, board: Board, make: Callable[[Store, Plan, str, str], Learner]) -> bool:
    """Does what the board asks with a learner that is made when there is work to do. Says whether it took part."""
    store, plan = opened(inputs.place)
    name, number, roll = inputs.learner, board.round, Roll((), attempt=board.attempt)

    def learner() -> Learner:
        return make(store, plan, f"round {number} {name}", keys.events(plan.run, number, name))

    started, clock = time.time(), time.monotonic()
    done: Update | Ballot | Dropped
    if board.phase == "train":
        left = plan.federation.quorum.deadline - (store.age(keys.board(plan.run)) or 0.0)
        done = contribute(store, plan, name, number, board.base, learner, roll=roll, seconds=left)
    else:
        done = vote(store, plan, name, number, board.base, board.candidate, board.owner, learner, roll=roll)
    seconds = time.monotonic() - clock
    note(store, plan.run, Timing(step=board.phase, learner=name, round=number, started=started, seconds=seconds))
    return not isinstance(done, Dropped)


@functools.lru_cache(maxsize=4)
def opened(place: RunPlace) -> tuple[Store, Plan]:
    """The store and the plan, opened once in a process."""
    store = place.open()
    return store, read_plan(store, place.plan)


def _outputs(trained: int, voted: int) -> Outputs:
    return Outputs(trained=trained, voted=voted, metrics=Metrics(metadata={"trained": trained, "voted": voted}))
