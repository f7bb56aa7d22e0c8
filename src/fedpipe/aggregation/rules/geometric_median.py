"""The geometric median: the point with the least sum of distances from all updates."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedpipe.aggregation.geometry import Geometry
from fedpipe.aggregation.rule import Distances, Mixture, chosen
from fedpipe.aggregation.rules.mean import AVERAGE
from fedpipe.federation.rules import GeometricMedian

_STILL = 1e-15
"""Change of an update's share below which further steps change nothing."""


def geometric_median(settings: GeometricMedian) -> Distances:
    r"""Make RFA: the smoothed algorithm of Weiszfeld.

    .. math:: z \leftarrow \frac{\sum_k \beta_k w_k}{\sum_k \beta_k}, \quad
        \beta_k = \frac{1}{\max(\nu, \lVert z - w_k \rVert)}

    Two deviations. All learners weigh the same, so a claim of many examples moves nothing. The first shares follow from
    each update's median distance to the others: a start at the mean is as far away as the farthest update.

    Source: Pillutla, Kakade, Harchaoui, "Robust Aggregation for Federated Learning", 2022, Algorithm 2.
    """
    smoothing = settings.smoothing

    def mix(geometry: Geometry, _weights: Sequence[float]) -> Mixture:
        pulls = 1 / np.maximum(smoothing, np.sqrt(np.median(geometry.distances, axis=1)))
        shares = pulls / pulls.sum()
        points = np.zeros(len(geometry.squares))
        for _ in range(settings.iterations):
            points[: geometry.size] = shares
            pulls = 1 / np.maximum(smoothing, np.sqrt(geometry.squares_to(points)))
            before, shares = shares, pulls / pulls.sum()
            if np.abs(shares - before).max() < _STILL:
                break
        return chosen((pulls / pulls.max()).tolist(), geometry)

    return Distances(mix, then=AVERAGE, from_base=True, fewest=settings.fewest)
