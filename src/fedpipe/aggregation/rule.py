"""Kinds of rules, by the data that a rule needs of a round's updates.

    Sums        the weighted sum alone: updates may be added in any tree, before all of them have arrived
    Columns     all values of a coordinate: the median, the trimmed mean
    Distances   how far apart the updates are, to choose or weigh them first: Krum

Only a rule of sums may be given updates that were added before (`check_sums`). A rule combines floats; every counter
takes the largest value.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from fedpipe.aggregation.arithmetic import Array, Floats


@dataclass(frozen=True)
class Sums:
    """A rule that needs only the weighted sum of the updates.

    Args:
        finish: takes sum_k n_k w_k (float64, may be changed) and sum_k n_k; returns float64 of the same length. NaN and
            infinity must be kept.
    """

    finish: Callable[[Floats, float], Floats]


@dataclass(frozen=True)
class Columns:
    """A rule that needs all values of a coordinate at once, and treats each coordinate alone.

    Args:
        combine: takes one flat array per learner, in the order of their names and in the dtype of the model, and
            their weights. It returns float64 of the same length. The arrays are finite and read-only.
    """

    combine: Callable[[Sequence[Array], Sequence[float]], Floats]

    def combined(self, values: Sequence[Array], weights: Sequence[float]) -> Floats:
        """Combine one block of all updates.

        Raises:
            TypeError: the rule did not return one float64 per coordinate.
        """
        result = self.combine(values, weights)
        if result.dtype != np.float64 or result.shape != values[0].shape:
            raise TypeError(f"a rule of columns returned {result.dtype}{list(result.shape)}: return float64 per value")
        return result


@dataclass(frozen=True)
class Distances:
    """A rule that weighs the updates by the distances between them, before another rule combines those that count.

    Args:
        weigh: takes the squared Euclidean distances of all floats (float64, symmetric, in the order of the learners'
            names) and the learners' weights. It returns new weights, 0 for an update that does not count, and raises
            WeightsError when the updates are too few.
        then: combines the updates that count, floats and counters; an update without weight is not read again.
    """

    weigh: Callable[[Floats, Sequence[float]], Sequence[float]]
    then: Sums | Columns

    def weighed(self, distances: Floats, weights: Sequence[float]) -> list[float]:
        """Return the new weights.

        Raises:
            ValueError: the rule did not return a finite, positive weight or 0 per update, or nothing but 0.
        """
        result = [float(weight) for weight in self.weigh(distances, weights)]
        if len(result) != len(weights) or not all(np.isfinite(w) and w >= 0 for w in result) or not any(result):
            raise ValueError(f"a rule of distances returned the weights {result} for {len(weights)} updates")
        return result


Rule = Sums | Columns | Distances


def check_sums(rule: Rule) -> Sums:
    """Return a rule whose updates may be added before all have arrived.

    Raises:
        TypeError: the rule needs single updates.
    """
    if not isinstance(rule, Sums):
        raise TypeError(f"a rule of {type(rule).__name__.lower()} needs single updates: do not add them early")
    return rule
