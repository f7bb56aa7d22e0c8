"""Kinds of rules, by the data that a rule needs of a round's updates.

    Sums        the weighted sum alone: updates may be added in any tree, before all of them have arrived
    Columns     all values of a coordinate: the median, the trimmed mean
    Distances   how far apart the updates are, to choose, weigh or mix them first: Krum

Only a rule of sums may be given updates that were added before (`check_sums`). A rule combines floats; every counter
takes the largest value.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np

from fedpipe.aggregation.arithmetic import Array, Floats
from fedpipe.aggregation.geometry import Geometry


@dataclass(frozen=True)
class Sums:
    """A rule that needs only the weighted sum of the updates.

    Args:
        finish: takes sum_k n_k w_k (float64, may be changed) and sum_k n_k; returns float64 of the same length. NaN and
            infinity must be kept.
        fewest: fewest updates for which the rule holds what it promises; see `Distances`.
    """

    finish: Callable[[Floats, float], Floats]
    fewest: int = 1


@dataclass(frozen=True)
class Columns:
    """A rule that needs all values of a coordinate at once, and treats each coordinate alone.

    Args:
        combine: takes one flat array per learner, in the order of their names, and their weights. The arrays have the
            dtype of the model, or float64 for mixtures. It returns float64 of the same length. The arrays are finite
            and read-only.
        fewest: fewest updates for which the rule holds what it promises; see `Distances`.
    """

    combine: Callable[[Sequence[Array], Sequence[float]], Floats]
    fewest: int = 1

    def combined(self, values: Sequence[Array], weights: Sequence[float]) -> Floats:
        """Combine one block of all updates.

        Raises:
            TypeError: the rule did not return one float64 per coordinate.
        """
        result = self.combine(values, weights)
        if result.dtype != np.float64 or result.shape != values[0].shape:
            raise TypeError(f"a rule of columns returned {result.dtype}{list(result.shape)}: return float64 per value")
        return result


_Update = TypeVar("_Update")


class Mixture(NamedTuple):
    """Weighted means of updates, and of the base from which they began.

    Args:
        rows: for each mixture its weights of the updates and, with a base, of the base, last. They are 0 or more.
        weights: how much each mixture counts.
    """

    rows: Floats
    weights: tuple[float, ...]

    def needed(self, updates: Sequence[_Update]) -> tuple[list[_Update], Mixture]:
        """Return the updates that some mixture needs, and the mixtures of these; with the base only if one needs it."""
        needed = [bool(column.any()) for column in self.rows.T]
        counted = [update for update, there in zip(updates, needed, strict=False) if there]
        return counted, self._replace(rows=self.rows[:, needed])

    def total(self) -> tuple[list[float], float]:
        """Return how much each update, and the base, counts in the sum of all mixtures, and the sum's weight.

        Rows that add up to the same number are not divided, so that whole numbers stay exact.
        """
        sums = self.rows.sum(axis=1)
        most = float(sums.max())
        counts = (self.rows * (np.array(self.weights) * (most / sums))[:, None]).sum(axis=0)
        return counts.tolist(), most * float(sum(self.weights))

    def applied(self, values: Sequence[Array]) -> list[Array]:
        """Return one block of each mixture, from that of all updates and the base; an update alone stays as it is."""
        found: list[Array] = []
        for row in self.rows:
            there = np.flatnonzero(row).tolist()
            if len(there) == 1:
                found.append(values[there[0]])
                continue
            mixed = np.zeros(values[0].shape)
            for position in there:
                mixed += row[position] * values[position].astype(np.float64)
            mixed /= row.sum()
            found.append(mixed)
        return found


def chosen(weights: Sequence[float], geometry: Geometry) -> Mixture:
    """Return the updates that have a weight, each for itself."""
    rows = np.eye(geometry.size, len(geometry.squares))
    counted = [k for k, weight in enumerate(weights) if weight]
    return Mixture(rows[counted], tuple(float(weights[k]) for k in counted))


@dataclass(frozen=True)
class Distances:
    """A rule that weighs or mixes the updates by the distances between them; another rule combines what comes out.

    Args:
        mix: takes the distances, in the order of the learners' names, and the learners' weights. It returns the
            mixtures that count; `chosen` makes them from weights.
        then: combines the mixtures. An update, and its counters, that no mixture needs is not read again.
        from_base: whether `mix` needs the changes from the base too.
        fewest: fewest updates for which the rule holds what it promises. A round with fewer cannot be combined.
    """

    mix: Callable[[Geometry, Sequence[float]], Mixture]
    then: Sums | Columns
    from_base: bool = False
    fewest: int = 1

    def mixed(self, geometry: Geometry, weights: Sequence[float]) -> Mixture:
        """Return the mixtures.

        Raises:
            ValueError: the rule did not return finite, positive weights, one for each mixture.
        """
        found = self.mix(geometry, weights)
        rows, counts = found.rows, np.array(found.weights)
        fits = rows.shape == (len(counts), len(geometry.squares)) and len(counts) > 0
        if not (fits and np.isfinite(rows).all() and (rows >= 0).all() and (rows.sum(axis=1) > 0).all()):
            raise ValueError(f"a rule of distances returned mixtures {rows.tolist()} of {geometry.size} updates")
        if not (np.isfinite(counts).all() and (counts > 0).all()):
            raise ValueError(f"a rule of distances returned the weights {counts.tolist()}")
        return found


Rule = Sums | Columns | Distances


def check_sums(rule: Rule) -> Sums:
    """Return a rule whose updates may be added before all have arrived.

    Raises:
        TypeError: the rule needs single updates.
    """
    if not isinstance(rule, Sums):
        raise TypeError(f"a rule of {type(rule).__name__.lower()} needs single updates: do not add them early")
    return rule
