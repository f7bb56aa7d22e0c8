"""The aggregation rules, and the steps before them, one file each.

To add one, write its file here with a function from its settings (`federation/rules.py`) to a `Rule`. Then add a line
to `RULES`. A step before rules is a `Step`, with a line in `STEPS_BEFORE`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fedpipe.aggregation.rule import Rule
from fedpipe.aggregation.rules.bucketing import bucketing
from fedpipe.aggregation.rules.bulyan import bulyan
from fedpipe.aggregation.rules.centered_clip import centered_clip
from fedpipe.aggregation.rules.clip import clip
from fedpipe.aggregation.rules.composition import Step, preceded
from fedpipe.aggregation.rules.geometric_median import geometric_median
from fedpipe.aggregation.rules.krum import krum, multi_krum
from fedpipe.aggregation.rules.mean import mean
from fedpipe.aggregation.rules.median import median
from fedpipe.aggregation.rules.nearest_neighbour_mixing import nearest_neighbour_mixing
from fedpipe.aggregation.rules.trimmed_mean import trimmed_mean
from fedpipe.federation.algorithms import RuleSettings
from fedpipe.federation.names import tag_of
from fedpipe.federation.rules import StepBefore

RULES: dict[str, Callable[..., Rule]] = {
    "mean": mean,
    "median": median,
    "trimmed_mean": trimmed_mean,
    "krum": krum,
    "multi_krum": multi_krum,
    "bulyan": bulyan,
    "geometric_median": geometric_median,
    "centered_clip": centered_clip,
}
"""Rules by the `name` of their settings. A test may register a rule of its own: `tests/aggregation/registered.py`."""
STEPS_BEFORE: dict[str, Callable[..., Step]] = {
    "clip": clip,
    "nearest_neighbour_mixing": nearest_neighbour_mixing,
    "bucketing": bucketing,
}
"""Steps before a rule, by the `name` of their settings. Each also takes the number of the round."""


def make_rule(settings: RuleSettings, before: Sequence[StepBefore] = (), number: int = 0) -> Rule:
    """Make the rule that the federation file names, with the steps before it; the others are TFF's.

    Args:
        settings: of the rule.
        before: settings of the steps that change updates first, in their order.
        number: the round, on which the draws of a step may depend.
    """
    steps = [STEPS_BEFORE[tag_of(step)](step, number) for step in before]
    return preceded(steps, RULES[tag_of(settings)](settings))
