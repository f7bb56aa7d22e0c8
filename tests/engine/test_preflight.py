"""Checks before a run that concern budgets of private learners, and the model; others are tested where they are made."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedpipe.engine.preflight import Checked, check, check_budgets
from fedpipe.errors import FederationError, ModelError
from fedpipe.federation.federation import Federation
from tests.federations import make_federation
from tests.models import DENSE

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


def test_a_model_that_passed_on_the_same_examples_is_not_called_for(tmp_path: Path) -> None:
    """The notes are written by the real rehearsal, and any change of model, settings or examples asks for another."""
    uri, rng = str(tmp_path / "data.npz"), np.random.default_rng(0)
    asked: list[str] = []

    def call(function: Callable[..., Any], *arguments: Any, environment: str = "keras") -> Any:
        asked.append(function.__name__)
        return function(*arguments)

    def is_rehearsed(code: str = DENSE, first: float = 1.0, **more: Any) -> bool:
        x = rng.normal(size=(60, 4)).astype(np.float32)
        x[:] = first
        np.savez(uri, x=x, y=np.tile([0, 1, 2], 20))
        asked.clear()
        settings = {"training": {"rounds": 1, "batch_size": 4}, "export": "none", **more}
        findings = check(make_federation(data={"uri": uri}, **settings), code, uri, "", call)
        assert Checked("model", "15 parameters, input (None, 4), loss sparse_categorical_crossentropy") in findings
        return asked == ["rehearse"]

    assert is_rehearsed()
    assert not is_rehearsed()
    assert is_rehearsed(code=DENSE + "# another digest\n")
    assert is_rehearsed(first=2.0)
    assert is_rehearsed(training={"rounds": 1, "batch_size": 5})
    assert not is_rehearsed()


def test_a_mistake_is_found_each_time(tmp_path: Path) -> None:
    uri = str(tmp_path / "data.npz")
    np.savez(uri, x=np.zeros((60, 4), np.float32), y=np.tile([0, 1, 7], 20))
    for _ in range(2):
        with pytest.raises(ModelError, match="the labels range from 0 to 7"):
            check(make_federation(data={"uri": uri}), DENSE, uri, "")


def test_a_run_builds_the_model_in_its_other_processes_meanwhile(tmp_path: Path) -> None:
    """As many as learners can use at once; a model that has passed is built in all of them."""
    uri, asked, lock = str(tmp_path / "data.npz"), list[str](), threading.Lock()
    np.savez(uri, x=np.ones((60, 4), np.float32), y=np.tile([0, 1, 2], 20))

    def call(function: Callable[..., Any], *arguments: Any, environment: str = "keras") -> Any:
        with lock:
            asked.append(function.__name__)
            return function(*arguments)

    federation = make_federation(("a", "b"), data={"uri": uri}, training={"rounds": 1, "batch_size": 4, "seed": 3})
    check(federation, DENSE, uri, "", call, workers=8)
    assert sorted(asked) == ["rehearse", "warm"]
    asked.clear()
    check(federation, DENSE, uri, "", call, workers=8)
    assert asked == ["warm", "warm"]


def test_a_process_that_cannot_build_the_model_meanwhile_changes_no_message(tmp_path: Path) -> None:
    uri = str(tmp_path / "data.npz")
    np.savez(uri, x=np.ones((60, 4), np.float32), y=np.tile([0, 1, 2], 20))
    with pytest.raises(ModelError, match="returns int, not a Keras model"):
        check(make_federation(data={"uri": uri}), "def build():\n    return 3\n", uri, "", workers=4)
