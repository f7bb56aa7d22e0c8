"""Select the learners that a round asks, and find those that took part."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection

from msgspec.structs import replace

from fedpipe.federation.federation import Federation
from fedpipe.rounds.manifests import Record

SIMULATED = "simulation"
"""Prefix of the rule in a simulated round's record."""


def select(federation: Federation, number: int, attempt: int = 1, away: Collection[str] = ()) -> tuple[str, ...]:
    """Return the learners that a round asks, sorted by name.

    Without `quorum.learners_per_round` these are all. Otherwise their number is `learners_per_round` times
    `over_selection`, in an order that is redrawn for each round. Each further attempt asks twice as many, including the
    first ones. Learners that are away are not asked, unless the quorum needs them.

    Args:
        federation: with seed and quorum.
        number: the round.
        attempt: from 1.
        away: learners that did not answer and have not come back.

    Source: over-selection as in Bonawitz et al., "Towards Federated Learning at Scale", 2019, section 2.3.
    """
    names = sorted(learner.name for learner in federation.learners)
    there = [name for name in names if name not in away]
    pool = names if attempt > 1 or len(there) < federation.min_updates else there
    quorum = federation.quorum
    if not quorum.learners_per_round:
        return tuple(pool)
    count = math.ceil(quorum.learners_per_round * quorum.over_selection) * 2 ** (attempt - 1)

    def drawn(name: str) -> bytes:
        return hashlib.sha256(repr((federation.training.seed, "select", number, name)).encode()).digest()

    return tuple(sorted(sorted(pool, key=drawn)[:count]))


def trainers(federation: Federation) -> Federation:
    """Return the federation without the learners that a simulation holds out."""
    left = tuple(learner for learner in federation.learners if learner.name not in federation.simulation.held_out)
    return replace(federation, learners=left)


def took_part(federation: Federation, record: Record) -> tuple[str, ...]:
    """Return the learners of a committed round; clients of a simulated one leave no updates, so they are redrawn."""
    if record.rule.startswith(SIMULATED):
        dropped = {item.learner for item in record.dropped}
        return tuple(name for name in select(trainers(federation), record.round) if name not in dropped)
    return record.contributors


def enough(federation: Federation, asked: Collection[str]) -> int:
    """Return the number of updates that end a round's wait."""
    return federation.quorum.learners_per_round or len(asked)
