"""Settings that a simulation by TensorFlow Federated lacks are refused, not replaced."""

from __future__ import annotations

from typing import Any

import pytest

from fedpipe.errors import InputError
from fedpipe.steps.simulate import check_simulated
from tests.federations import make_federation
from tests.sessions.halves import federation_of

ADAM = {"name": "adam", "learning_rate": 0.1}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a rule": ({"rule": "median"}, "algorithm.rule"),
    "a step before a rule": ({"before": [{"name": "clip", "norm": 1}]}, "algorithm.rule"),
    "the paper's formulas": ({"server_optimizer": ADAM}, "algorithm.server_optimizer.formulas"),
    "Nesterov": ({"server_optimizer": {"momentum": 0.9, "nesterov": True}}, "algorithm.server_optimizer.formulas"),
    "a schedule": ({"schedule": {"name": "cosine"}}, "algorithm.schedule"),
}


@pytest.mark.parametrize(("algorithm", "where"), REFUSED.values(), ids=REFUSED.keys())
def test_refused(algorithm: dict[str, Any], where: str) -> None:
    with pytest.raises(InputError) as caught:
        check_simulated(make_federation(algorithm={"name": "averaging", **algorithm}))
    assert caught.value.where == where
    assert caught.value.remedy


def test_a_cut_network_is_refused() -> None:
    with pytest.raises(InputError) as caught:
        check_simulated(federation_of())
    assert caught.value.where == "algorithm"
    assert "split learning" in str(caught.value.remedy)


def test_a_schedule_of_the_learners_is_refused() -> None:
    training = {"rounds": 2, "batch_size": 1, "learning_rate": 0.1, "schedule": {"name": "cosine"}}
    with pytest.raises(InputError) as caught:
        check_simulated(make_federation(training=training))
    assert caught.value.where == "training.schedule"


@pytest.mark.parametrize(
    "algorithm",
    [
        {},
        {"server_optimizer": {"momentum": 0.9}},
        {"server_optimizer": {**ADAM, "formulas": "tff"}},
        {"engine": "tff", "rule": "robust", "server_optimizer": ADAM},
    ],
)
def test_what_it_has_is_accepted(algorithm: dict[str, Any]) -> None:
    check_simulated(make_federation(algorithm={"name": "averaging", **algorithm}))
