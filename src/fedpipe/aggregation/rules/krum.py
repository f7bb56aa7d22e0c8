"""Krum and Multi-Krum: the updates that are closest to most others."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedpipe.aggregation.arithmetic import Floats
from fedpipe.aggregation.geometry import Geometry
from fedpipe.aggregation.rule import Distances, Mixture, chosen
from fedpipe.aggregation.rules.mean import AVERAGE
from fedpipe.federation.rules import Krum, MultiKrum


def krum(settings: Krum) -> Distances:
    r"""Make Krum: the one update with the smallest score.

    .. math:: s(k) = \sum_{j \in N_k} \lVert w_k - w_j \rVert^2

    N_k are the n - f - 2 nearest others of k. Of equal scores, the first in the order of the learners' names counts.
    Source: Blanchard et al., "Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent", 2017, section 4.
    """

    def mix(geometry: Geometry, _weights: Sequence[float]) -> Mixture:
        scores = scores_of(geometry.distances, settings.byzantine)
        return best(geometry, scores, 1)

    return Distances(mix, then=AVERAGE, fewest=settings.fewest)


def multi_krum(settings: MultiKrum) -> Distances:
    """Make Multi-Krum: the mean of the `keep` updates with the smallest scores, each of the same weight.

    Source: Blanchard et al. 2017, section 5.
    """

    def mix(geometry: Geometry, _weights: Sequence[float]) -> Mixture:
        keep = settings.keep or max(1, geometry.size - settings.byzantine - 2)
        return best(geometry, scores_of(geometry.distances, settings.byzantine), keep)

    return Distances(mix, then=AVERAGE, fewest=settings.fewest)


def scores_of(distances: Floats, byzantine: int) -> Floats:
    """Return Krum's score of each update, of its n - f - 2 nearest others; of one at least.

    >>> scores_of(np.square(np.subtract.outer([0, 1, 3.0], [0, 1, 3.0])), 1)
    array([1., 1., 4.])
    """
    count = len(distances)
    nearest = max(1, count - byzantine - 2)
    others = np.sort(distances[~np.eye(count, dtype=bool)].reshape(count, count - 1), axis=1)
    scores: Floats = others[:, :nearest].sum(axis=1)
    return scores


def best(geometry: Geometry, scores: Floats, keep: int) -> Mixture:
    """Return the updates with the smallest scores, in the learners' order; ties go to the first."""
    first = np.argsort(scores, kind="stable")[:keep]
    return chosen([float(k in first) for k in range(geometry.size)], geometry)
