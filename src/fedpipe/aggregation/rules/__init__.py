"""The aggregation rules, one file each.

To add one, write its file here with a function from its settings (`federation/algorithms.py`) to a `Rule`, and add a
line to `RULES`.
"""

from __future__ import annotations

from collections.abc import Callable

from fedpipe.aggregation.rule import Rule
from fedpipe.aggregation.rules.mean import mean
from fedpipe.federation.algorithms import RuleSettings
from fedpipe.federation.names import tag_of

RULES: dict[str, Callable[..., Rule]] = {"mean": mean}
"""Rules by the `name` of their settings. A test may register a rule of its own: `tests/aggregation/registered.py`."""


def make_rule(settings: RuleSettings) -> Rule:
    """Make the rule that the federation file names; the others are TFF's."""
    return RULES[tag_of(settings)](settings)
