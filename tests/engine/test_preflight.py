"""Checks before a run that concern the budgets of private learners; the others are tested where they are made."""

from __future__ import annotations

from typing import Any

import pytest

from fedpipe.engine.preflight import check_budgets
from fedpipe.errors import FederationError
from fedpipe.federation.federation import Federation
from tests.federations import make_federation

PRIVACY = {"noise_multiplier": 1.0, "l2_norm_clip": 1.0, "microbatches": 16, "delta": 1e-4, "target_epsilon": 8.0}
SIZES = {"a": 194, "b": 194}


def federation(**privacy: Any) -> Federation:
    """The second of two learners trains privately: in rounds 2 and 4."""
    return make_federation(
        learners=[{"name": "a"}, {"name": "b", "privacy": {**PRIVACY, **privacy}}],
        training={"rounds": 4, "batch_size": 16, "local_epochs": 3},
        algorithm={"name": "collective"},
    )


def test_the_cost_of_a_run_is_shown() -> None:
    (found,) = check_budgets(federation(), SIZES, "memory://budgets")
    assert found.subject == "b"
    assert found.what.startswith("epsilon 0 of 8 is spent; ")
    assert found.what.endswith(" after this run")
    (found,) = check_budgets(federation(target_epsilon=4.0), SIZES, "memory://budgets")
    assert found.what == "epsilon 0 of 4 is spent; this run reaches the target, and later trainings are refused"


@pytest.mark.parametrize(
    ("privacy", "message"),
    [
        (
            {"target_epsilon": 0.5},
            r"learners\[1\]\.privacy\.target_epsilon: the next training of b would bring epsilon from 0 to",
        ),
        ({"delta": 0.01}, r"learners\[1\]\.privacy\.delta: 0\.01 is not below 1 / 194 train examples of b"),
    ],
    ids=["a target that one training exceeds", "a delta that protects nobody"],
)
def test_privacy_that_cannot_be_kept(privacy: dict[str, float], message: str) -> None:
    with pytest.raises(FederationError, match=message) as caught:
        check_budgets(federation(**privacy), SIZES, "memory://budgets")
    assert caught.value.exit_code == 2


def test_learners_whose_examples_are_not_known_are_left_out() -> None:
    assert check_budgets(federation(delta=0.01), {"a": 194}, "memory://budgets") == []
