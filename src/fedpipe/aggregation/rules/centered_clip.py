"""Centred clipping: a mean of changes that are clipped around the last result."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedpipe.aggregation.geometry import Geometry
from fedpipe.aggregation.rule import Distances, Mixture
from fedpipe.aggregation.rules.mean import AVERAGE
from fedpipe.federation.rules import CenteredClip


def centered_clip(settings: CenteredClip) -> Distances:
    r"""Make centred clipping.

    .. math:: v \leftarrow v + \frac{1}{n} \sum_k (w_k - v) \min\left(1, \frac{\tau}{\lVert w_k - v \rVert}\right)

    The first centre is the global model that the updates began with, which is the result of the round before. All
    learners weigh the same.

    Source: Karimireddy, He, Jaggi, "Learning from History for Byzantine Robust Optimization", 2021, Algorithm 2.
    """

    def mix(geometry: Geometry, _weights: Sequence[float]) -> Mixture:
        count = geometry.size
        shares = np.zeros(len(geometry.squares))
        shares[-1] = 1.0
        for _ in range(settings.iterations):
            far = np.sqrt(geometry.squares_to(shares))
            pulls = np.minimum(1.0, settings.norm / np.maximum(far, settings.norm)) / count
            shares *= 1.0 - min(1.0, float(pulls.sum()))
            shares[:count] += pulls
        return Mixture(shares[None] / shares.max(), (1.0,))

    return Distances(mix, then=AVERAGE, from_base=True, fewest=settings.fewest)
