"""Bucketing: means of a few updates that are drawn together."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from fedpipe.aggregation.geometry import Geometry
from fedpipe.aggregation.rule import Mixture
from fedpipe.aggregation.rules.composition import Step
from fedpipe.federation.rules import Bucketing


def bucketing(settings: Bucketing, number: int) -> Step:
    """Make the step that replaces updates by the means of buckets.

    The order of the updates is drawn by the seed and the round, and cut into buckets of `size`; the last one may have
    fewer. All buckets weigh the same.

    Source: Karimireddy, He, Jaggi, "Byzantine-Robust Learning on Heterogeneous Datasets via Bucketing", 2022,
    Algorithm 1.
    """

    def drawn(position: int) -> bytes:
        return hashlib.sha256(repr((settings.seed, "bucket", number, position)).encode()).digest()

    def mix(geometry: Geometry, _weights: Sequence[float]) -> Mixture:
        order = sorted(range(geometry.size), key=drawn)
        buckets = [order[start : start + settings.size] for start in range(0, len(order), settings.size)]
        rows = np.zeros((len(buckets), len(geometry.squares)))
        for row, bucket in zip(rows, buckets, strict=True):
            row[bucket] = 1.0
        return Mixture(rows, (1.0,) * len(buckets))

    return Step(mix, settings.fewest)
