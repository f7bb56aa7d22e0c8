"""The metric that early stopping follows, and when it has stalled."""

from __future__ import annotations

from typing import Any

import pytest

from fedpipe.federation.training import EarlyStopping
from fedpipe.rounds import manifests
from fedpipe.rounds.manifests import Ballot, Record, Scores, Update
from fedpipe.rounds.stopping import monitored, stalled

DIGEST = f"sha256:{'0' * 64}"
PLACE: dict[str, Any] = {"federation": "tiny", "run": "r1"}


def record(number: int = 1, **more: Any) -> Record:
    return Record(
        **PLACE, round=number, previous=None, plan=DIGEST, base=DIGEST, weights=DIGEST, layout=DIGEST, **more
    )  # fmt: skip


def update(learner: str, loss: float, examples: int) -> Update:
    return Update(
        **PLACE, round=1, learner=learner, base=DIGEST, weights=DIGEST, size=0, examples=1, metrics={"loss": 9.0},
        tested=manifests.Tested(examples=examples, metrics={"loss": loss}),
    )  # fmt: skip


def ballot(current: float, proposed: float) -> Ballot:
    scores = [Scores(test=manifests.Tested(examples=1, metrics={"loss": loss})) for loss in (current, proposed)]
    return Ballot(
        **PLACE, round=1, learner="a", base=DIGEST, candidate=DIGEST, approve=True, current=scores[0], proposed=scores[1]
    )  # fmt: skip


class TestMonitored:
    def test_a_metric_of_the_training(self) -> None:
        records = [record(0, metrics={"loss": 5.0}), record(1, metrics={"loss": 2.0}), record(2, metrics={"loss": 1.0})]
        assert monitored(records, "loss") == [2.0, 1.0]  # nobody trained in round 0

    def test_of_the_learners_test_parts(self) -> None:
        updates = (update("a", 1.0, 1), update("b", 4.0, 2))
        assert monitored([record(updates=updates, metrics={"loss": 9.0})], "test_loss") == [3.0]

    def test_a_round_that_has_none_is_left_out(self) -> None:
        assert monitored([record(), record(2, metrics={"loss": 1.0})], "loss") == [1.0]

    def test_that_the_round_itself_has(self) -> None:
        updates = (update("a", 1.0, 1),)
        assert monitored([record(updates=updates, metrics={"test_loss": 7.0})], "test_loss") == [7.0]

    @pytest.mark.parametrize(("accepted", "value"), [(True, 1.0), (False, 2.0)])
    def test_of_the_model_with_which_a_vote_ends(self, accepted: bool, value: float) -> None:
        updates, ballots = (update("a", 5.0, 1),), (ballot(current=2.0, proposed=1.0),)
        assert monitored([record(updates=updates, ballots=ballots, accepted=accepted)], "test_loss") == [value]


@pytest.mark.parametrize(
    ("values", "more", "expected"),
    [
        ([], {}, False),
        ([1.0], {}, False),
        ([1.0, 1.0, 1.0], {}, True),
        ([1.0, 1.0, 0.9], {}, False),
        ([3.0, 2.0, 2.0, 2.0], {}, True),
        ([1.0, 0.5, 0.5], {"min_delta": 0.5}, True),
        ([1.0, 0.4, 0.0], {"min_delta": 0.5}, False),
        ([1.0, 2.0, 3.0], {"metric": "accuracy", "minimise": False}, False),
        ([3.0, 2.0, 1.0], {"metric": "accuracy", "minimise": False}, True),
        ([1.0, 1.4, 1.5], {"metric": "accuracy", "minimise": False, "min_delta": 0.5}, True),
        ([1.0, 1.4, 1.6], {"metric": "accuracy", "minimise": False, "min_delta": 0.5}, False),
    ],
)
def test_stalled(values: list[float], more: dict[str, Any], expected: bool) -> None:
    assert stalled(values, EarlyStopping(patience=2, **more)) is expected
