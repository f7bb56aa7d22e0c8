"""A hostile learner that may do anything its user may do, at any time, as hypothesis finds it."""

from __future__ import annotations

import itertools
import json
import tempfile
from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedpipe import weights
from fedpipe.errors import CorruptError, StoreError
from fedpipe.rounds.history import history
from fedpipe.rounds.plan import Plan
from fedpipe.sessions.board import Board, poll_board
from fedpipe.store import MemoryStore, keys
from fedpipe.store.objects import encode
from tests.faults import seeds
from tests.faults.junk import KINDS, made, templates
from tests.faults.stores import HookedStore
from tests.faults.test_junk import ALGORITHMS, HOSTILE, NAMES, ROUNDS, part, plan_of, play
from tests.federations import fresh
from tests.simulation import World

HONEST = NAMES[:3]
Action = tuple[str, Any, Any]
"""Names the action, its object and its manner."""

NUMBERS = st.sampled_from([0, 1, -1, 9, 2**53, 2**53 + 1, 2**63, 2**70, 1e30, 3.4e38, 1e39, 1.7e308, -1.7e308, 5e-324])
ARRAYS: dict[str, dict[str, Any]] = {
    "as it was": {},
    "large": {"w": np.full(5, 3e38, np.float32)},
    "larger": {"b": np.float64(1.7e308)},
    "NaN": {"w": np.full(5, np.nan, np.float32)},
    "another shape": {"w": np.zeros(6, np.float32)},
    "a counter": {"steps": np.int64(2**63 - 1)},
}
actions = st.one_of(
    st.tuples(st.just("junk"), st.integers(0, 10**6), st.sampled_from(list(KINDS))),
    st.tuples(st.just("remove"), st.integers(0, 10**6), st.none()),
    st.tuples(st.just("sign"), st.booleans(), st.integers(1, 3)),
    st.tuples(st.just("update"), st.sampled_from(list(ARRAYS)), st.tuples(NUMBERS, NUMBERS)),
    st.tuples(st.just("ballot"), st.booleans(), st.tuples(NUMBERS, NUMBERS)),
    st.tuples(st.just("note"), st.booleans(), st.integers(1, 3)),
    st.tuples(st.just("wait"), st.floats(0.1, 70.0), st.none()),
)


MANNERS = ("removed", "replaced", "grown", "refused", "encoded")
Moments = dict[int, str]
"""How an object changes when the coordinator reads objects of the hostile learner for the so-manieth time."""
moments = st.dictionaries(st.integers(1, 80), st.sampled_from(MANNERS), max_size=6)
READS = ("read", "poll", "open", "read_range", "size")


def changing(world: World, moments: Moments) -> HookedStore:
    """A store in which the hostile learner changes an object right before the coordinator reads it."""
    reads = itertools.count(1)

    def before(_number: int, name: str, key: str) -> None:
        if name not in READS or not key.startswith(keys.learner_folder(HOSTILE)):
            return
        manner = moments.get(next(reads))
        there = world.store.poll(key, limit=2**30)
        if manner == "removed":
            world.store.delete(key)
        if manner == "replaced" and there:
            world.store.replace(key, there.data[::-1])
        if manner == "grown" and there:
            world.store.replace(key, there.data * 3)
        if manner == "refused":
            raise StoreError("the store refuses the request: InvalidRequest")
        if manner == "encoded":
            raise CorruptError("the object is stored with the content encoding 'gzip', and is not decoded")

    return HookedStore(world.store, before)


