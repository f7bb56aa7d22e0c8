"""Rules of every kind, registered for a test by the mechanism that the package's own rules use."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from fedpipe.aggregation import RULES, Columns, Distances, Rule
from fedpipe.aggregation.arithmetic import Array, Floats
from fedpipe.aggregation.rules.mean import mean
from fedpipe.federation.algorithms import OWN_RULES, Mean
from fedpipe.federation.names import Section


class Median(Section, frozen=True, kw_only=True, tag_field="name", tag="median"):
    """The median of each coordinate; every learner counts the same."""


class Closest(Section, frozen=True, kw_only=True, tag_field="name", tag="closest"):
    """The mean of the updates that are closest to all others, a simple relative of Krum."""

    share: float = 0.5


def median(_settings: Median) -> Columns:
    def combine(values: Sequence[Array], _weights: Sequence[float]) -> Floats:
        return np.median(np.asarray(values, np.float64), axis=0, overwrite_input=True)

    return Columns(combine)


def closest(settings: Closest) -> Distances:
    def weigh(distances: Floats, weights: Sequence[float]) -> Sequence[float]:
        count = max(1, round(len(weights) * settings.share))
        chosen = set(np.argsort(np.sqrt(distances).sum(axis=1), kind="stable")[:count].tolist())
        return [weight if k in chosen else 0.0 for k, weight in enumerate(weights)]

    return Distances(weigh, then=mean(Mean()))


@contextlib.contextmanager
def registered(**rules: Callable[..., Rule]) -> Iterator[None]:
    """Register rules by the tags of their settings, as `with registered(median=median)`."""
    before = dict(RULES)
    RULES.update(rules)
    try:
        yield
    finally:
        RULES.clear()
        RULES.update(before)


SETTINGS = (*(kind() for kind in OWN_RULES), Median(), Closest())
"""All rules of the registry and those of this module: the laws hold for each. Add settings without defaults by hand."""
