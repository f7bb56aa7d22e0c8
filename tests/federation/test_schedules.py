from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpipe import weights
from fedpipe.federation.schedules import Constant, Cosine, Schedule, StepDecay
from fedpipe.federation.training import Training
from fedpipe.rounds.history import history
from fedpipe.store import MemoryStore
from fedpipe.store.objects import get_bytes
from tests.federations import PlusOneLearner, make_federation, make_plan, play


@pytest.mark.parametrize(
    ("schedule", "factors"),
    [
        (Constant(), [1, 1, 1, 1, 1, 1, 1, 1]),
        (Constant(warm_up=4), [0.25, 0.5, 0.75, 1, 1, 1, 1, 1]),
        (StepDecay(every=2, by=0.5), [1, 1, 0.5, 0.5, 0.25, 0.25, 0.125, 0.125]),
        (StepDecay(every=3, by=0.1, warm_up=2), [0.5, 1, 1, 1, 1, 0.1, 0.1, 0.1]),
        (Cosine(), [(1 + math.cos(math.pi * k / 8)) / 2 for k in range(8)]),
        (Cosine(rounds=4), [1, (1 + math.sqrt(0.5)) / 2, 0.5, *[(1 - math.sqrt(0.5)) / 2] * 5]),
        (
            Cosine(least=0.2, warm_up=4),
            [0.25, 0.5, 0.75, 1, *(0.6 + 0.4 * math.cos(math.pi * k / 4) for k in range(4))],
        ),
    ],
)
def test_factors_of_eight_rounds(schedule: Schedule, factors: list[float]) -> None:
    assert [schedule.factor(number, 8) for number in range(1, 9)] == pytest.approx(factors, abs=1e-11)


@given(
    schedule=st.one_of(
        st.builds(Constant, warm_up=st.integers(0, 50)),
        st.builds(StepDecay, every=st.integers(1, 50), by=st.floats(1e-9, 1), warm_up=st.integers(0, 50)),
        st.builds(Cosine, least=st.floats(0, 0.99), rounds=st.integers(0, 50), warm_up=st.integers(0, 50)),
    ),
    number=st.integers(1, 10_000),
    rounds=st.integers(1, 10_000),
)
def test_a_rate_is_never_zero_nor_above_its_full_value(schedule: Any, number: int, rounds: int) -> None:
    """A rate of 0 would be that of model.py."""
    assert 0 < schedule.factor(number, rounds) <= 1
    training = Training(rounds=rounds, batch_size=1, learning_rate=0.5, schedule=schedule)
    assert training.at(number).learning_rate == 0.5 * schedule.factor(number, rounds) > 0


def test_the_server_follows_its_schedule(store: MemoryStore) -> None:
    """Learners add 2 to each weight in each round; the server goes there by 1, 1/2 and 1/4."""
    algorithm = {"name": "averaging", "schedule": {"name": "step", "every": 1, "by": 0.5}}
    plan = make_plan(make_federation(algorithm=algorithm))
    play(store, plan, {name: PlusOneLearner(2) for name in "abc"})
    found = [weights.loads(get_bytes(store, record.weights))["w"][0] for record in history(store, plan.run)]
    assert found == [0.0, 2.0, 3.0, 3.5]
