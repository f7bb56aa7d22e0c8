"""Settings of fedpipe's own rules of aggregation, and of the steps that change updates before a rule.

Each knows how many updates it needs: `fewest` for its guarantee to hold.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from math import ceil
from typing import Annotated

from msgspec import Meta

from fedpipe.federation.names import (
    LARGE,
    MOST_LEARNERS,
    InnerShare,
    Learners,
    PositiveAmount,
    Section,
    Seed,
)

Byzantine = Annotated[
    int, Meta(ge=0, le=MOST_LEARNERS, description="learners f whose updates may be arbitrary, at most")
]
MOST_ITERATIONS = 10**5
Iterations = Annotated[int, Meta(ge=1, le=MOST_ITERATIONS, description="steps towards the result")]


class RuleSection(Section, frozen=True, kw_only=True):
    """A rule that holds for any number of updates, unless it says otherwise."""

    @property
    def fewest(self) -> int:
        """Return the fewest updates that it needs."""
        return 1


class Mean(RuleSection, frozen=True, kw_only=True, tag_field="name", tag="mean"):
    """Averages all updates (McMahan et al. 2017)."""


class Median(RuleSection, frozen=True, kw_only=True, tag_field="name", tag="median"):
    """Takes the median of each coordinate (Yin et al. 2018); all learners weigh the same."""


class TrimmedMean(RuleSection, frozen=True, kw_only=True, tag_field="name", tag="trimmed_mean"):
    """Averages each coordinate without its extremes (Yin et al. 2018); all learners weigh the same."""

    share: Annotated[
        float,
        Meta(gt=0, lt=0.5, description="share of the values cut off at each end, rounded down to whole learners"),
    ]

    @property
    def fewest(self) -> int:
        """Return the fewest updates that it needs: of fewer, none would be cut off, and any could decide.

        >>> TrimmedMean(share=0.2).fewest, TrimmedMean(share=0.3).fewest
        (5, 4)
        """
        return ceil(1 / Fraction(repr(self.share)))


class Krum(RuleSection, frozen=True, kw_only=True, tag_field="name", tag="krum"):
    """Takes the update that is closest to its nearest n - f - 2 others (Blanchard et al. 2017)."""

    byzantine: Byzantine

    @property
    def fewest(self) -> int:
        """Return the fewest updates that it needs: 2 f + 3."""
        return 2 * self.byzantine + 3


class MultiKrum(RuleSection, frozen=True, kw_only=True, tag_field="name", tag="multi_krum"):
    """Averages the updates that Krum ranks first (Blanchard et al. 2017); all learners weigh the same."""

    byzantine: Byzantine
    keep: Annotated[Learners, Meta(description="updates to average; 0: n - f - 2")] = 0

    @property
    def fewest(self) -> int:
        """Return the fewest updates that it needs: 2 f + 3, and f more than it keeps."""
        return max(2 * self.byzantine + 3, self.keep + self.byzantine)


class Bulyan(RuleSection, frozen=True, kw_only=True, tag_field="name", tag="bulyan"):
    """Chooses n - 2f updates by Krum, then averages those values of a coordinate that are nearest to its median.

    Source: El Mhamdi et al. 2018.
    """

    byzantine: Byzantine

    @property
    def fewest(self) -> int:
        """Return the fewest updates that it needs: 4 f + 3."""
        return 4 * self.byzantine + 3


class GeometricMedian(RuleSection, frozen=True, kw_only=True, tag_field="name", tag="geometric_median"):
    """Finds the point with the least sum of distances (RFA, Pillutla et al. 2022); all learners weigh the same."""

    iterations: Annotated[Iterations, Meta(description="steps of Weiszfeld's algorithm at most; it ends earlier")] = (
        1000
    )
    smoothing: Annotated[
        float, Meta(gt=0, le=LARGE, description="distance below which an update's pull no longer grows")
    ] = 1e-6


class CenteredClip(RuleSection, frozen=True, kw_only=True, tag_field="name", tag="centered_clip"):
    """Averages updates that are clipped around the result of the step before (Karimireddy et al. 2021).

    The first centre is the global model. All learners weigh the same.
    """

    norm: Annotated[PositiveAmount, Meta(description="largest distance from the centre that counts")]
    iterations: Iterations = 3


OwnRule = Mean | Median | TrimmedMean | Krum | MultiKrum | Bulyan | GeometricMedian | CenteredClip


class Clip(Section, frozen=True, kw_only=True, tag_field="name", tag="clip"):
    """Scales larger changes from the global model down to a norm: fixed, or a quantile of the round's norms."""

    norm: Annotated[PositiveAmount | None, Meta(description="largest norm; none: `quantile` decides")] = None
    quantile: Annotated[
        InnerShare | None, Meta(description="share of the round's updates that keep their norm; none: `norm` decides")
    ] = None

    def fewest(self, further: int) -> int:
        """Return the fewest updates that it needs, if what follows needs `further`."""
        return further


class NearestNeighbourMixing(Section, frozen=True, kw_only=True, tag_field="name", tag="nearest_neighbour_mixing"):
    """Replaces each update by the mean of its n - f nearest, itself included (Allouah et al. 2023).

    All learners weigh the same.
    """

    byzantine: Byzantine

    def fewest(self, further: int) -> int:
        """Return the fewest updates that it needs, if what follows needs `further`: more than 2 f."""
        return max(2 * self.byzantine + 1, further)


class Bucketing(Section, frozen=True, kw_only=True, tag_field="name", tag="bucketing"):
    """Averages updates in buckets, drawn in each round, so that fewer and more similar ones follow.

    All buckets weigh the same. A `byzantine` of what follows counts buckets. Source: Karimireddy et al. 2022.
    """

    size: Annotated[int, Meta(ge=2, le=MOST_LEARNERS, description="updates in a bucket; the last one may have fewer")]
    seed: Annotated[Seed, Meta(description="seed of the draws")] = 0

    def fewest(self, further: int) -> int:
        """Return the fewest updates that it needs, if what follows needs `further`."""
        return (further - 1) * self.size + 1


StepBefore = Clip | NearestNeighbourMixing | Bucketing


def fewest_updates(before: Sequence[StepBefore], rule: OwnRule) -> int:
    """Return the fewest updates of a round with which a rule's guarantee holds.

    >>> fewest_updates([], Krum(byzantine=2)), fewest_updates([Bucketing(size=2)], Krum(byzantine=1))
    (7, 9)
    >>> fewest_updates([Clip(norm=1.0), NearestNeighbourMixing(byzantine=3)], Median())
    7
    """
    needed = rule.fewest
    for step in reversed(before):
        needed = step.fewest(needed)
    return needed
