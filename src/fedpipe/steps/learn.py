"""Attend a session as a learner: train and vote whenever the board asks, until the session has ended."""

from __future__ import annotations

import functools
import logging
import time
from collections import Counter
from collections.abc import Callable, Generator
from functools import partial

import msgspec
from msgspec import Struct

from fedpipe.data.statistics import Report
from fedpipe.errors import FedpipeError, WorkerDiedError, one_line
from fedpipe.learners.assembly import make_learner
from fedpipe.learners.contribute import contribute
from fedpipe.learners.describe import describe
from fedpipe.learners.masking import MaskedFile, contribute_masked
from fedpipe.learners.party import first_weights, make_party, own_ids
from fedpipe.learners.user_code import load_code
from fedpipe.learners.vote import vote
from fedpipe.rounds.agreement import check_agreed
from fedpipe.rounds.evaluation import Score
from fedpipe.rounds.floors import read_floors
from fedpipe.rounds.history import read_record
from fedpipe.rounds.manifests import Aligned, Ballot, Dropped, Update
from fedpipe.rounds.parcels import leave
from fedpipe.rounds.plan import Plan, RunPlace, read_plan
from fedpipe.rounds.protocol import check_spoken
from fedpipe.rounds.releases import Leaving
from fedpipe.rounds.roll import Roll, drop
from fedpipe.rounds.timings import Timing, note
from fedpipe.rounds.updates import own_update
from fedpipe.secure.party import Orders
from fedpipe.sessions.alignment import ALIGN
from fedpipe.sessions.attendance import Attendance, at_once
from fedpipe.sessions.board import Board, Sign, poll_board, put_sign
from fedpipe.sessions.current import session_name
from fedpipe.sessions.pacing import drive
from fedpipe.sessions.pulse import continues
from fedpipe.sessions.scripts import scoring
from fedpipe.sessions.secure import Participant
from fedpipe.sessions.taking_part import clear, find_common, meeting_of, take_part
from fedpipe.steps import score
from fedpipe.steps.contract import Hands, MetricsArtifact
from fedpipe.steps.early import Early
from fedpipe.steps.shown import metrics_of_learner
from fedpipe.store import Store, keys
from fedpipe.store.objects import get_bytes

log = logging.getLogger("fedpipe")
_PATIENCE = 240.0
"""Seconds that the label party waits for the test rows of others, within the phase of the tests."""


class Inputs(Early, frozen=True, kw_only=True):
    """The learner and its session: rounds [first, last] of the run, to its end when last is 0, of this KFP job.

    The place is absent in a step that has started early; its federation is named then.
    """

    place: RunPlace
    learner: str
    federation_name: str = ""
    first: int = 1
    last: int = 0


class Outputs(Struct, frozen=True, kw_only=True):
    """The numbers of the learner's trainings and votes."""

    trained: int
    voted: int
    metrics: MetricsArtifact


def find(inputs: Inputs) -> Outputs | None:
    """Return the outputs when the session's last round is committed, and tested if it is the run's last one."""
    store = inputs.place.open()
    plan = read_plan(store, inputs.place.plan)
    last = inputs.last or plan.federation.training.rounds
    record = read_record(store, inputs.place.run, last)
    if record is None or (not inputs.last and inputs.learner in scoring(store, plan, record).asks(1, ())):
        return None
    return Outputs(trained=0, voted=0, metrics=metrics_of_learner(_last_update(store, inputs, last), 0, 0))


def run(inputs: Inputs, hands: Hands) -> Outputs:
    """Attend the session. A learner that cannot train or vote is dropped from the round and stays."""
    store = inputs.place.open()
    plan = read_plan(store, inputs.place.plan)
    took_part = drive(attended(store, plan, inputs, hands, read_floors().leaves), hands.sleep)
    trained = sum(took_part[phase] for phase in ("train", "propose", "exchange", "masked"))
    voted = took_part["vote"]
    update = _last_update(store, inputs, plan.federation.training.rounds) if trained else None
    return Outputs(trained=trained, voted=voted, metrics=metrics_of_learner(update, trained, voted))


def prepare(inputs: Inputs) -> None:
    """Build the model and read the data before the session, so that the first round need not.

    A failure here happens again in the first round, which drops the learner with the reason.
    """
    try:
        store, plan = opened(inputs.place)
        if plan.federation.split is None:
            make_learner(store, plan, inputs.learner, 1, place=inputs.place).prepare()
    except (Exception, SystemExit) as error:
        log.info("%s is not prepared for the first round: %s", inputs.learner, one_line(error))


