"""All rules, with and without steps before them, and one that is registered as the package's own are."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from fedpipe.aggregation import RULES, Distances, Rule, make_rule
from fedpipe.aggregation.geometry import Geometry
from fedpipe.aggregation.rule import Mixture, chosen
from fedpipe.aggregation.rules.mean import AVERAGE
from fedpipe.federation.names import Section, tag_of
from fedpipe.federation.rules import (
    Bucketing,
    Bulyan,
    CenteredClip,
    Clip,
    GeometricMedian,
    Krum,
    Mean,
    Median,
    MultiKrum,
    NearestNeighbourMixing,
    TrimmedMean,
)


class Closest(Section, frozen=True, kw_only=True, tag_field="name", tag="closest"):
    """The mean of the updates that are closest to all others, by their examples; a relative of Krum."""

    share: float = 0.5


def closest(settings: Closest) -> Distances:
    def mix(geometry: Geometry, weights: Sequence[float]) -> Mixture:
        count = max(1, round(len(weights) * settings.share))
        near = set(np.argsort(np.sqrt(geometry.distances).sum(axis=1), kind="stable")[:count].tolist())
        return chosen([weight if k in near else 0.0 for k, weight in enumerate(weights)], geometry)

    return Distances(mix, then=AVERAGE)


@contextlib.contextmanager
def registered(**rules: Callable[..., Rule]) -> Iterator[None]:
    """Register rules by the tags of their settings, as `with registered(closest=closest)`."""
    before = dict(RULES)
    RULES.update(rules)
    try:
        yield
    finally:
        RULES.clear()
        RULES.update(before)


class Case(NamedTuple):
    """A rule, and the steps before it.

    Args:
        rule: its settings.
        before: settings of the steps.
        byzantine: of ten updates, those that may be arbitrary; 0: none.
        fixed: has a length of its own, so the result of updates that are scaled is not the scaled result.
    """

    rule: Any
    before: tuple[Any, ...] = ()
    byzantine: int = 0
    fixed: bool = False

    def make(self, number: int = 0) -> Rule:
        return make_rule(self.rule, self.before, number)

    @property
    def name(self) -> str:
        return "-".join(tag_of(part) for part in (*self.before, self.rule))


MIXING = NearestNeighbourMixing(byzantine=1)
CASES = (
    Case(Mean()),
    Case(Median(), byzantine=4),
    Case(TrimmedMean(share=0.34), byzantine=2),
    Case(Krum(byzantine=0)),
    Case(MultiKrum(byzantine=0, keep=2)),
    Case(Bulyan(byzantine=0)),
    Case(GeometricMedian(), byzantine=4),
    Case(CenteredClip(norm=2000.0), byzantine=2, fixed=True),
    Case(Closest(), byzantine=2),
    Case(Mean(), (Clip(quantile=0.5),), byzantine=2),
    Case(Median(), (Clip(norm=2000.0),), byzantine=4, fixed=True),
    Case(TrimmedMean(share=0.34), (MIXING,), byzantine=1),
    Case(Median(), (Bucketing(size=2),), byzantine=2),
    Case(GeometricMedian(), (Clip(quantile=0.5), MIXING, Bucketing(size=2)), byzantine=1),
)
"""All rules of the registry, and those of this module: the laws hold for each with three updates or more."""
EACH_KIND = (CASES[0], CASES[1], CASES[8], CASES[-1])
"""Sums, columns, distances, and mixtures."""
SURROUNDED = (
    *(case for case in CASES if case.byzantine),
    Case(Krum(byzantine=3), byzantine=3),
    Case(MultiKrum(byzantine=3), byzantine=3),
    Case(Bulyan(byzantine=1), byzantine=1),
    Case(Krum(byzantine=2), (NearestNeighbourMixing(byzantine=2),), byzantine=2),
    Case(Bulyan(byzantine=1), (Clip(quantile=0.5),), byzantine=1),
    Case(CenteredClip(norm=2000.0, iterations=10), (NearestNeighbourMixing(byzantine=3),), byzantine=3, fixed=True),
)
"""Rules that some of ten updates cannot move far."""
