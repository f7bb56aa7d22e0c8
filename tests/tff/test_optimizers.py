"""TFF's optimizers of the federation file's settings, against their formulas."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fedpipe.engine.workers import Worker
from fedpipe.errors import ModelError
from tests.tff import inside
from tests.tff.oracle import SERVERS

pytestmark = [pytest.mark.heavy, pytest.mark.xdist_group("tff")]

RANDOM = np.random.default_rng(5)
START = RANDOM.normal(size=6)
GRADIENTS = RANDOM.normal(size=(3, 6))


@pytest.mark.parametrize("name", SERVERS)
def test_steps_are_those_of_the_formulas(name: str, tff: Worker) -> None:
    settings, step = SERVERS[name]
    now, memory = START, {}
    found = tff.call(inside.stepped, settings, START.tolist(), GRADIENTS.tolist())
    for number, (gradient, weights) in enumerate(zip(GRADIENTS, found, strict=True), 1):
        now = step(now, gradient, memory, number)
        np.testing.assert_allclose(weights, now, atol=1e-5)


def test_the_proximal_form_pulls_towards_the_first_weights(tff: Worker) -> None:
    """Li et al. 2020: each gradient gets `mu (w - w0)`, which is zero at the first step."""
    settings, step = SERVERS["momentum"]
    now, memory = START, {}
    found = tff.call(inside.stepped, settings, START.tolist(), GRADIENTS.tolist(), 0.8)
    for number, (gradient, weights) in enumerate(zip(GRADIENTS, found, strict=True), 1):
        now = step(now, gradient + 0.8 * (now - START), memory, number)
        np.testing.assert_allclose(weights, now, atol=1e-5)


class TestCompiledOptimizers:
    @pytest.mark.parametrize(
        ("name", "config", "rate", "settings"),
        [
            ("SGD", {"learning_rate": 0.25, "momentum": 0.5}, 0.0,
             {"name": "sgd", "learning_rate": 0.25, "momentum": 0.5, "nesterov": False}),
            ("SGD", {"learning_rate": 0.25}, 0.5, {"name": "sgd", "learning_rate": 0.5, "momentum": 0.0, "nesterov": False}),
            ("Adam", {"learning_rate": 0.25, "beta_1": 0.5, "beta_2": 0.75, "epsilon": 0.125}, 0.0,
             {"name": "adam", "learning_rate": 0.25, "beta_1": 0.5, "beta_2": 0.75, "epsilon": 0.125, "formulas": None}),
            ("Adagrad", {"learning_rate": 0.25, "initial_accumulator_value": 0.5, "epsilon": 0.125}, 0.0,
             {"name": "adagrad", "learning_rate": 0.25, "initial_preconditioner": 0.5, "epsilon": 0.125,
              "formulas": None}),
        ],
    )  # fmt: skip
    def test_keep_their_settings(
        self, name: str, config: dict[str, Any], rate: float, settings: dict[str, Any], tff: Worker
    ) -> None:
        assert tff.call(inside.settings_of, name, config, rate) == settings

    @pytest.mark.parametrize(
        ("name", "config", "message"),
        [
            ("RMSprop", {"learning_rate": 0.1}, "no counterpart of the compiled optimizer, RMSprop"),
            ("SGD", {"learning_rate": 0.1, "nesterov": True}, "no counterpart of the compiled optimizer, SGD"),
            ("Adam", {"learning_rate": 0.1, "amsgrad": True}, "no counterpart of the compiled optimizer, Adam"),
            ("SGD", {"learning_rate": 0.1, "clipnorm": 1.0}, "SGD with clipnorm"),
            ("SGD", {"learning_rate": {"class_name": "ExponentialDecay", "config": {
                "initial_learning_rate": 0.1, "decay_steps": 1, "decay_rate": 0.5}}}, "SGD with a schedule"),
        ],
    )  # fmt: skip
    def test_those_that_tff_lacks_are_refused(
        self, name: str, config: dict[str, Any], message: str, tff: Worker
    ) -> None:
        with pytest.raises(ModelError, match=message) as caught:
            tff.call(inside.settings_of, name, config, 0.0)
        assert caught.value.remedy == "Name one: sgd, adagrad, adam, yogi."
