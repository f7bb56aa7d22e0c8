"""Stop a run early: read the monitored metric, and decide whether it has stalled."""

from __future__ import annotations

import math
from collections.abc import Sequence

from fedpipe.federation.training import EarlyStopping
from fedpipe.rounds.manifests import Record, Tested
from fedpipe.rounds.updates import mean_tested


def monitored(records: Sequence[Record], metric: str) -> list[float]:
    """Return the values of a metric in these records, in their order.

    `loss` and compiled metrics come from a round's trainings. Metrics with `test_` are those of the shared model on the
    learners' test parts. In averaging, this is the model at the start of the round; in a vote, the model at its end.
    """
    found = [_value(record, metric) for record in records if record.round]
    return [value for value in found if value is not None]


def _value(record: Record, metric: str) -> float | None:
    name = metric.removeprefix("test_")
    if name == metric or metric in record.metrics:  # a simulated round records its tests itself
        return record.metrics.get(metric)
    tests: list[Tested | None] = [update.tested for update in record.updates]
    if record.ballots:
        tests = [(b.proposed if record.accepted else b.current).test for b in record.ballots]
    return mean_tested(tests).get(name)


def stalled(values: Sequence[float], stopping: EarlyStopping) -> bool:
    """Return whether the last `patience` values brought no improvement by more than `min_delta`.

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
