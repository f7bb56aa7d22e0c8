"""The scores that a learner knows from its own last ballot."""

from __future__ import annotations

import pytest

from fedpipe.rounds import manifests
from fedpipe.rounds.ballots import known_scores, publish_ballot
from fedpipe.rounds.manifests import Ballot, Scores
from fedpipe.store import MemoryStore

BASE, CANDIDATE, OTHER = (f"sha256:{digit * 64}" for digit in "abc")


def scores(loss: float) -> Scores:
    return Scores(test=manifests.Tested(examples=1, metrics={"loss": loss}))


def cast(store: MemoryStore, number: int, base: str, candidate: str, current: float, proposed: float) -> None:
    publish_ballot(store, Ballot(
        federation="tiny", run="r1", round=number, learner="a", base=base, candidate=candidate, approve=True,
        current=scores(current), proposed=scores(proposed),
    ))  # fmt: skip


@pytest.mark.parametrize("cast_in", [0, 1, 2])
def test_of_the_last_ballot_however_long_ago(store: MemoryStore, cast_in: int) -> None:
    cast(store, cast_in, BASE, CANDIDATE, 2.0, 1.0)
    assert known_scores(store, "a", "r1", 3, BASE) == scores(2.0)
    assert known_scores(store, "a", "r1", 3, CANDIDATE) == scores(1.0)


def test_of_no_other_model(store: MemoryStore) -> None:
    cast(store, 0, OTHER, OTHER, 5.0, 5.0)
    cast(store, 1, BASE, CANDIDATE, 2.0, 1.0)
    assert known_scores(store, "a", "r1", 2, OTHER) is None  # the last ballot is of other models


def test_of_no_later_round_and_no_other_run(store: MemoryStore) -> None:
    cast(store, 2, BASE, CANDIDATE, 2.0, 1.0)
    assert known_scores(store, "a", "r1", 2, BASE) is None
    assert known_scores(store, "a", "r2", 3, BASE) is None
    assert known_scores(store, "b", "r1", 3, BASE) is None
