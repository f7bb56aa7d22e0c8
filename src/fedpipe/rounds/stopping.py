"""When a run stops early: the metric that is monitored and whether it has stalled."""

from __future__ import annotations

import math
from collections.abc import Sequence

from fedpipe.federation.training import EarlyStopping
from fedpipe.rounds.manifests import Record, Tested
from fedpipe.rounds.updates import mean_tested


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
