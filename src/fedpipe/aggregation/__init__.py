"""How updates become the next global weights.

    RULES               how the learners' floats are combined: `mean`
    SERVER_OPTIMIZERS   how the combination moves the global weights: `sgd`

Floats (weights, BatchNorm statistics) go through the rule. All other tensors are counters: the largest value over
the learners is taken, since a counter never runs backwards (for booleans: true when any is true).
"""

from __future__ import annotations

from fedpipe.aggregation.feeds import Source
from fedpipe.aggregation.optimizers import SERVER_OPTIMIZERS, ServerStep, sgd
from fedpipe.aggregation.rule import Rule
from fedpipe.aggregation.rules.mean import RULES, mean
from fedpipe.aggregation.streaming import Combined, combine
from fedpipe.aggregation.tree import Forest

__all__ = ["RULES", "SERVER_OPTIMIZERS", "Combined", "Forest", "Rule", "ServerStep", "Source", "combine", "mean", "sgd"]