def attended(
    store: Store, plan: Plan, inputs: Inputs, hands: Hands, leaves: Leaving | None = None
) -> Generator[float, None, Counter[str]]:  # fmt: skip
    """Attend the session to its end, as a step or as the agent of a site; yield seconds to wait.

    Args:
        store: the federation's store.
        plan: the run's plan.
        inputs: the learner and its session.
        hands: they compute; this process only waits.
        leaves: numbers that may leave in a secure sum; None: all.

    Returns:
        How often the learner took part in each phase.

    Raises:
        RoundError, StoreError: as `Attendance.run`.
    """
    check_spoken(plan.format, inputs.learner)

    def answer(board: Board) -> bool:
        call = hands.together if plan.federation.split else hands.call
        try:
            return bool(call(act, inputs, board))
        except WorkerDiedError:
            log.warning("round %d: %s works in a new process: the last one was killed", board.round, inputs.learner)
            try:
                return bool(call(act, inputs, board))
            except WorkerDiedError as error:
                return _leave(store, inputs, board, str(error))

    def exchange(board: Board) -> bool:
        """Answer a phase in which parties wait for each other, and remove what earlier ones have left."""
        tidy(lambda earlier: earlier != board)
        exchanged.append(board)
        try:
            return bool(hands.together(act, inputs, board))
        except WorkerDiedError:
            log.warning("round %d: %s begins the round again: its process was killed", board.round, inputs.learner)
            try:
                return bool(hands.together(act, inputs, board))
            except WorkerDiedError as error:
                leave(meeting_of(store, plan, board), inputs.learner, str(error))
                return _leave(store, inputs, board, str(error))

    def tidy(is_over: Callable[[Board], bool]) -> None:
        for board in [board for board in exchanged if is_over(board)]:
            exchanged.remove(board)
            clear(store, plan, inputs.learner, board)

    exchanged: list[Board] = []

    def train(board: Board, orders: Orders) -> MaskedFile | Dropped:
        try:
            done: MaskedFile | Dropped = hands.call(mask, inputs, board, orders)
            return done
        except WorkerDiedError as error:  # it may have left a vector, so nothing else is masked like that
            _leave(store, inputs, board, str(error))
            return Dropped(learner=inputs.learner, why=str(error))

    answers = dict.fromkeys(ANSWERS, at_once(answer)) | dict.fromkeys(("exchange", ALIGN), at_once(exchange))
    if plan.federation.secure:
        participant = Participant(store, plan, inputs.learner, _session(inputs), train, leaves)
        answers |= {name: at_once(step) for name, step in participant.answers().items()}
    attendance = Attendance(store, plan, inputs.learner, _session(inputs), answers, last=inputs.last)
    took_part = yield from attendance.run()
    tidy(lambda _: True)
    return took_part


def _last_update(store: Store, inputs: Inputs, last: int) -> Update | None:
    """Return the learner's last update of the run; None without one, or when it cannot be read."""
    try:
        board = poll_board(store, inputs.place.run)
        numbers = range(board[0].round if board else last, inputs.first - 1, -1)
        found = (own_update(store, inputs.learner, inputs.place.run, number) for number in numbers)
        return next(filter(None, found), None)
    except FedpipeError:
        return None


def give_up(inputs: Inputs, why: str) -> Outputs | None:
    """Leave the session for good, so that no round waits; None when the session does not continue."""
    store = inputs.place.open()
    last = inputs.last or read_plan(store, inputs.place.plan).federation.training.rounds
    if not continues(store, inputs.place.run, _session(inputs), last):
        return None
    board, _ = poll_board(store, inputs.place.run) or (None, "")
    sign = Sign(round=0, session=_session(inputs), leaves=True)
    if board is not None and board.session == _session(inputs) and inputs.learner in board.asked:
        _leave(store, inputs, board, why)
        sign = msgspec.structs.replace(sign, round=board.round, attempt=board.attempt, phase=board.phase)
    put_sign(store, inputs.learner, inputs.place.run, sign)
    return Outputs(trained=0, voted=0, metrics=metrics_of_learner(None, 0, 0))


def _session(inputs: Inputs) -> str:
    return session_name(inputs.job, inputs.first)


