"""How updates become the next global weights.

    RULES               how the learners' floats are combined: `mean`
    SERVER_OPTIMIZERS   how the combination moves the global weights: `sgd`

Floats (weights, BatchNorm statistics) go through the rule. All other tensors are counters: the largest value over
the learners is taken, since a counter never runs backwards (for booleans: true when any is true).
"""

from __future__ import annotations

from fedpipe.aggregation.feeds import Source
from fedpipe.aggregation.forest import Forest
from fedpipe.aggregation.rules import RULES, Rule, mean
from fedpipe.aggregation.server import SERVER_OPTIMIZERS, ServerStep, sgd
from fedpipe.aggregation.streaming import Combined, combine

__all__ = ["RULES", "SERVER_OPTIMIZERS", "Combined", "Forest", "Rule", "ServerStep", "Source", "combine", "mean", "sgd"]
