"""A short form of `benchmarks/robustness.py`: hostile learners that know all others."""

from __future__ import annotations

import functools

import pytest
from benchmarks.attacks import ATTACKS, SHARDS, Data, accuracy, dealt
from benchmarks.robustness import GUARDED, MOMENTUM, RULES, moved, ours

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


@pytest.mark.parametrize("attack", ATTACKS)
def test_with_skewed_shards_the_guarded_rule_and_momentum_are_near_the_unattacked_mean(attack: str) -> None:
    """Momentum makes up for the small steps of rules that trim, which opposite updates make smaller still."""
    guarded = moved(ours(*RULES[GUARDED]), MOMENTUM)
    found = accuracy(guarded, shards("Dirichlet 0.3"), attack, ROUNDS["Dirichlet 0.3"])
    assert found >= reached("mean", "Dirichlet 0.3", "none") - 0.03


def test_skewed_shards_and_krum_do_not_go_together() -> None:
    """Why docs/aggregation.md advises against it: classes that the chosen learner lacks are lost."""
    assert reached("krum", "Dirichlet 0.3", "none") < reached("mean", "Dirichlet 0.3", "none") - 0.2
