"""Aggregation: from a round's updates to the next global weights.

    RULES               how the learners' floats are combined: `mean`, `krum`; each rule is of a kind (`rule.py`)
    STEPS_BEFORE        what changes the updates before: `clip`
    SERVER_OPTIMIZERS   how the combination moves the global weights: `sgd`

Floats (weights, BatchNorm statistics) go through the rule. All other tensors are counters: the largest value over
the updates counts, because counters never decrease (for booleans: true when any is true).
"""

from __future__ import annotations

from fedpipe.aggregation.feeds import Source
from fedpipe.aggregation.memory import combine_arrays
from fedpipe.aggregation.norms import Bounds, Norms, outliers
from fedpipe.aggregation.optimizers import SERVER_OPTIMIZERS, ServerStep, make_server_step, sgd
from fedpipe.aggregation.rule import Columns, Distances, Rule, Sums
from fedpipe.aggregation.rules import RULES, STEPS_BEFORE, make_rule
from fedpipe.aggregation.streaming import Combined, TooFewError, combine
from fedpipe.aggregation.tree import Forest

__all__ = [
    "RULES", "SERVER_OPTIMIZERS", "STEPS_BEFORE", "Bounds", "Columns", "Combined", "Distances", "Forest", "Norms",
    "Rule", "ServerStep", "Source", "Sums", "TooFewError", "combine", "combine_arrays", "make_rule",
    "make_server_step", "outliers", "sgd",
]  # fmt: skip