class Hostile:
    """Carries out actions, one after the other, with the rights of a learner.

    Args:
        plan: of the run.
        owned: the keys that it may write, with what belongs there.
        script: the actions.
    """

    def __init__(self, plan: Plan, owned: dict[str, bytes], script: list[Action]) -> None:
        self._plan, self._owned, self._script = plan, owned, script

    def run(self, world: World) -> Generator[float, None, None]:
        yield 0.05  # the board is there
        for name, what, how in self._script:
            if (found := poll_board(world.store, self._plan.run)) is not None:
                getattr(self, f"_{name}")(world.store, found[0], what, how)
            yield what if name == "wait" else 0.3

    def _junk(self, store: MemoryStore, _board: Board, what: int, how: str) -> None:
        key = list(self._owned)[what % len(self._owned)]
        store.replace(key, made(KINDS[how], self._owned[key]))

    def _remove(self, store: MemoryStore, _board: Board, what: int, _how: None) -> None:
        store.delete(list(self._owned)[what % len(self._owned)])

    def _wait(self, *_: Any) -> None:
        pass

    def _sign(self, store: MemoryStore, board: Board, what: bool, how: int) -> None:
        sign = {"round": board.round, "attempt": how, "phase": board.phase, "took_part": what, "session": board.session}
        store.replace(keys.sign(HOSTILE, self._plan.run), encode(sign))

    def _note(self, store: MemoryStore, board: Board, what: bool, how: int) -> None:
        content = {"learner": HOSTILE, "why": "\u202eno\x00", "lasting": what}
        for name in ("dropped", "absent"):
            key = keys.answer(HOSTILE, self._plan.run, board.round, keys.note(name, how))
            store.replace(key, json.dumps(content).encode())

    def _update(self, store: MemoryStore, board: Board, what: str, how: tuple[float, float]) -> None:
        kind: keys.Kind = "proposals" if self._plan.federation.proposers else "objects"
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "w"
            digest = weights.save({**fresh(), **ARRAYS[what]}, path)
            store.replace(keys.content(digest, HOSTILE, kind), path.read_bytes())
            size = path.stat().st_size
        content = {
            "federation": "tiny", "run": self._plan.run, "round": board.round, "learner": HOSTILE, "base": board.base,
            "weights": digest, "size": size, "examples": how[0], "metrics": {"loss": how[1], "x": how[0]},
        }  # fmt: skip
        store.replace(keys.update(HOSTILE, self._plan.run, board.round), json.dumps(content).encode())

    def _ballot(self, store: MemoryStore, board: Board, what: bool, how: tuple[float, float]) -> None:
        scores = [{"vote": {"examples": 1, "metrics": {"loss": x}}, "test": None} for x in how]
        content = {
            "federation": "tiny", "run": self._plan.run, "round": board.round, "learner": HOSTILE, "base": board.base,
            "candidate": board.candidate, "approve": what, "current": scores[0], "proposed": scores[1],
        }  # fmt: skip
        store.replace(keys.ballot(HOSTILE, self._plan.run, board.round), json.dumps(content).encode())


def played(plan: Plan, script: list[Action], moments: Moments | None = None, *, attends: bool = False) -> World:
    """Plays a run with the hostile learner, which may also attend as others do."""
    hostile = Hostile(plan, templates({}, HOSTILE, plan.run, ROUNDS), script)
    return play(plan, hostile.run, attends=attends, seen=lambda world: changing(world, moments or {}))


@pytest.mark.heavy
@pytest.mark.parametrize("name", ALGORITHMS)
@pytest.mark.parametrize("attends", [False, True], ids=["instead", "also"])
@settings(max_examples=max(10, seeds.COUNT // 4), suppress_health_check=[HealthCheck.too_slow])
@given(script=st.lists(actions, min_size=1, max_size=40), moments=moments)
def test_the_others_get_their_result(name: str, attends: bool, script: list[Action], moments: Moments) -> None:
    """Every round ends; where the hostile learner does not count, the round is bit for bit one without it."""
    plan = plan_of(name)
    world = played(plan, script, moments, attends=attends)
    result = world.results["coordinator"]
    assert not isinstance(result, Exception), result
    for name_of_other in HONEST:
        assert not isinstance(world.results[name_of_other], Exception)
    records = history(world.store, plan.run)
    assert len(records) == ROUNDS + 1
    for record in records[1:]:
        others = {item.learner for item in (*record.dropped, *record.absent) if not item.why.startswith("not needed")}
        assert others <= {HOSTILE}
        weights.check_finite(weights.loads(world.store.read(keys.content(record.weights)).data))
    counted = [
        record for record in records if HOSTILE in {answer.learner for answer in (*record.updates, *record.ballots)}
    ]
    if not counted:
        alone = history(played(plan, []).store, plan.run)
        assert [part(record) for record in records] == [part(record) for record in alone]
