"""The median of each coordinate."""

from __future__ import annotations

from collections.abc import Sequence

from fedpipe.aggregation.arithmetic import Array, Floats
from fedpipe.aggregation.rule import Columns
from fedpipe.aggregation.sorting import median_of
from fedpipe.federation.rules import Median


def median(_settings: Median) -> Columns:
    r"""Make the median of each coordinate; of an even number of values, the mean of the two in the middle.

    .. math:: \bar w_c = \mathrm{med}_k \, w_{k,c}

    All learners weigh the same, whatever they claim. Source: Yin et al., "Byzantine-Robust Distributed Learning:
    Towards Optimal Statistical Rates", 2018, definition 1.
    """
    return Columns(_combine)


def _combine(values: Sequence[Array], _weights: Sequence[float]) -> Floats:
    return median_of(values)
