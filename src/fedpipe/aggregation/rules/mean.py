"""The weighted mean."""

from __future__ import annotations

from fedpipe.aggregation.arithmetic import Floats
from fedpipe.aggregation.rule import Sums
from fedpipe.federation.rules import Mean


def mean(_settings: Mean) -> Sums:
    r"""Make the weighted mean in float64.

    .. math:: \bar w = \frac{\sum_k n_k w_k}{\sum_k n_k}

    Source: McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data", 2017,
    Algorithm 1.
    """
    return AVERAGE


def _divided(total: Floats, weight: float) -> Floats:
    total /= weight
    return total


AVERAGE = Sums(finish=_divided)
"""The mean, for rules that end in one."""
