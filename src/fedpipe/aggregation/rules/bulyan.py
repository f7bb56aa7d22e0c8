"""Bulyan: Krum chooses, then a mean around the median of each coordinate."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedpipe.aggregation.arithmetic import Array, Floats
from fedpipe.aggregation.geometry import Geometry
from fedpipe.aggregation.rule import Columns, Distances, Mixture, chosen
from fedpipe.aggregation.rules.krum import scores_of
from fedpipe.aggregation.sorting import median_of, ranked
from fedpipe.federation.rules import Bulyan


def bulyan(settings: Bulyan) -> Distances:
    """Make Bulyan, in two parts.

    1. Krum chooses one update, which is set aside, until n - 2f are chosen. A score counts the r - f - 2 nearest of the
       r updates that are left; one at least, where the paper leaves it open.
    2. Of each coordinate, the n - 4f chosen values nearest to their median are averaged. Of values that are equally
       near, the smaller counts.

    Source: El Mhamdi et al., "The Hidden Vulnerability of Distributed Learning in Byzantium", 2018, section 4.
    """

    def mix(geometry: Geometry, _weights: Sequence[float]) -> Mixture:
        first = _selected(geometry.distances, settings.byzantine)
        return chosen([float(k in first) for k in range(geometry.size)], geometry)

    def combine(values: Sequence[Array], _weights: Sequence[float]) -> Floats:
        return nearest_mean(values, max(1, len(values) - 2 * settings.byzantine))

    return Distances(mix, then=Columns(combine), fewest=settings.fewest)


def _selected(distances: Floats, byzantine: int) -> list[int]:
    left, found = list(range(len(distances))), list[int]()
    while len(found) < max(1, len(distances) - 2 * byzantine):
        if len(left) == 1:
            return [*found, *left]
        scores = scores_of(distances[np.ix_(left, left)], byzantine)
        found.append(left.pop(int(scores.argmin())))
    return found


def nearest_mean(values: Sequence[Array], count: int) -> Floats:
    """Return the mean of those `count` values of each coordinate that are nearest to its median.

    >>> nearest_mean([np.array([x]) for x in (9.0, 1.0, 2.0, 3.0, 100.0)], 3)
    array([2.])
    """
    ordered = [part.astype(np.float64) for part in ranked(values, 0, len(values))]
    median = median_of(values)
    first = np.zeros(median.shape, np.intp)  # nearest values are neighbours in the order: find the first of them
    for start in range(len(ordered) - count):
        first += ordered[start + count] - median < median - ordered[start]
    total = np.zeros(median.shape)
    for rank, part in enumerate(ordered):
        np.add(total, part, out=total, where=(first <= rank) & (rank < first + count))
    total /= count
    return total
