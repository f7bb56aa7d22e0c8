"""Builds TFF's aggregators from the rules of the federation file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from fedpipe.federation.algorithms import (
    AdaptiveNoise,
    Compressed,
    FixedNoise,
    Robust,
    RuleSettings,
    Secure,
    SecureNoise,
    TreeNoise,
)
from fedpipe.federation.rules import Mean
from fedpipe.frameworks import frameworks
from fedpipe.tff.runtime import federated

Specs = Sequence[tuple[str, tuple[int, ...]]]
"""Lists dtype and shape of each array."""


def make_factory(rule: RuleSettings, weighted: bool, expected: int, specs: Specs) -> Any:
    """Returns the `tff.aggregators` factory of a rule.

    Args:
        rule: rule of the federation file.
        weighted: whether learners are weighted by their examples.
        expected: number of learners in a round.
        specs: dtypes and shapes of the floats, for noise that is correlated over the rounds.
    """
    tff = federated()
    learning, private = tff.learning, tff.aggregators.DifferentiallyPrivateFactory
    match rule:
        case Mean():
            return tff.aggregators.MeanFactory() if weighted else tff.aggregators.UnweightedMeanFactory()
        case Robust() | Compressed() | Secure():
            make = {
                Robust: learning.robust_aggregator,
                Compressed: learning.compression_aggregator,
                Secure: learning.secure_aggregator,
            }
            return make[type(rule)](zeroing=rule.zeroing, clipping=rule.clipping, weighted=weighted)
        case FixedNoise():
            return private.gaussian_fixed(rule.noise_multiplier, expected, rule.clip)
        case AdaptiveNoise():
            inner = private.gaussian_adaptive(
                rule.noise_multiplier, expected, initial_l2_norm_clip=rule.initial_clip,
                target_unclipped_quantile=rule.quantile, learning_rate=rule.clip_rate,
            )  # fmt: skip
            return _zeroing(inner) if rule.zeroing else inner
        case TreeNoise():
            tensorflow, _ = frameworks()
            records = [tensorflow.TensorSpec(shape, dtype) for dtype, shape in specs]
            return private.tree_aggregation(rule.noise_multiplier, expected, rule.clip, records)
        case SecureNoise():
            # With TFF's zeroing, the compiled computation is nested too deeply for protobuf.
            return learning.ddp_secure_aggregator(rule.noise_multiplier, expected, bits=rule.bits, zeroing=False)


def _zeroing(inner: Any) -> Any:
    """Zeroes outliers first, with the constants of `tff.learning.dp_aggregator`."""
    aggregators = federated().aggregators
    norm = aggregators.PrivateQuantileEstimationProcess.no_noise(
        initial_estimate=10.0, target_quantile=0.98, learning_rate=math.log(10.0), multiplier=2.0, increment=1.0
    )
    return aggregators.zeroing_factory(norm, inner)
