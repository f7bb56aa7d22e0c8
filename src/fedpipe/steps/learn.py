"""Attend a session as a learner: train and vote whenever the board asks, until the session has ended."""

from __future__ import annotations

import contextlib
import functools
import logging
import time
from collections.abc import Callable
from functools import partial

from msgspec import Struct

from fedpipe.data.statistics import Report
from fedpipe.errors import FedpipeError, WorkerDiedError
from fedpipe.learners.assembly import make_learner
from fedpipe.learners.contribute import contribute
from fedpipe.learners.describe import describe
from fedpipe.learners.user_code import load_code
from fedpipe.learners.vote import vote
from fedpipe.rounds.history import read_record
from fedpipe.rounds.manifests import Ballot, Dropped, Update
from fedpipe.rounds.plan import Plan, RunPlace, read_plan
from fedpipe.rounds.roll import Roll, drop
from fedpipe.rounds.timings import Timing, note
from fedpipe.sessions.attendance import Attendance, at_once
from fedpipe.sessions.board import Board, Sign, poll_board, put_sign
from fedpipe.sessions.pacing import drive
from fedpipe.sessions.pulse import continues
from fedpipe.steps.contract import Hands, MetricsArtifact
from fedpipe.store import Store, keys
from fedpipe.store.objects import get_bytes

log = logging.getLogger("fedpipe")


class Inputs(Struct, frozen=True, kw_only=True):
    """The learner and its session: rounds [first, last] of the run, to its end when last is 0, of this KFP job."""

    place: RunPlace
    learner: str
    first: int = 1
    last: int = 0
    job: str = ""


class Outputs(Struct, frozen=True, kw_only=True):
    """The numbers of the learner's trainings and votes."""

    trained: int
    voted: int
    metrics: MetricsArtifact


def find(inputs: Inputs) -> Outputs | None:
    """Return the outputs when the session's last round is committed."""
    store = inputs.place.open()
    last = inputs.last or read_plan(store, inputs.place.plan).federation.training.rounds
    return _outputs(store, inputs) if read_record(store, inputs.place.run, last) else None


def run(inputs: Inputs, hands: Hands) -> Outputs:
    """Attend the session. A learner that cannot train or vote is dropped from the round and stays."""
    store = inputs.place.open()
    plan = read_plan(store, inputs.place.plan)

    def answer(board: Board) -> bool:
        try:
            return bool(hands.call(act, inputs, board))
        except WorkerDiedError:
            log.warning("round %d: %s works in a new process: the last one was killed", board.round, inputs.learner)
            try:
                return bool(hands.call(act, inputs, board))
            except WorkerDiedError as error:
                return _leave(store, inputs, board, str(error))

    answers = dict.fromkeys(ANSWERS, at_once(answer))
    attendance = Attendance(store, plan, inputs.learner, _session(inputs), answers, last=inputs.last)
    took_part = drive(attendance.run(), hands.sleep)
    return _outputs(store, inputs, took_part["train"] + took_part["propose"], took_part["vote"])


def give_up(inputs: Inputs, why: str) -> Outputs | None:
    """Leave the session for good, so that its round does not wait; None when the session does not continue."""
    store = inputs.place.open()
    last = inputs.last or read_plan(store, inputs.place.plan).federation.training.rounds
    if not continues(store, inputs.place.run, _session(inputs), last):
        return None
    board, _ = poll_board(store, inputs.place.run) or (None, "")
    if board is not None and board.session == _session(inputs) and inputs.learner in board.asked:
        _leave(store, inputs, board, why)
        sign = Sign(round=board.round, attempt=board.attempt, phase=board.phase, session=board.session)
        put_sign(store, inputs.learner, inputs.place.run, sign)
    return _outputs(store, inputs)


def _session(inputs: Inputs) -> str:
    return f"{inputs.job}-{inputs.first}"


def _leave(store: Store, inputs: Inputs, board: Board, why: str) -> bool:
    """Leave the reason why the learner does not answer the phase: its process ends whenever it computes."""
    name = Roll((), attempt=board.attempt).note("absent" if board.phase == "vote" else "dropped")
    dropped = Dropped(learner=inputs.learner, why=why)
    drop(store, inputs.place.run, board.round, dropped, name=name)
    log.warning("round %d: %s is dropped: %s", board.round, inputs.learner, why)
    return False


def act(inputs: Inputs, board: Board) -> bool:
    """Answer the phase on the board, in the framework's environment; return whether the learner took part."""
    store, plan = opened(inputs.place)
    started, clock = time.time(), time.monotonic()
    done = ANSWERS[board.phase](store, plan, inputs, board)
    seconds = time.monotonic() - clock
    timing = Timing(step=board.phase, learner=inputs.learner, round=board.round, started=started, seconds=seconds)
    note(store, plan.run, timing)
    return not isinstance(done, Dropped)


def _contribute(store: Store, plan: Plan, inputs: Inputs, board: Board) -> Update | Dropped:
    left = plan.federation.quorum.deadline - (store.age(keys.board(plan.run)) or 0.0)
    make = partial(make_learner, store, plan, inputs.learner, board.round, place=inputs.place)
    roll = Roll((), attempt=board.attempt)
    return contribute(store, plan, inputs.learner, board.round, board.base, make, roll=roll, seconds=left)


def _vote(store: Store, plan: Plan, inputs: Inputs, board: Board) -> Ballot | Dropped:
    make = partial(make_learner, store, plan, inputs.learner, board.round, trains=False, place=inputs.place)
    roll = Roll((), attempt=board.attempt)
    return vote(store, plan, inputs.learner, board.round, board.base, board.candidate, board.owner, make, roll=roll)


def _describe(store: Store, plan: Plan, inputs: Inputs, board: Board) -> Report | Dropped:
    own = any(learner.data for learner in plan.federation.learners)
    module = load_code(get_bytes(store, plan.code), plan.code) if own else None
    report = describe(store, plan.federation, plan.run, inputs.learner, plan.shards, module)
    return Dropped(learner=inputs.learner, why=report.why) if report.why else report


ANSWERS: dict[str, Callable[[Store, Plan, Inputs, Board], Update | Ballot | Report | Dropped]] = {
    "describe": _describe,
    "train": _contribute,
    "propose": _contribute,
    "vote": _vote,
}
"""The answer to each phase of the scripts, by its name."""


@functools.lru_cache(maxsize=4)
def opened(place: RunPlace) -> tuple[Store, Plan]:
    """Return the store and the plan, opened once in a process."""
    store = place.open()
    return store, read_plan(store, place.plan)


def _outputs(store: Store, inputs: Inputs, trained: int = 0, voted: int = 0) -> Outputs:
    counts = {"trained": trained, "voted": voted}
    metrics = MetricsArtifact(metadata={**_last_metrics(store, inputs), **counts})
    return Outputs(trained=trained, voted=voted, metrics=metrics)


def _last_metrics(store: Store, inputs: Inputs) -> dict[str, float]:
    """Return the metrics of the learner's last update that counts, such as its loss and accuracy."""
    with contextlib.suppress(FedpipeError):  # the session is over, whatever the UI shows
        board, _ = poll_board(store, inputs.place.run) or (None, "")
        for number in range(board.round if board else 0, 0, -1):
            record = read_record(store, inputs.place.run, number)
            for update in record.updates if record else ():
                if update.learner == inputs.learner:
                    return {name: value for name, value in update.metrics.items() if "/" not in name}
    return {}
