"""Choose the best model of a run, by the learners' tests of the model of each round."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from fedpipe.federation.federation import Federation
from fedpipe.federation.training import Export
from fedpipe.rounds.manifests import Record, Tested

Tests = Mapping[str, Tested]
"""The tests of one model, by learner."""


class Candidate(NamedTuple):
    """The model of a round, and the value of the metric by which it is compared."""

    round: int
    weights: str
    value: float


def tests_by_round(records: Sequence[Record], *, voted: bool) -> dict[int, dict[str, Tested]]:
    """Return the learners' tests of the model of each round from 1 on; none of a round that nobody tested.

    In a vote, this is the candidate, even if it was rejected. Without votes, learners test the model of a round when
    the next one begins. So the last model has no tests yet.

    Args:
        records: of a run, from round 0 on.
        voted: whether learners vote, and so test each candidate.
    """
    found: dict[int, dict[str, Tested]] = {}
    for record, following in zip(records, [*records[1:], None], strict=True):
        if voted:
            tests = {ballot.learner: ballot.proposed.test for ballot in record.ballots}
        else:
            tests = {update.learner: update.tested for update in following.updates} if following else {}
        known = {name: tested for name, tested in tests.items() if tested}
        if record.round and known:
            found[record.round] = known
    return found


def value_of(tests: Tests, export: Export) -> float | None:
    """Return the metric of a model over its learners; None if no learner has it.

    >>> tests = {"a": Tested(examples=3, metrics={"accuracy": 1.0}), "b": Tested(examples=1, metrics={"accuracy": 0.0})}
    >>> [value_of(tests, Export(metric="accuracy", over=over)) for over in ("mean", "worst_learner")]
    [0.75, 0.0]
    """
    name = export.compared
    having = [tested for tested in tests.values() if name in tested.metrics]
    if not having:
        return None
    if export.over == "worst_learner":
        worst: Callable[..., float] = max if export.minimised else min
        return worst(tested.metrics[name] for tested in having)
    return sum(t.metrics[name] * t.examples for t in having) / sum(t.examples for t in having)


def gain(old: float, new: float, export: Export) -> float:
    """Return by how much a value of the metric is better than an old one; negative if it is worse."""
    return old - new if export.minimised else new - old


def best_earlier(records: Sequence[Record], federation: Federation) -> Candidate | None:
    """Return the best model before the last accepted round; None if no such model has tests of a quorum.

    Of equal models, the first is the best.

    Args:
        records: of a run, from round 0 on.
        federation: says by which metric models are compared.
    """
    export = federation.exported
    if export is None or export.choose != "best":
        return None
    accepted = [record for record in records if record.round and record.accepted]
    by_round = tests_by_round(records, voted=federation.vote is not None)
    needed = 1 if federation.split else federation.min_learners  # the label party tests for all
    best: Candidate | None = None
    for record in accepted[:-1]:
        tests = by_round.get(record.round, {})
        value = value_of(tests, export)
        if value is None or len(tests) < needed:
            continue
        if best is None or gain(best.value, value, export) > 0:
            best = Candidate(record.round, record.weights, value)
    return best if best and best.weights != accepted[-1].weights else None


def prefers_earlier(last: Tests, earlier: Tests, export: Export) -> bool:
    """Return whether an earlier model is chosen: unless the last one is strictly better for those who tested both."""
    both = [
        name for name in last.keys() & earlier.keys()
        if all(export.compared in tests[name].metrics for tests in (last, earlier))
    ]  # fmt: skip
    old = value_of({name: earlier[name] for name in both}, export)
    new = value_of({name: last[name] for name in both}, export)
    return old is not None and new is not None and not gain(old, new, export) > 0
