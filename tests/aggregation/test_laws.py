"""The laws of aggregation: they hold for every rule of the registry, and for a rule of each kind."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from random import Random
from typing import Any, get_args

import ml_dtypes
import msgspec
import numpy as np
import pytest

from fedpipe import weights
from fedpipe.aggregation import (
    RULES,
    STEPS_BEFORE,
    Columns,
    Combined,
    Distances,
    Forest,
    Source,
    Sums,
    combine,
    combine_arrays,
    make_server_step,
)
from fedpipe.aggregation.tree import WORTH_ADDING
from fedpipe.errors import WeightsError
from fedpipe.federation.algorithms import OWN_RULES, Averaging
from fedpipe.federation.names import tag_of
from fedpipe.federation.optimizers import Sgd
from fedpipe.federation.rules import Median, StepBefore
from fedpipe.rounds.beginning import begin
from fedpipe.rounds.closing import close_round
from fedpipe.rounds.history import history
from fedpipe.rounds.manifests import Record
from fedpipe.rounds.plan import Plan
from fedpipe.store import MemoryStore, Store
from fedpipe.store.objects import get_bytes, put_bytes
from tests.aggregation.registered import CASES, EACH_KIND, Case, closest, registered
from tests.aggregation.test_streaming import put
from tests.federations import PlusOneLearner, make_federation, make_plan, play_round
from tests.simulation import World, attendance, coordinator

Model = dict[str, Any]
SIZES = {"below 1 MiB": 1_000, "above 1 MiB": 300_000}


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    with registered(closest=closest):
        yield


ROWS = [(case, size) for size in SIZES for case in (CASES if size == "below 1 MiB" else EACH_KIND)]
"""The size decides whether updates are added early, which depends on the kind alone."""


@pytest.fixture(params=ROWS, ids=[f"{case.name}-{size}" for case, size in ROWS])
def row(request: pytest.FixtureRequest) -> tuple[Case, str]:
    found: tuple[Case, str] = request.param
    return found


@pytest.fixture
def case(row: tuple[Case, str]) -> Case:
    return row[0]


@pytest.fixture
def size(row: tuple[Case, str]) -> int:
    return SIZES[row[1]]


@pytest.mark.parametrize("size", SIZES.values())
def test_the_table_is_complete(size: int) -> None:
    assert {tag_of(case.rule) for case in CASES} == set(RULES)
    assert {kind.__struct_config__.tag for kind in OWN_RULES} == set(RULES) - {"closest"}
    assert {tag_of(step) for case in CASES for step in case.before} == set(STEPS_BEFORE)
    assert {kind.__struct_config__.tag for kind in get_args(StepBefore)} == set(STEPS_BEFORE)
    assert {type(case.make()) for case in CASES} == {Sums, Columns, Distances}
    assert (weights.layout_of(model(0, size)).size > WORTH_ADDING) == (size == SIZES["above 1 MiB"])


@functools.cache
def model(seed: int, size: int) -> Model:
    rng = np.random.default_rng(seed)
    return {
        "kernel": rng.normal(size=size).astype(np.float32),
        "bias": rng.normal(size=3).astype(ml_dtypes.bfloat16),
        "scale": np.float64(rng.integers(100)),
        "none": np.zeros((0,), np.float32),
        "count": np.int64(3 + seed),
        "flag": np.array([seed == 1]),
    }


def sources_of(store: Store, updates: Iterable[Model]) -> list[Source]:
    return [put(store, f"l{k}", weights.dumps(update), k + 1) for k, update in enumerate(updates)]


def run(
    store: Store, case: Case, size: int, sources: list[Source], early: Iterable[Source] = (), **optimizer: float
) -> tuple[Combined, bytes, dict[str, bytes]]:
    """Combine updates, some of them early if the rule and the model's size allow it."""
    layout, rule, base = weights.layout_of(model(0, size)), case.make(), weights.dumps(model(99, size))
    server = make_server_step(Sgd(**{"learning_rate": 1.0} | optimizer))
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as trees:
        forest = Forest.plant(store, layout, rule, range(8), Path(trees))
        assert (forest is not None) == (isinstance(rule, Sums) and size == SIZES["above 1 MiB"])
        for source in early if forest else ():
            forest.add(source)
        found = combine(
            store, sources, layout=layout, base=put_bytes(store, base), state={}, rule=rule, server=server,
            folder=Path(folder), forest=forest,
        )  # fmt: skip
        return (
            found,
            found.weights[0].read_bytes(),
            {slot: path.read_bytes() for slot, (path, _) in found.state.items()},
        )


@pytest.mark.parametrize("seed", range(4))
def test_any_order_of_arrival_early_or_not_gives_the_same_bytes(
    store: MemoryStore, case: Case, size: int, seed: int
) -> None:
    random, sources = Random(seed), sources_of(store, [model(k, size) for k in range(6)])
    expected = run(store, case, size, sources, learning_rate=0.5, momentum=0.9)
    order, early = random.sample(sources, 6), random.sample(sources, random.randint(1, 6))
    found = run(store, case, size, order, early, learning_rate=0.5, momentum=0.9)
    assert found[1:] == expected[1:]
    assert found[0].accepted == expected[0].accepted == tuple(f"l{k}" for k in range(6))


