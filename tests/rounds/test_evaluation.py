"""A learner's score in the store, and the sum of confusion matrices."""

from __future__ import annotations

import pytest

from fedpipe.errors import CorruptError
from fedpipe.rounds.evaluation import Matrix, Score, add_matrices, find_score
from fedpipe.store import MemoryStore, keys
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
    with pytest.raises(CorruptError):
        find_score(store, "a", "r1")


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
