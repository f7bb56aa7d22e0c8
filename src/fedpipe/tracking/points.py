"""Turns the records of a run into the points of its curves, and its settings into parameters."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from fedpipe.federation.algorithms import SimulationSettings
from fedpipe.federation.federation import Federation
from fedpipe.reports.story import Story, global_metrics
from fedpipe.rounds.manifests import Record
from fedpipe.rounds.plan import flat
from fedpipe.rounds.selection import took_part

MOST_FOLLOWED = 100
"""Most learners that have curves of their own; of more, a tracking server shows the shared ones only."""
_LONGEST_KEY, _LONGEST_VALUE = 250, 500
"""Characters that MLflow takes since its first versions."""
_MOST_PARAMETERS = 100


class Point(NamedTuple):
    """A point of a curve.

    Args:
        key: such as `loss`, `test_accuracy` or `learners/hospital-a/loss`.
        step: the round.
        value: may be NaN or infinite, when a training diverged.
    """

    key: str
    step: int
    value: float


def points_of(story: Story, number: int) -> list[Point]:
    """Returns the points that the record of a round adds, each curve's in the order of its rounds.

    Training metrics belong to the round. Tests of the shared model are points of the round that made it, which the
    learners test at the start of the next one.
    """
    record = story.records[number]
    tested = [
        Point(f"test_{name}", step, value)
        for step in (number - 1, number)
        if step >= 0
        for name, value in sorted(global_metrics(story, step).items())
    ]
    own = _learners(record) if len(story.plan.federation.learners) <= MOST_FOLLOWED else ()
    return [*tested, *_shared(story, record), *own]


def _shared(story: Story, record: Record) -> Iterator[Point]:
    if not record.round:
        return
    learners = took_part(story.plan.federation, record)
    numbers: dict[str, float] = {k: v for k, v in record.metrics.items() if not k.startswith("test_")}
    numbers |= {"learners": len(learners), "dropped": len(record.dropped)}
    if record.not_chosen:
        numbers["not_chosen"] = len(record.not_chosen)
    if examples := record.examples:
        numbers["examples"] = examples
    if record.outcome:
        numbers |= {"approvals": record.outcome.approvals, "accepted": float(record.accepted)}
    if spent := _spent(record):
        numbers["epsilon"] = max(spent.values())
    for name, value in numbers.items():
        yield Point(name, record.round, float(value))


def _learners(record: Record) -> Iterator[Point]:
    """Yields each learner's own curves."""
    for update in record.updates:
        own = f"learners/{update.learner}"
        if update.tested:
            for name, value in update.tested.metrics.items():
                yield Point(f"{own}/test_{name}", record.round - 1, value)
        for name, value in (*update.metrics.items(), ("examples", float(update.examples))):
            yield Point(f"{own}/{name}", record.round, value)
    for ballot in record.ballots:
        scores = ballot.proposed if record.accepted else ballot.current
        for name, value in scores.test.metrics.items() if scores.test else ():
            yield Point(f"learners/{ballot.learner}/test_{name}", record.round, value)
    for name, epsilon in _spent(record).items():
        yield Point(f"learners/{name}/epsilon", record.round, epsilon)


def _spent(record: Record) -> dict[str, float]:
    """Returns the epsilon that each private learner had spent by this round."""
    names = [update.learner for update in record.updates] + [dropped.learner for dropped in record.dropped]
    return {name: spent.epsilon for name in names if (spent := record.spent_by(name))}


def final_points(story: Story) -> list[Point]:
    """Returns the evaluation of the last model, on the central test set, over all learners and on each one's."""
    found, last = story.evaluation, story.records[-1]
    if found is None or found.weights != last.weights:
        return []
    measured = {"central": found.central, "federated": found.federated}
    if len(found.learners) <= MOST_FOLLOWED:
        measured |= {f"learners/{name}": one for name, one in found.learners.items()}
    return [
        Point(f"evaluation/{where}/{name}", last.round, value)
        for where, one in measured.items()
        if one is not None
        for name, value in sorted({**one.measures, **one.metrics}.items())
    ]


def unsent(points: Sequence[Point], latest: Mapping[str, int]) -> list[Point]:
    """Returns the points beyond the last round of each curve, without duplicates, with keys that MLflow accepts.

    Args:
        points: each curve's in the order of its rounds.
        latest: the last round that the server has of each curve.

    >>> unsent([Point("loss", 1, 0.5), Point("loss", 2, 0.4), Point("loss", 2, 0.4)], {"loss": 1})
    [Point(key='loss', step=2, value=0.4)]
    """
    sent, left = dict(latest), []
    for point in points:
        key = safe_key(point.key)
        if point.step > sent.get(key, -1):
            sent[key] = point.step
            left.append(point._replace(key=key))
    return left


def safe_key(name: str) -> str:
    """Returns a name with the characters and the length that MLflow accepts.

    >>> safe_key("training.callbacks[0]"), safe_key("../loss")
    ('training.callbacks_0_', '_/loss')
    """
    parts = re.sub(r"[^\w\-. /]", "_", name[:_LONGEST_KEY], flags=re.ASCII).split("/")
    return "/".join(part if part.strip(".") else "_" for part in parts)  # a path without empty parts, `.` and `..`


def parameters_of(federation: Federation) -> dict[str, str]:
    """Returns the settings that define a run, by their paths in the federation file; at most a hundred."""
    left_out = (*_ELSEWHERE, *(("simulation",) if federation.simulation == SimulationSettings() else ()))
    found = {
        path: _text(value)
        for path, value in flat(msgspec.to_builtins(federation)).items()
        if re.split(r"[.\[]", path)[0] not in left_out and ".placement." not in path and value not in (None, "")
    }
    learners = ", ".join(learner.name for learner in federation.learners)
    found = {"learners": learners, **found}
    return {safe_key(path): text[:_LONGEST_VALUE] for path, text in list(found.items())[:_MOST_PARAMETERS]}


_ELSEWHERE = ("name", "learners", "secret", "store", "placement", "images", "tracking")
"""Settings that are tags, or concern the place and not the training."""


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