def test_updates_in_memory_give_the_same_bytes(store: MemoryStore, case: Case, size: int) -> None:
    updates = [model(k, size) for k in range(5)]
    found = combine_arrays(updates, [1, 2, 3, 4, 5], rule=case.make(), base=model(99, size))
    assert weights.dumps(found) == run(store, case, size, sources_of(store, updates))[1]


def test_one_learner_gets_its_update_back(store: MemoryStore, case: Case, size: int) -> None:
    sources = sources_of(store, [model(4, size)])
    if (fewest := case.make().fewest) > 1:
        with pytest.raises(WeightsError, match=f"the rule needs {fewest} updates, and 1 can be used"):
            run(store, case, size, sources)
        return
    assert run(store, case, size, sources, sources)[1] == weights.dumps(model(4, size))


def test_equal_updates_are_what_they_were(store: MemoryStore, case: Case, size: int) -> None:
    sources = sources_of(store, [model(4, size)] * 5)
    assert run(store, case, size, sources, sources[:2])[1] == weights.dumps(model(4, size))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["kernel", "bias", "scale"])
def test_a_culprit_is_refused_and_the_others_count(
    store: MemoryStore, case: Case, size: int, name: str, value: float
) -> None:
    """One value of one tensor is enough, where a median or a choice by distances would hide it."""
    bad = np.array(model(2, size)[name])
    bad.reshape(-1)[-1] = value
    sources = sources_of(store, [model(0, size), model(1, size), {**model(2, size), name: bad}, model(3, size)])
    good = [s for s in sources if s.learner != "l2"]
    for early in ((), sources):
        found, data, _ = run(store, case, size, sources, early)
        assert found.refused == {"l2": "the weights hold NaN or infinity"}
        assert found.accepted == ("l0", "l1", "l3")
        assert data == run(store, case, size, good)[1]


def test_a_session_gives_the_bytes_of_single_steps(case: Case, size: int) -> None:
    plan, start = plan_of(case, "abcdefg"), {"w": np.zeros(size, np.float32), "steps": np.int64(0)}
    session, steps = in_session(plan, start, range(7)), in_steps(plan, start, range(7))
    assert history(session, plan.run) == history(steps, plan.run)
    assert final(session, plan) == final(steps, plan)


def test_a_median_above_1_mib_in_a_session_is_not_the_median_of_a_sum() -> None:
    """The median of 1, 2, 3 and 100 is 2.5; when they are added before the rule sees them, it is up to 106."""
    plan, start = plan_of(Case(Median()), "abcd", rounds=1), {"w": np.zeros(300_000, np.float32)}
    assert weights.layout_of(start).size > WORTH_ADDING
    store = in_session(plan, start, [1, 2, 3, 100])
    np.testing.assert_array_equal(weights.loads(final(store, plan))["w"], np.full(300_000, 2.5, np.float32))


def plan_of(case: Case, names: str, rounds: int = 2) -> Plan:
    """A plan with a rule that the federation file does not offer."""
    federation = make_federation(tuple(names), training={"rounds": rounds, "batch_size": 1}, quorum={"deadline": 60})
    assert isinstance(federation.algorithm, Averaging)
    algorithm = msgspec.structs.replace(federation.algorithm, rule=case.rule, before=case.before)
    return make_plan(msgspec.structs.replace(federation, algorithm=algorithm))


def learners_of(plan: Plan, numbers: Iterable[float]) -> dict[str, PlusOneLearner]:
    names = [learner.name for learner in plan.federation.learners]
    return {name: PlusOneLearner(number, k + 1) for k, (name, number) in enumerate(zip(names, numbers, strict=True))}


def in_session(plan: Plan, start: Model, numbers: Iterable[float]) -> Store:
    """A session whose learners answer one after the other, the last one first in every second round."""
    world, names = World(), [learner.name for learner in plan.federation.learners]
    begin(world.store, plan, lambda: start)
    world.spawn("coordinator", coordinator(world, plan))
    for k, (name, learner) in enumerate(learners_of(plan, numbers).items()):
        after = (5.0 + 5 * k, 5.0 * (len(names) - k))
        seconds = lambda board, after=after: after[board.round % 2]  # noqa: E731
        world.spawn(name, attendance(world, plan, name, learner, seconds=seconds))
    world.run()
    assert isinstance(world.results["coordinator"], Record), world.results["coordinator"]
    return world.store


def in_steps(plan: Plan, start: Model, numbers: Iterable[float]) -> Store:
    store, learners = MemoryStore(), learners_of(plan, numbers)
    record = begin(store, plan, lambda: start)
    for number in range(1, plan.federation.training.rounds + 1):
        play_round(store, plan, number, record.weights, learners)
        record = close_round(store, plan, number, record.weights)
    return store


def final(store: Store, plan: Plan) -> bytes:
    return get_bytes(store, history(store, plan.run)[-1].weights)
