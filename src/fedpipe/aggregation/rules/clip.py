"""Clipping: larger changes are scaled down to a norm."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from math import ceil

import numpy as np

from fedpipe.aggregation.geometry import Geometry
from fedpipe.aggregation.rule import Mixture
from fedpipe.aggregation.rules.composition import Step
from fedpipe.federation.rules import Clip


def clip(settings: Clip, _number: int) -> Step:
    r"""Make the step that clips changes from the global model.

    .. math:: w_k \leftarrow w + (w_k - w) \min\left(1, \frac{C}{\lVert w_k - w \rVert}\right)

    C is fixed, or the smallest of the round's norms that at least a share `quantile` of them does not exceed. The norm
    is that of all floats of the model together, scalars included.

    Source: Sun et al., "Can You Really Backdoor Federated Learning?", 2019, section 4; a quantile of the round's norms
    as in Allouah et al., "Adaptive Gradient Clipping for Robust Federated Learning", 2025.
    """

    def mix(geometry: Geometry, weights: Sequence[float]) -> Mixture:
        norms = geometry.norms
        if settings.quantile is None:
            most = settings.norm or 0.0
        else:
            most = float(np.sort(norms)[ceil(Fraction(repr(settings.quantile)) * len(norms)) - 1])
        kept = np.array([1.0 if norm <= most else most / norm for norm in norms])
        rows = np.zeros((geometry.size, len(geometry.squares)))
        np.fill_diagonal(rows, kept)
        rows[:, -1] = 1.0 - kept
        return Mixture(rows, tuple(weights))

    return Step(mix, settings.fewest)
