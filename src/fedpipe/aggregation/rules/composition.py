"""Steps that change updates before a rule combines them, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from fedpipe.aggregation.geometry import Geometry, multiplied, normalised
from fedpipe.aggregation.rule import Distances, Mixture, Rule


class Step(NamedTuple):
    """A step before a rule.

    Args:
        mix: takes the distances between updates, or between the mixtures of the step before, and their weights.
        fewest: takes the fewest updates that the next step needs, and returns those that both need.
    """

    mix: Callable[[Geometry, Sequence[float]], Mixture]
    fewest: Callable[[int], int]


def preceded(steps: Sequence[Step], rule: Rule) -> Rule:
    """Return a rule that applies the steps, in their order, before it combines."""
    if not steps:
        return rule

    def mix(geometry: Geometry, weights: Sequence[float]) -> Mixture:
        mixture = found = mixes[0](geometry, weights)
        for each in mixes[1:]:
            geometry = geometry.mixed(found.rows)
            found = each(geometry, found.weights)
            mixture = _joined(mixture, found)
        return mixture

    mixes = [step.mix for step in steps]
    if isinstance(rule, Distances):
        mixes.append(rule.mix)
    fewest = rule.fewest
    for step in reversed(steps):
        fewest = step.fewest(fewest)
    then = rule.then if isinstance(rule, Distances) else rule
    return Distances(mix, then, from_base=True, fewest=fewest)


def _joined(first: Mixture, second: Mixture) -> Mixture:
    """Return mixtures of mixtures as those of updates; the base stays itself."""
    count, points = len(first.rows), first.rows.shape[1]
    shares = normalised(second.rows)
    rows = multiplied(shares[:, :count], normalised(first.rows))
    if shares.shape[1] > count:
        rows[:, points - 1] += shares[:, count]
    return Mixture(rows, second.weights)
