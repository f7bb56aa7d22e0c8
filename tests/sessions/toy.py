"""An algorithm of the tests alone: two phases and an odd quorum, which neither coordinator nor attendance knows.

estimate    all train; an odd number of updates is kept, at least three; the one in the middle is the candidate
confirm     those whose updates were kept confirm the candidate; more than half of them must
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Generator
from pathlib import Path
from typing import Any

from msgspec import Struct

from fedpipe.errors import DroppedError
from fedpipe.learners.contribute import contribute
from fedpipe.rounds.history import begun_from, commit, propose_candidate, read_candidate, read_record, record_layout
from fedpipe.rounds.manifests import Dropped, Record
from fedpipe.rounds.plan import Plan
from fedpipe.rounds.received import MANIFEST, Source, receive
from fedpipe.rounds.roll import Roll, check_quorum, gather
from fedpipe.rounds.updates import collect, fetch_weights
from fedpipe.sessions.attendance import Answering
from fedpipe.sessions.board import Board
from fedpipe.sessions.phases import Early, Phase, Script, close_phase
from fedpipe.store import Store, keys
from fedpipe.store.objects import publish, put_file
from tests.simulation import World

QUORUM = 3


class Confirmation(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    learner: str
    candidate: str


def toy(store: Store, plan: Plan) -> Callable[[Record], Script]:
    def script(previous: Record) -> Script:
        candidate: Record = yield estimate(store, plan, previous)
        return (yield confirm(store, plan, previous, candidate))  # type: ignore[no-any-return]

    return script


def estimate(store: Store, plan: Plan, previous: Record) -> Phase:
    number = previous.round + 1

    def asks(_attempt: int, away: Collection[str]) -> tuple[str, ...]:
        names = tuple(learner.name for learner in plan.federation.learners)
        there = tuple(name for name in names if name not in away)
        return there if len(there) >= QUORUM else names

    def close(roll: Roll, _early: Early | None) -> Record:
        found = read_record(store, plan.run, number) or read_candidate(store, plan.run, number)
        return found or propose_candidate(store, _candidate(store, plan, previous, roll))

    return Phase(
        name="estimate", round=number, base=previous.weights, answer="update", asks=asks, close=close,
        closing="aggregate", retries=plan.federation.quorum.retries,
    )  # fmt: skip


def _candidate(store: Store, plan: Plan, previous: Record, roll: Roll) -> Record:
    number, name = previous.round + 1, plan.federation.name
    updates, dropped = collect(store, plan, previous, roll)
    sound = []
    for update in updates:
        try:
            _adopt(store, previous, update.learner, update.weights)
            sound.append(update)
        except Exception as error:
            dropped.append(Dropped(learner=update.learner, why=str(error)))
    check_quorum(number, len(sound), dropped, QUORUM)
    kept = sound[: len(sound) - 1 + len(sound) % 2]
    return Record(
        federation=name, run=plan.run, round=number, previous=previous.parent, plan=previous.plan,
        base=previous.weights, weights=kept[len(kept) // 2].weights, layout=previous.layout, rule="toy",
        updates=tuple(kept), dropped=tuple(sorted(dropped, key=lambda item: item.learner)),
    )  # fmt: skip


def _adopt(store: Store, previous: Record, learner: str, digest: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights"
        fetch_weights(store, digest, record_layout(store, previous), path, learner)
        put_file(store, path, digest)


def confirm(store: Store, plan: Plan, previous: Record, candidate: Record) -> Phase:
    kept = tuple(update.learner for update in candidate.updates)

    def read(learner: str) -> Confirmation | None:
        source = Source(store, plan.run, _key(learner, plan.run, candidate.round), "confirmation")
        found = receive(source, Confirmation)
        if found is not None and found != Confirmation(learner=learner, candidate=candidate.weights):
            raise DroppedError("confirms something else")
        return found

    def close(roll: Roll, _early: Early | None) -> Record:
        if found := read_record(store, plan.run, candidate.round):
            return commit(store, found)
        given, missing = gather(
            store, plan.run, candidate.round, roll, read, name="unconfirmed", otherwise="no confirmation"
        )
        check_quorum(candidate.round, len(given), missing, len(kept) // 2 + 1)
        return commit(store, candidate)

    return Phase(
        name="confirm", round=candidate.round, base=previous.weights, answer="confirmation", asks=lambda *_: kept,
        close=close, closing="tally", retries=plan.federation.quorum.retries, candidate=candidate.weights,
        enough=lambda asked: len(asked) // 2 + 1,
    )  # fmt: skip


def _key(learner: str, run: str, number: int) -> str:
    return keys.answer(learner, run, number, "confirmation")


def publish_confirmation(store: Store, plan: Plan, name: str, number: int, candidate: str) -> None:
    publish(store, _key(name, plan.run, number), Confirmation(learner=name, candidate=candidate), limit=MANIFEST)


def answers(
    world: World, store: Store, plan: Plan, name: str, learner: Any, seconds: Callable[[Board], float]
) -> dict[str, Answering]:
    """How a learner answers the two phases, under a simulated clock."""

    def estimated(board: Board) -> Generator[float, None, bool]:
        yield seconds(board)
        roll = Roll((), attempt=board.attempt)
        return not isinstance(
            contribute(store, plan, name, board.round, board.base, lambda: learner, roll=roll), Dropped
        )

    def confirmed(board: Board) -> Generator[float, None, bool]:
        yield seconds(board)
        publish_confirmation(store, plan, name, board.round, board.candidate)
        return True

    return {"estimate": estimated, "confirm": confirmed}


def play(store: Store, plan: Plan, learners: dict[str, Any], record: Record) -> Record:
    """The same algorithm as single steps: each answer and each closing by itself."""
    for number in range(record.round + 1, plan.federation.training.rounds + 1):
        previous = begun_from(store, plan.run, number, record.weights)
        for name, learner in learners.items():
            contribute(store, plan, name, number, record.weights, lambda k=learner: k)
        candidate: Record = close_phase(toy(store, plan)(previous), "estimate")
        for update in candidate.updates:
            publish_confirmation(store, plan, update.learner, number, candidate.weights)
        record = close_phase(toy(store, plan)(previous))
    return record


def replayed(again: Store, plan: Plan, record: Record) -> Record:
    """The round again, in a store that holds the record's updates alone."""
    previous = read_record(again, plan.run, record.round - 1)
    assert previous
    for update in record.updates:
        publish_confirmation(again, plan, update.learner, record.round, record.weights)
    estimated = estimate(again, plan, previous)
    excused = {item.learner: item.why for item in record.dropped}
    candidate = estimated.close(Roll(tuple(u.learner for u in record.updates), excused=excused), None)
    made: Record = confirm(again, plan, previous, candidate).close(Roll(tuple(u.learner for u in record.updates)), None)
    return made
