"""Structure-aware fuzzing of everything that a party may write as JSON: no crash, no traceback, little memory.

Mutations keep most of an object's structure, so that they reach the checks behind the parser. `FEDPIPE_FUZZ` sets their
number (`make fuzz`: 100 000), `FEDPIPE_FAULT_SEED` the first seed.
"""

from __future__ import annotations

import json
import os
import tracemalloc
from collections.abc import Callable
from random import Random
from typing import Any, NamedTuple

import numpy as np
import pytest
from msgspec.structs import replace

from fedpipe import weights as arrays
from fedpipe.data.parts import Shard
from fedpipe.data.schema import Column
from fedpipe.data.settling import settle
from fedpipe.data.statistics import Report, report_of
from fedpipe.errors import CorruptError, DataError, DroppedError
from fedpipe.federation.data import StatisticsSettings
from fedpipe.identity.enrolment import Enrolled, Enrolment, format_time
from fedpipe.learners.score import score_learner
from fedpipe.rounds import manifests
from fedpipe.rounds.accounting import TrainingEvent
from fedpipe.rounds.aligned import contradiction
from fedpipe.rounds.budget import Entry
from fedpipe.rounds.evaluation import Score, measure_all, mistake_in_score
from fedpipe.rounds.history import history
from fedpipe.rounds.manifests import Aligned, Ballot, Dropped, Record, Update
from fedpipe.rounds.parcels import Meeting, Parcel, take
from fedpipe.rounds.plan import Plan, differences
from fedpipe.rounds.received import parse
from fedpipe.rounds.tallies import Head
from fedpipe.rounds.timings import Timing
from fedpipe.rounds.updates import check_update, mean_metrics, mean_tested
from fedpipe.rounds.voting import check_ballot
from fedpipe.sessions.board import Board, Sign
from fedpipe.sessions.results import Results
from fedpipe.store import Blob, MemoryStore
from fedpipe.store.objects import canonical, decode, digest_of, encode
from tests.faults import seeds
from tests.faults.test_junk import plan_of, play
from tests.federations import make_plan
from tests.learners.test_score import prepared

COUNT = int(os.environ.get("FEDPIPE_FUZZ", "6500"))
MOST_MEMORY = 64 * 2**20
VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 2, 2**31, 2**53, 2**53 + 1, 2**63 - 1, 2**63, 2**64, 2**70, -(2**63), 0.0, -0.0, 0.5,
    1e-320, 1e30, 3.4e38, 1e39, 1e100, 1e200, 1.7e308, -1.7e308, "", "a", "a" * 101, "x" * 5000, "../x", "\u202e",
    "\x00", "\ud7ff", "sha256:" + "0" * 64, "sha256:" + "0" * 63, "NaN", [], {}, [[]], [None], [0.0] * 100, {"": None},
    {"a": {"b": {"c": []}}}, {"loss": 1.7e308}, {str(k): 0.5 for k in range(101)},
]  # fmt: skip


class Target(NamedTuple):
    """A kind of object: an example of it, and what readers do with one that could be parsed."""

    kind: type[Any]
    example: Any
    used: Callable[[Any], Any] = lambda _: None
    learners: bool = True


def mutated(random: Random, example: Any) -> bytes:
    """Returns an object with one to four mutations, or with changed bytes."""
    content = json.loads(canonical(example))
    for _ in range(random.randint(1, 4)):
        content = _mutated(random, content)
    try:
        data = json.dumps(content).encode(errors="replace")
    except RecursionError:
        return b"[" * 5000
    if random.random() < 0.1 and data:
        changed = bytearray(data)
        for _ in range(random.randint(1, 5)):
            changed[random.randrange(len(changed))] = random.randrange(256)
        data = bytes(changed[: random.randint(1, len(changed))] if random.random() < 0.3 else changed)
    return data


def _mutated(random: Random, value: Any) -> Any:
    """Changes one place of nested values."""
    if isinstance(value, dict) and value and random.random() < 0.9:
        key = random.choice(list(value))
        choice = random.random()
        if choice < 0.08:
            return {k: v for k, v in value.items() if k != key}
        if choice < 0.14:
            return {**value, random.choice(["unknown", "format", key + "x", ""]): random.choice(VALUES)}
        if choice < 0.2:
            return {**value, key: value[random.choice(list(value))]}
        return {**value, key: _mutated(random, value[key])}
    if isinstance(value, list) and value and random.random() < 0.8:
        place, choice = random.randrange(len(value)), random.random()
        if choice < 0.15:
            return value[:place] + value[place + 1 :]
        if choice < 0.3:
            return [*value, value[place]] * random.choice([1, 1, 3])
        return [*value[:place], _mutated(random, value[place]), *value[place + 1 :]]
    if isinstance(value, int | float) and not isinstance(value, bool) and random.random() < 0.5:
        return random.choice([-value, value + 1, value - 1, value * 2, value * 1e10, value / 3])
    return random.choice(VALUES)


