"""A learner's score in the store, and the sum of confusion matrices."""

from __future__ import annotations

import pytest

from fedpipe.errors import DroppedError
from fedpipe.rounds.evaluation import Score, find_score, read_scores
from fedpipe.rounds.tallies import Matrix, add_matrices
from fedpipe.store import SMALL, MemoryStore, keys
from fedpipe.store.objects import encode


def test_a_score_is_below_its_learner(store: MemoryStore) -> None:
    score = Score(learner="a", weights="w", examples=3, metrics={"loss": 1.0})
    assert find_score(store, "a", "r1") is None
    store.create(keys.score("a", "r1"), encode(score))
    assert find_score(store, "a", "r1") == score
    assert find_score(store, "b", "r1") is None
    assert list(store.keys("learners/a/runs/r1/")) == [keys.score("a", "r1")]


@pytest.mark.parametrize("more", [b',"unknown":1', b',"examples":-1'])
def test_a_score_is_checked(store: MemoryStore, more: bytes) -> None:
    store.create(keys.score("a", "r1"), b'{"learner":"a","weights":"w"' + more + b"}")
    with pytest.raises(DroppedError):
        find_score(store, "a", "r1")


@pytest.mark.parametrize(
    ("data", "why"),
    [(b"?", "is not a valid score"), (b" " * (SMALL + 1), f"the object has {SMALL + 1} bytes")],
    ids=["malformed", "too large"],
)
def test_a_score_that_cannot_be_read_drops_its_learner_only(store: MemoryStore, data: bytes, why: str) -> None:
    good = Score(learner="a", weights="w", examples=3, metrics={"loss": 1.0})
    store.create(keys.score("a", "r1"), encode(good))
    store.create(keys.score("b", "r1"), data)
    first, second, third = read_scores(store, "r1", ("a", "b", "c"))
    assert first == good
    assert second.why.startswith(why)
    assert third.why == "no score"


def test_a_score_in_the_name_of_another_drops_its_writer_only(store: MemoryStore) -> None:
    good = Score(learner="a", weights="w", examples=3, metrics={"loss": 1.0})
    for name in ("a", "b"):
        store.create(keys.score(name, "r1"), encode(good))
    first, second = read_scores(store, "r1", ("a", "b"))
    assert first == good
    assert (second.learner, second.why) == ("b", "the score's learner is a, the round's is b")


def test_no_scores_without_score_steps(store: MemoryStore) -> None:
    assert read_scores(store, "r1", ("a", "b")) == []


@pytest.mark.parametrize(
    ("matrices", "total"),
    [
        ([], ()),
        ([()], ()),
        ([((1, 2), (3, 4))], ((1, 2), (3, 4))),
        ([((1, 2), (3, 4)), ((5, 6), (7, 8))], ((6, 8), (10, 12))),
        ([((1, 2), (3, 4)), ((1,),)], ()),
    ],
)
def test_matrices_of_one_size_add_up(matrices: list[Matrix], total: Matrix) -> None:
    assert add_matrices(matrices) == total
