from __future__ import annotations

from typing import Any

import pytest

from fedpipe.errors import FederationError
from fedpipe.federation.training import Export
from fedpipe.rounds.choosing import best_earlier, prefers_earlier, value_of
from fedpipe.rounds.choosing import tests_by_round as by_round
from fedpipe.rounds.manifests import Ballot, Record, Scores, Update
from fedpipe.rounds.manifests import Tested as Measured
from tests.federations import make_federation

NAMES = ("a", "b", "c")


def digest(number: int) -> str:
    return f"sha256:{number:064x}"


def measured(**values: float) -> dict[str, Measured]:
    """Tests whose accuracy is given for each learner, over as many examples as its place in the alphabet."""
    return {k: Measured(examples=" abc".index(k), metrics={"accuracy": v, "loss": 1 - v}) for k, v in values.items()}


def record(number: int, tests: dict[str, Measured] | None = None, **more: Any) -> Record:
    updates = tuple(
        Update(federation="tiny", run="r", round=max(number, 1), learner=name, base=digest(number - 1 if number else 0),
               weights=digest(99), size=1, examples=1, metrics={}, tested=one)
        for name, one in (tests or {}).items()
    )  # fmt: skip
    return Record(
        federation="tiny", run="r", round=number, previous=None, plan=digest(7), base=None,
        **{"weights": digest(number), "layout": digest(8), "updates": updates, **more},
    )  # fmt: skip


def voted(number: int, accuracy: float, *, accepted: bool = True, weights: int | None = None) -> Record:
    ballots = tuple(
        Ballot(federation="tiny", run="r", round=number, learner=name, base=digest(0), candidate=digest(number),
               approve=True, current=Scores(), proposed=Scores(test=one))
        for name, one in measured(a=accuracy, b=accuracy, c=accuracy).items()
    )  # fmt: skip
    return record(number, ballots=ballots, accepted=accepted, weights=digest(number if weights is None else weights))


def federation(**export: Any) -> Any:
    return make_federation(NAMES, export={"choose": "best", "metric": "accuracy", **export})


RECORDS = [
    record(0),
    record(1, measured(a=0.1, b=0.1, c=0.1)),
    record(2, measured(a=0.9, b=0.9, c=0.0)),  # tests of round 1: mean .45, worst 0
    record(3, measured(a=0.5, b=0.4, c=0.4)),  # of round 2: mean .4167, worst .4
    record(4, measured(a=0.2, b=0.2, c=0.2)),  # of round 3
]


def test_the_tests_of_a_round_are_in_the_next_one() -> None:
    found = by_round(RECORDS, voted=False)
    assert {number: one["a"].metrics["accuracy"] for number, one in found.items()} == {1: 0.9, 2: 0.5, 3: 0.2}


@pytest.mark.parametrize(
    ("export", "number", "value"),
    [
        ({}, 1, 2.7 / 6),
        ({"over": "worst_learner"}, 2, 0.4),
        ({"metric": "test_accuracy"}, 1, 2.7 / 6),
        ({"metric": "loss"}, 1, 1 - 2.7 / 6),
        ({"metric": "accuracy", "minimise": True}, 3, 0.2),
        ({"metric": "loss", "over": "worst_learner"}, 2, 0.6),
    ],
)
def test_the_best_of_the_earlier_rounds(export: dict[str, Any], number: int, value: float) -> None:
    found = best_earlier(RECORDS, federation(**export))
    assert found is not None
    assert (found.round, found.weights) == (number, digest(number))
    assert found.value == pytest.approx(value)


def test_of_equal_rounds_the_first_is_the_best() -> None:
    same = measured(a=0.5, b=0.5, c=0.5)
    found = best_earlier([record(0), record(1), *(record(number, same) for number in (2, 3, 4))], federation())
    assert found is not None
    assert found.round == 1


def test_a_round_tested_by_few_does_not_count() -> None:
    few = [*RECORDS[:2], record(2, measured(a=1.0)), *RECORDS[3:]]
    found = best_earlier(few, federation())
    assert found is not None
    assert found.round == 2


def test_no_earlier_round() -> None:
    assert best_earlier(RECORDS[:2], federation()) is None
    assert best_earlier([record(0), record(1), record(2)], federation()) is None
    assert best_earlier(RECORDS, make_federation(NAMES)) is None


def test_rejected_rounds_are_left_out() -> None:
    """A round that was voted down has a candidate with tests, but its weights are its base."""
    found = make_federation(
        NAMES, algorithm={"name": "collective"}, export={"choose": "best", "metric": "accuracy"}
    )  # fmt: skip
    records = [record(0), voted(1, 0.6), voted(2, 0.9, accepted=False, weights=1), voted(3, 0.5)]
    best = best_earlier(records, found)
    assert best is not None
    assert (best.round, best.value) == (1, pytest.approx(0.6))
    assert best_earlier(records[:3], found) is None  # the last accepted round is that one itself


@pytest.mark.parametrize(
    ("last", "earlier", "expected"),
    [
        (measured(a=0.5, b=0.5), measured(a=0.5, b=0.5), True),
        (measured(a=0.5, b=0.6), measured(a=0.5, b=0.5), False),
        (measured(a=0.5, b=0.9), measured(a=0.6, c=0.0), True),  # only `a` has tested both
        (measured(b=0.5), measured(a=0.6), False),
    ],
)
def test_the_last_model_must_be_better_than_an_earlier_one(last: Any, earlier: Any, expected: bool) -> None:
    assert prefers_earlier(last, earlier, Export(choose="best", metric="accuracy")) is expected


def test_a_metric_that_no_learner_has() -> None:
    assert value_of(measured(a=0.5), Export(metric="auc")) is None


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"export": {"choose": "best"}}, "export.metric: is missing, and models are compared by it"),
        ({"export": {"publish_if": {}}}, "export.metric: is missing"),
        ({"export": {"metric": "loss"}}, "export.metric: has no effect"),
        ({"export": {"minimise": True}}, "export.minimise: has no effect"),
        ({"export": {"choose": "best", "metric": "perplexity"}}, "export.minimise: is missing, and it is unclear"),
        ({"export": {"choose": "first"}}, "export.choose: Invalid enum value 'first'. Valid: best, last"),
        ({"export": {"choose": "best", "metric": "loss", "over": "median"}}, "export.over: Invalid enum value"),
        ({"export": {"publish_if": {"better_by": -1}, "metric": "loss"}}, "export.publish_if.better_by"),
        ({"export": {"publish_if": {"better_than": 1}, "metric": "loss"}}, "better_than"),
        (
            {"export": {"choose": "best", "metric": "loss"}, "evaluation": {"every_round": False}},
            "export.choose: needs the learners' tests",
        ),
        (
            {"export": {"choose": "best", "metric": "loss"}, "data": {"uri": "x.npz", "parts": {"train": 1, "vote": 0, "test": 0}}},
            "data.parts.test: is 0, and models are compared by tests",
        ),
    ],
)  # fmt: skip
def test_settings_that_cannot_work(more: dict[str, Any], message: str) -> None:
    with pytest.raises(FederationError) as caught:
        make_federation(NAMES, **more)
    assert message in str(caught.value)
    assert caught.value.exit_code == 2
