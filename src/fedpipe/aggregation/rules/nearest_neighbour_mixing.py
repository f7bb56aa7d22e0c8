"""Mixing of nearest neighbours: each update becomes the mean of those around it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedpipe.aggregation.geometry import Geometry
from fedpipe.aggregation.rule import Mixture
from fedpipe.aggregation.rules.composition import Step
from fedpipe.federation.rules import NearestNeighbourMixing


def nearest_neighbour_mixing(settings: NearestNeighbourMixing, _number: int) -> Step:
    r"""Make the step that mixes nearest neighbours.

    .. math:: w_k \leftarrow \frac{1}{n - f} \sum_{j \in N_k} w_j

    N_k are the n - f updates that are nearest to k, with k itself. Of equally near ones, the first in the order of the
    learners' names counts. All mixtures weigh the same.

    Source: Allouah et al., "Fixing by Mixing: A Recipe for Optimal Byzantine ML under Heterogeneity", 2023,
    Algorithm 2.
    """

    def mix(geometry: Geometry, _weights: Sequence[float]) -> Mixture:
        count = geometry.size
        rows = np.zeros((count, len(geometry.squares)))
        for row, distances in zip(rows, geometry.distances, strict=True):
            row[np.argsort(distances, kind="stable")[: max(1, count - settings.byzantine)]] = 1.0
        return Mixture(rows, (1.0,) * count)

    return Step(mix, settings.fewest)
