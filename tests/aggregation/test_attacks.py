"""A short form of `benchmarks/robustness.py`: hostile learners that know all others."""

from __future__ import annotations

import functools

import pytest
from benchmarks.attacks import ATTACKS, SHARDS, Data, accuracy, dealt
from benchmarks.robustness import GUARDED, RULES, ours

ROUNDS = {"iid": 20, "Dirichlet 0.3": 60}


@functools.cache
def shards(name: str) -> Data:
    return dealt(SHARDS[name])


@functools.cache
def reached(rule: str, name: str, attack: str) -> float:
    return accuracy(ours(*RULES[rule]), shards(name), attack, ROUNDS[name])


@pytest.mark.parametrize("attack", ATTACKS)
def test_with_equal_shards_the_guarded_rule_loses_at_most_three_points(attack: str) -> None:
    assert reached(GUARDED, "iid", attack) >= reached("mean", "iid", "none") - 0.03


@pytest.mark.parametrize("attack", ["label_flip", "scaling"])
def test_with_skewed_shards_the_guarded_rule_is_near_the_unattacked_mean(attack: str) -> None:
    found = reached(GUARDED, "Dirichlet 0.3", attack)
    assert found >= reached("mean", "Dirichlet 0.3", attack) + 0.1
    assert found >= reached("mean", "Dirichlet 0.3", "none") - 0.06


def test_skewed_shards_and_krum_do_not_go_together() -> None:
    """Why docs/aggregation.md advises against it: classes that the chosen learner lacks are lost."""
    assert reached("krum", "Dirichlet 0.3", "none") < reached("mean", "Dirichlet 0.3", "none") - 0.2
