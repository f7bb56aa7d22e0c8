"""Run-time settings over the federation file, and what differs between two plans."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from fedpipe.errors import InputError
from fedpipe.rounds.plan import Settings, differences, read_plan
from fedpipe.store import MemoryStore
from tests.federations import make_federation, make_plan

STOPPING = {"patience": 5, "metric": "loss", "min_delta": 0.5}


@pytest.mark.parametrize("name", ["rounds", "learning_rate", "local_epochs", "batch_size", "max_seconds"])
def test_a_setting_of_the_training(name: str) -> None:
    changed = Settings(**{name: 7}).applied(make_federation())
    assert changed == replace(make_federation(), training=replace(make_federation().training, **{name: 7}))


@pytest.mark.parametrize("name", ["min_learners", "deadline"])
def test_a_setting_of_the_quorum(name: str) -> None:
    changed = Settings(**{name: 3}).applied(make_federation())
    assert changed == replace(make_federation(), quorum=replace(make_federation().quorum, **{name: 3}))


def test_zero_is_what_the_file_says() -> None:
    federation = make_federation(training={"rounds": 3, "batch_size": 1, "early_stopping": STOPPING})
    assert Settings().applied(federation) == federation


@pytest.mark.parametrize("seconds", [0.0, 60.0])
def test_a_year_is_no_limit_of_time(seconds: float) -> None:
    federation = make_federation(training={"rounds": 3, "batch_size": 1, "max_seconds": seconds})
    assert Settings(max_seconds=366 * 86_400.0).applied(federation).training.max_seconds == 0


@pytest.mark.parametrize("quorum", [{}, {"min_learners": 2}])
def test_the_quorum_of_the_file_is_no_other_setting(quorum: dict[str, Any]) -> None:
    federation = make_federation(quorum=quorum)
    assert Settings(min_learners=2).applied(federation) == federation


def test_epochs_take_the_place_of_steps() -> None:
    federation = make_federation(training={"rounds": 3, "batch_size": 1, "local_steps": 9, "local_epochs": 0})
    training = Settings(local_epochs=2).applied(federation).training
    assert (training.local_epochs, training.local_steps) == (2, 0)


@pytest.mark.parametrize(("given", "metric", "delta"), [(None, "test_loss", 0.0), (STOPPING, "loss", 0.5)])
def test_patience_keeps_the_rest_of_early_stopping(given: Any, metric: str, delta: float) -> None:
    federation = make_federation(training={"rounds": 3, "batch_size": 1, "early_stopping": given})
    stopping = Settings(patience=2).applied(federation).training.early_stopping
    assert stopping is not None
    assert (stopping.patience, stopping.metric, stopping.min_delta) == (2, metric, delta)


@pytest.mark.parametrize("settings", [{"rounds": -1}, {"deadline": -0.5}, {"min_learners": 4}])
def test_settings_out_of_range(settings: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(settings))):
        Settings(**settings).applied(make_federation())


def test_as_many_as_there_are_may_be_asked_for() -> None:
    assert Settings(min_learners=3).applied(make_federation()).quorum.min_learners == 3


def test_differences_are_named_by_their_path() -> None:
    old = make_plan()
    more = make_federation(("a", "b", "c", "d"), training={"rounds": 4, "batch_size": 1})
    found = differences(old, make_plan(more))
    assert "training.rounds: 3 -> 4" in found
    assert "learners[3].name: absent -> d" in found
    assert differences(old, old) == []


def test_a_plan_is_found_by_its_digest(store: MemoryStore) -> None:
    plan = make_plan()
    assert plan.put(store) == plan.digest
    assert read_plan(store, plan.digest) == plan
