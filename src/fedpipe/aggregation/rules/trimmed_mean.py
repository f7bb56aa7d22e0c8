"""The mean of each coordinate without its extremes."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from fedpipe.aggregation.arithmetic import Array, Floats
from fedpipe.aggregation.rule import Columns
from fedpipe.aggregation.sorting import mean_between
from fedpipe.federation.rules import TrimmedMean


def trimmed_mean(settings: TrimmedMean) -> Columns:
    r"""Make the mean of each coordinate without its k smallest and k largest values.

    .. math:: \bar w_c = \frac{1}{n - 2k} \sum_{j=k+1}^{n-k} w_{(j),c}, \quad k = \lfloor \beta n \rfloor

    All learners weigh the same, whatever they claim. Source: Yin et al., "Byzantine-Robust Distributed Learning:
    Towards Optimal Statistical Rates", 2018, definition 2.
    """

    def combine(values: Sequence[Array], _weights: Sequence[float]) -> Floats:
        cut = cut_off(settings.share, len(values))
        return mean_between(values, cut, len(values) - cut)

    return Columns(combine, fewest=settings.fewest)


def cut_off(share: float, count: int) -> int:
    """Return how many of `count` values are cut off at each end. The share is meant as it is written.

    >>> cut_off(0.25, 4), cut_off(0.29, 100), cut_off(0.2, 4)
    (1, 29, 0)
    """
    return int(Fraction(repr(share)) * count)