def _leave(store: Store, inputs: Inputs, board: Board, why: str) -> bool:
    """Leave the reason why the learner does not answer the phase: its process ends whenever it computes."""
    if board.phase == "score":
        score.give_up(_scoring(inputs, board), why)
        return False
    name = Roll((), attempt=board.attempt).note("absent" if board.phase == "vote" else "dropped")
    dropped = Dropped(learner=inputs.learner, why=why)
    drop(store, inputs.place.run, board.round, dropped, name=name)
    log.warning("round %d: %s is dropped: %s", board.round, inputs.learner, why)
    return False


def act(inputs: Inputs, board: Board) -> bool:
    """Answer the phase on the board, in the framework's environment; return whether the learner took part."""
    store, plan = opened(inputs.place)
    if board.phase != "describe":
        agreed(inputs.place)
    started, clock = time.time(), time.monotonic()
    done = ANSWERS[board.phase](store, plan, inputs, board)
    seconds = time.monotonic() - clock
    timing = Timing(step=board.phase, learner=inputs.learner, round=board.round, started=started, seconds=seconds)
    note(store, plan.run, timing)
    return not isinstance(done, Dropped)


def mask(inputs: Inputs, board: Board, orders: Orders) -> MaskedFile | Dropped:
    """Train for a secure sum, in the framework's environment, and upload the masked update."""
    store, plan = opened(inputs.place)
    agreed(inputs.place)
    started, clock = time.time(), time.monotonic()
    left = plan.federation.quorum.deadline - (store.age(keys.board(plan.run)) or 0.0)
    make = partial(make_learner, store, plan, inputs.learner, board.round, place=inputs.place)
    roll = Roll((), attempt=board.attempt)
    done = contribute_masked(
        store, plan, inputs.learner, board.round, board.base, make, orders, roll=roll, seconds=left
    )  # fmt: skip
    timing = Timing(
        step=board.phase, learner=inputs.learner, round=board.round, started=started, seconds=time.monotonic() - clock
    )
    note(store, plan.run, timing)
    return done


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
    floors = read_floors()
    floors.check_privacy(plan.federation.privacy_of(inputs.learner))
    floors.check_code(plan.code)
    own = any(learner.brings_data for learner in plan.federation.learners)
    module = load_code(get_bytes(store, plan.code), plan.code) if own else None
    report = describe(store, plan.federation, plan.run, inputs.learner, plan.shards, module)
    return Dropped(learner=inputs.learner, why=report.why) if report.why else report


def _score(_store: Store, _plan: Plan, inputs: Inputs, board: Board) -> Score | Dropped:
    tested = score.tested(_scoring(inputs, board), _PATIENCE)
    return Dropped(learner=inputs.learner, why=tested.why) if tested.why else tested


def _scoring(inputs: Inputs, board: Board) -> score.Inputs:
    return score.Inputs(place=inputs.place, learner=inputs.learner, weights=board.base)


def _exchange(store: Store, plan: Plan, inputs: Inputs, board: Board) -> Update | Dropped:
    make, first = partial(make_party, inputs.place, inputs.learner), partial(first_weights, store, plan, inputs.learner)
    return drive(take_part(store, plan, inputs.learner, board, make, first), time.sleep)


def _align(store: Store, plan: Plan, inputs: Inputs, board: Board) -> Aligned | Dropped:
    ids = partial(own_ids, store, plan, inputs.learner)
    return drive(find_common(store, plan, inputs.learner, board, ids), time.sleep)


ANSWERS: dict[str, Callable[[Store, Plan, Inputs, Board], Update | Ballot | Report | Score | Aligned | Dropped]] = {
    "describe": _describe,
    "train": _contribute,
    "propose": _contribute,
    "vote": _vote,
    "score": _score,
    "exchange": _exchange,
    ALIGN: _align,
}
"""The answer to each phase of the scripts, by its name."""


@functools.lru_cache(maxsize=4)
def opened(place: RunPlace) -> tuple[Store, Plan]:
    """Return the store and the plan, opened once in a process."""
    store = place.open()
    return store, read_plan(store, place.plan)


@functools.lru_cache(maxsize=4)
def agreed(place: RunPlace) -> None:
    """Compare the plan with round 0's record, once in a process. Raises RoundError."""
    store, plan = opened(place)
    check_agreed(store, place, plan)