def _targets() -> dict[str, Target]:
    plan = plan_of("votes")
    store = play(plan, attends=True).store
    record = history(store, plan.run)[1]
    update, ballot = record.updates[0], record.ballots[0]
    digest, federation, vote = digest_of(b""), plan.federation, plan.federation.vote
    assert vote is not None
    scored = MemoryStore()
    scoring, weights = prepared(scored)
    score = score_learner(scored, scoring, "b", weights)
    heads = [Head("", "multiclass", "logits", 3), Head("", "multiclass", "probabilities", 3)]

    def use_update(found: Update) -> None:
        check_update(
            found, federation=federation.name, run=plan.run, number=1, learner=found.learner, base=update.base,
            plan=update.plan,
        )  # fmt: skip
        others = [update, found]
        encode({"metrics": mean_metrics(others)})
        encode({"tested": mean_tested(other.tested for other in others)})
        encode(manifests.Record(
            federation="f", run="r", round=1, previous=None, plan=digest, base=digest, weights=digest, layout=digest,
            updates=tuple(others), metrics=mean_metrics(others),
        ))  # fmt: skip

    def use_ballot(found: Ballot) -> None:
        check_ballot(
            found, vote=vote, federation=federation.name, run=plan.run, number=1, learner=found.learner,
            base=ballot.base, candidate=ballot.candidate,
        )  # fmt: skip

    def use_score(found: Score) -> None:
        if not any(mistake_in_score(found, [head]) == "" for head in heads):
            return
        encode({"measures": measure_all(found.tallies)})

    def use_report(found: Report) -> None:
        tabular = make_plan().federation
        settle(tabular, [replace(found, learner="a")])  # as readers require it

    def use_enrolled(found: Enrolled) -> None:
        for enrolment in found.learners.values():
            format_time(enrolment.since)
            format_time(enrolment.revoked or 0.0)

    rows = np.arange(40.0, dtype=np.float32).reshape(20, 2)
    columns = tuple(Column(name=name, kind="number") for name in ("age", "size"))
    report = report_of("a", rows, np.arange(20), columns, StatisticsSettings(floor=1, rare=1))
    board = Board(
        federation="tiny", run="r1", session="s", round=1, phase="train", base=digest, asked=("a", "b"), candidate=""
    )
    spent = manifests.Spent(
        events=1, epsilon_poisson=1.0, epsilon_unamplified=2.0, delta=1e-5, target_epsilon=3.0, sampling="none"
    )
    tested = manifests.Tested(examples=3, metrics={"loss": 0.5})
    event = TrainingEvent(examples=100, batch_size=10, microbatches=10, noise_multiplier=1.0, steps=10, passes=1)
    aligned = Aligned(
        federation="f", run="r1", learner="a", base=digest, plan=digest, session="s", attempt=1, rows=5, common=3,
        others={"b": 4}, personal=digest,
    )  # fmt: skip
    sent = {"values": np.ones((2, 3), np.float32)}
    meeting = Meeting(MemoryStore(), "f", "r1", "s", 1, 1, digest, digest)
    parcel = meeting.parcel("activations", 0, "a", "b", digest_of(arrays.dumps(sent)))

    def use_parcel(found: Parcel) -> None:
        at = meeting._replace(store=MemoryStore())
        data = encode(found) + b"\n" + arrays.dumps(sent)
        at.store.create(at.key("activations", 0, "a", "b"), data)
        assert take(at, "activations", 0, "a", "b", sent, Enrolled()) is not None

    enrolled = Enrolled(learners={"a": Enrolment(key="0" * 64, since=1e9, revoked=None)})
    return {
        "update": Target(Update, replace(update, spent=spent, tested=tested), use_update),
        "note": Target(Dropped, Dropped(learner="a", why="x", spent=spent)),
        "ballot": Target(Ballot, ballot, use_ballot),
        "alignment": Target(Aligned, aligned, lambda found: contradiction({"a": found, "b": aligned})),
        "parcel": Target(Parcel, parcel, use_parcel),
        "sign": Target(Sign, Sign(round=1, attempt=1, phase="train", took_part=True), lambda s: s.answers(board)),
        "score": Target(Score, score, use_score),
        "timing": Target(Timing, Timing(step="train", learner="a", round=1, started=1e9, seconds=3.0)),
        "statistics": Target(Report, report, use_report),
        "shard": Target(Shard, Shard(learner="a", data=digest, size=1, parts={"train": 1}, labels={"0": 1})),
        "record": Target(Record, record, learners=False),
        "board": Target(Board, board, lambda found: Sign(round=1).answers(found), learners=False),
        "plan": Target(Plan, plan, lambda found: differences(plan, found), learners=False),
        "results": Target(Results, Results(job="j", plan=digest, ended=True), lambda one: one.is_known, learners=False),
        "enrolment": Target(Enrolled, enrolled, use_enrolled, learners=False),
        "ledger": Target(
            Entry, Entry(learner="a", run="r1", round=1, weights=digest, event=event, spent=spent), learners=False
        ),
    }  # fmt: skip


TARGETS = _targets()


@pytest.mark.parametrize("name", TARGETS)
def test_mutated_objects_are_refused_or_used(name: str) -> None:
    target, refused, odd = TARGETS[name], 0, 0
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for seed in range(seeds.FIRST, seeds.FIRST + COUNT // len(TARGETS)):
            data = mutated(Random(seed), target.example)
            try:
                found = (
                    parse(Blob(data, ""), target.kind, name)
                    if target.learners
                    else decode(data, target.kind, where=name)
                )
                target.used(found)
            except (CorruptError, DroppedError, DataError) as error:
                refused += 1
                odd += not error.what.isprintable()
            except Exception as error:
                raise AssertionError(f"{seeds.how_to_repeat(seed)}: {name}: {data[:2000]!r}") from error
        assert tracemalloc.get_traced_memory()[1] - before < MOST_MEMORY
    finally:
        tracemalloc.stop()
    assert not odd or not target.learners, "a reason has control characters"
    assert 0.1 * COUNT / len(TARGETS) < refused, "the mutations do not reach the checks"
