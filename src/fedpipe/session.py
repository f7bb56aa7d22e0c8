"""What a session decides from the plan and the records alone: whom a round asks, and when to end."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Collection, Generator, Sequence
from random import Random
from typing import TypeVar

from msgspec.structs import replace

from fedpipe.federation import EarlyStopping, Federation
from fedpipe.manifests import Record, Tested
from fedpipe.rounds import mean_tested

T = TypeVar("T")

SHARE = 1 / 16
"""Of the time that was already waited, the pause until the next look: looks grow with the logarithm of the wait."""
RATE = 200.0
"""Looks a second that all who wait may make together, so that a crowd does not overload a small store."""
IDLE_RATE = 20.0
"""The same for a crowd that has waited long."""

SIMULATED = "simulation"
"""What the rule of a simulated round's record begins with."""


def pause(waited: float, crowd: int, random: Random) -> float:
    """Seconds until somebody who has waited so long looks again.

    .. math:: p = u \\cdot \\min(\\max(1, c / 20), \\max(c / 200, w / 16)), \\quad u \\sim U(0.75, 1.25)

    Args:
        waited: seconds since the wait began.
        crowd: how many look at the same store.
        random: of the jitter, which keeps a crowd from looking at the same moment.
    """
    return min(max(1.0, crowd / IDLE_RATE), max(crowd / RATE, waited * SHARE)) * random.uniform(0.75, 1.25)


def drive(waiting: Generator[float, None, T], sleep: Callable[[float], None]) -> T:
    """Runs what yields seconds to wait, and returns its result."""
    while True:
        try:
            seconds = next(waiting)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]
        sleep(seconds)


def patience_of(federation: Federation) -> float:
    """Seconds without a word after which those who wait give up: the other side is gone for good."""
    return max(900.0, 3 * federation.quorum.deadline)


def select(federation: Federation, number: int, attempt: int = 1, away: Collection[str] = ()) -> tuple[str, ...]:
    """The learners that a round asks, sorted by name.

    Without `quorum.learners_per_round` all of them. Else so many times `over_selection`, in an order that is drawn anew
    for each round; each further attempt asks twice as many, the first ones among them. Those who are away are not
    asked, unless the quorum cannot be had without them.

    Args:
        federation: with seed and quorum.
        number: the round.
        attempt: from 1.
        away: learners that did not answer and have not come back.

    Source: over-selection as in Bonawitz et al., "Towards Federated Learning at Scale", 2019, section 2.3.
    """
    names = sorted(learner.name for learner in federation.learners)
    there = [name for name in names if name not in away]
    pool = names if attempt > 1 or len(there) < federation.min_learners else there
    quorum = federation.quorum
    if not quorum.learners_per_round:
        return tuple(pool)
    count = math.ceil(quorum.learners_per_round * quorum.over_selection) * 2 ** (attempt - 1)

    def drawn(name: str) -> bytes:
        return hashlib.sha256(repr((federation.training.seed, "select", number, name)).encode()).digest()

    return tuple(sorted(sorted(pool, key=drawn)[:count]))


def trainers(federation: Federation) -> Federation:
    """The federation of a simulation: without the learners that are held out."""
    left = tuple(learner for learner in federation.learners if learner.name not in federation.simulation.held_out)
    return replace(federation, learners=left)


def took_part(federation: Federation, record: Record) -> tuple[str, ...]:
    """The learners that a round is made of; clients of a simulated one leave no updates, and are drawn again."""
    if record.rule.startswith(SIMULATED):
        return select(trainers(federation), record.round)
    return tuple(update.learner for update in record.updates)


def enough(federation: Federation, asked: Collection[str]) -> int:
    """Updates with which a round need not wait for more."""
    return federation.quorum.learners_per_round or len(asked)


def monitored(records: Sequence[Record], metric: str) -> list[float]:
    """The values of a metric that these records tell, in their order.

    `loss` and compiled metrics are of a round's training. `test_...` are of the shared model, on the learners' test
    parts: in averaging of the model with which a round begins, in a vote of the one with which it ends.
    """
    found = [_value(record, metric) for record in records if record.round]
    return [value for value in found if value is not None]


def _value(record: Record, metric: str) -> float | None:
    name = metric.removeprefix("test_")
    if name == metric or metric in record.metrics:  # a simulated round tells its tests itself
        return record.metrics.get(metric)
    tests: list[Tested | None] = [update.tested for update in record.updates]
    if record.ballots:
        tests = [(b.proposed if record.accepted else b.current).test for b in record.ballots]
    return mean_tested(tests).get(name)


def stalled(values: Sequence[float], stopping: EarlyStopping) -> bool:
    """Whether the last `patience` values brought no improvement by more than `min_delta`.

    >>> stalled([3.0, 2.0, 2.0, 2.1], EarlyStopping(patience=2)), stalled([3.0, 2.0, 2.0], EarlyStopping(patience=2))
    (True, False)
    """
    sign = 1.0 if stopping.minimised else -1.0
    best, since = math.inf, 0
    for value in values:
        if sign * value < best - stopping.min_delta:
            best, since = sign * value, 0
        else:
            since += 1
    return since >= stopping.patience
