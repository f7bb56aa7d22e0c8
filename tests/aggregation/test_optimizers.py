from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, get_args

import msgspec
import numpy as np
import pytest

from fedpipe.aggregation.optimizers import SERVER_OPTIMIZERS, make_server_step
from fedpipe.federation.optimizers import Adagrad, Adam, OptimizerSettings, Sgd, Yogi
from tests.tff.oracle import SERVERS


def test_the_default_takes_the_aggregate() -> None:
    step = make_server_step(Sgd(learning_rate=1.0))
    assert step.replaces
    assert step.slots == ()
    np.testing.assert_array_equal(step.step(np.array([5.0]), np.array([7.0]), {}, 1)[0], [7.0])


def test_momentum_against_keras() -> None:
    """Keras's SGD with the gradient w - mean is an independent form of the same step."""
    keras = pytest.importorskip("keras")
    rate, momentum = 0.3, 0.9
    step = make_server_step(Sgd(learning_rate=rate, momentum=momentum))
    variable = keras.Variable(np.array([1.0, -2.0]), dtype="float64")
    optimizer = keras.optimizers.SGD(rate, momentum=momentum)
    optimizer.build([variable])
    ours, state = np.array([1.0, -2.0]), {"velocity": np.zeros(2)}
    rng = np.random.default_rng(1)
    for _ in range(5):
        aggregate = rng.normal(size=2)
        optimizer.apply([keras.ops.convert_to_tensor(variable.numpy() - aggregate)])
        ours, state = step.step(ours, aggregate, state, 1)
        np.testing.assert_allclose(ours, variable.numpy(), rtol=1e-6)


def test_by_hand() -> None:
    step = make_server_step(Sgd(learning_rate=0.5, momentum=0.5))
    ours, state = step.step(np.array([1.0]), np.array([3.0]), {"velocity": np.array([4.0])}, 1)
    assert state["velocity"] == 4.0  # (3 - 1) + 0.5 * 4
    assert ours == 3.0  # 1 + 0.5 * 4


CHANGES = np.random.default_rng(7).normal(size=(6, 5))


def trajectory(settings: OptimizerSettings, factors: Sequence[float] = (1.0,) * 6) -> list[Any]:
    """Weights after each of six steps, in float64."""
    first = make_server_step(settings)
    now = np.linspace(-1, 1, 5)
    state = {slot: np.full(5, first.starts.get(slot, 0.0)) for slot in first.slots}
    found = []
    for number, (change, factor) in enumerate(zip(CHANGES, factors, strict=True), 1):
        now, state = make_server_step(settings, factor).step(now, now + change, state, number)
        found.append(now)
    return found


@pytest.mark.parametrize("name", SERVERS)
def test_trajectories_of_tff(name: str) -> None:
    """The oracle's formulas, with which TFF's own optimizers are compared too (tests/tff/test_optimizers.py)."""
    given, formula = SERVERS[name]
    more = {} if given["name"] == "sgd" else {"formulas": "tff"}
    settings: Any = msgspec.convert({**given, **more}, OptimizerSettings)
    now, memory = np.linspace(-1, 1, 5), {}
    for number, (change, found) in enumerate(zip(CHANGES, trajectory(settings), strict=True), 1):
        now = formula(now, -change, memory, number)
        np.testing.assert_allclose(found, now, rtol=1e-12)


def by_the_paper(name: str, rate: float = 0.1, beta_2: float = 0.99, tau: float = 1e-3) -> list[Any]:
    """Reddi et al. 2021, Algorithm 2, one number after the other; Adagrad with beta_1 = 0 as in their section 4."""
    beta_1 = 0.0 if name == "adagrad" else 0.9
    now, m, v, found = list(np.linspace(-1, 1, 5)), [0.0] * 5, [tau**2] * 5, []
    for change in CHANGES:
        for k, delta in enumerate(change):
            m[k] = beta_1 * m[k] + (1 - beta_1) * delta
            if name == "adagrad":
                v[k] += delta**2
            elif name == "yogi":
                v[k] -= (1 - beta_2) * delta**2 * math.copysign(1, v[k] - delta**2)
            else:
                v[k] = beta_2 * v[k] + (1 - beta_2) * delta**2
            now[k] += rate * m[k] / (math.sqrt(v[k]) + tau)
        found.append(np.array(now))
    return found


@pytest.mark.parametrize("kind", [Adagrad, Adam, Yogi])
def test_the_papers_formulas_are_the_default(kind: Any) -> None:
    name = kind.__struct_config__.tag
    for found, expected in zip(trajectory(kind(learning_rate=0.1)), by_the_paper(name), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_nesterov_against_keras() -> None:
    keras = pytest.importorskip("keras")
    variable = keras.Variable(np.linspace(-1, 1, 5), dtype="float64")
    optimizer = keras.optimizers.SGD(0.3, momentum=0.9, nesterov=True)
    optimizer.build([variable])
    for change, found in zip(CHANGES, trajectory(Sgd(learning_rate=0.3, momentum=0.9, nesterov=True)), strict=True):
        optimizer.apply([keras.ops.convert_to_tensor(-change)])
        np.testing.assert_allclose(found, variable.numpy(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", [Sgd, Adagrad, Adam, Yogi])
def test_a_factor_scales_the_rate_alone(kind: Any) -> None:
    halved = trajectory(kind(learning_rate=0.2), (0.5,) * 6)
    np.testing.assert_allclose(halved, trajectory(kind(learning_rate=0.1)), rtol=1e-12)


def test_weights_that_never_change_stay() -> None:
    step = make_server_step(Adagrad(learning_rate=0.1, epsilon=0.0))
    moved, _ = step.step(np.ones(3), np.ones(3), {"squares": np.zeros(3)}, 1)
    np.testing.assert_array_equal(moved, np.ones(3))


def test_the_table() -> None:
    assert list(SERVER_OPTIMIZERS) == [kind.__struct_config__.tag for kind in get_args(OptimizerSettings)]
