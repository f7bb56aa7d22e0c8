from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpipe.data.shards import deal, dealt, holdout, split
from fedpipe.errors import DataError
from fedpipe.federation.data import ByFractions, ByKey, ByLabel, BySize, Dirichlet, Iid, Parts
from tests.federations import make_federation

SEEDS = st.integers(0, 2**32)


@st.composite
def schemes(draw: st.DrawFn, learners: int, count: int) -> Any:
    seed = draw(SEEDS)
    cuts = sorted(draw(st.lists(st.integers(1, count - 1), min_size=learners - 1, max_size=learners - 1, unique=True)))
    sizes = tuple(int(n) for n in np.diff([0, *cuts, count]))
    return draw(
        st.sampled_from(
            [
                Iid(seed=seed),
                ByLabel(seed=seed, pieces=draw(st.integers(1, 3))),
                ByKey(seed=seed, column="k"),
                Dirichlet(seed=seed, alpha=draw(st.floats(0.3, 100))),
                BySize(seed=seed, sizes=sizes),
                ByFractions(seed=seed, fractions=tuple(n / count for n in sizes)),
            ]
        )
    )


@given(st.data())
def test_every_example_exactly_once(data: st.DataObject) -> None:
    learners, count = data.draw(st.integers(1, 5)), data.draw(st.integers(20, 80))
    rng = np.random.default_rng(data.draw(SEEDS))
    labels, keys = rng.integers(0, 4, count), rng.integers(0, 12, count)
    scheme = data.draw(schemes(learners, count))
    try:
        shards = deal(scheme, learners, labels=labels, keys=keys)
    except DataError:
        return  # too few keys, or a draw below the minimum
    assert sorted(np.concatenate(shards)) == list(range(count))
    assert len(shards) == learners
    again = deal(scheme, learners, labels=labels, keys=keys)
    assert all(np.array_equal(a, b) for a, b in zip(shards, again, strict=True))


def test_another_seed_deals_differently() -> None:
    labels = np.arange(100) % 10
    assert not np.array_equal(deal(Iid(seed=1), 2, labels=labels)[0], deal(Iid(seed=2), 2, labels=labels)[0])


def test_iid_shards_are_even() -> None:
    assert [len(s) for s in deal(Iid(), 3, labels=np.zeros(11))] == [4, 4, 3]


def test_by_label_gives_few_labels_each() -> None:
    labels = np.repeat(np.arange(10), 50)
    shards = deal(ByLabel(pieces=2), 5, labels=labels)
    assert all(len(np.unique(labels[s])) <= 2 for s in shards)
    assert [len(s) for s in shards] == [100] * 5


def test_by_key_keeps_keys_whole_and_sizes_even() -> None:
    keys = np.repeat(np.arange(20), 7)
    shards = deal(ByKey(column="k"), 4, labels=np.zeros(140), keys=keys)
    owners = [set(keys[s]) for s in shards]
    assert sum(len(o) for o in owners) == 20
    assert [len(s) for s in shards] == [35] * 4


def test_by_key_takes_text_too() -> None:
    keys = np.array(["ann", "bob", "ann", "eve"])
    assert sorted(len(s) for s in deal(ByKey(column="k"), 2, labels=np.zeros(4), keys=keys)) == [2, 2]


def test_dirichlet_is_uneven_for_small_alpha_and_even_for_large() -> None:
    labels = np.repeat(np.arange(10), 200)

    def spread(alpha: float) -> float:
        shards = deal(Dirichlet(alpha=alpha, seed=3), 5, labels=labels)
        counts = np.array([[np.sum(labels[s] == k) for k in range(10)] for s in shards])
        return float(np.std(counts / 200))

    assert spread(0.1) > 0.25
    assert spread(1000) < 0.02


def test_dirichlet_draws_again_for_the_minimum() -> None:
    labels = np.repeat(np.arange(2), 50)
    shards = deal(Dirichlet(alpha=0.3, seed=0, minimum=10), 4, labels=labels)
    assert min(len(s) for s in shards) >= 10


def test_sizes_and_fractions() -> None:
    assert [len(s) for s in deal(BySize(sizes=(5, 3, 2)), 3, labels=np.zeros(10))] == [5, 3, 2]
    assert [len(s) for s in deal(ByFractions(fractions=(0.5, 0.3, 0.2)), 3, labels=np.zeros(10))] == [5, 3, 2]


def test_one_hot_labels_count_as_classes() -> None:
    labels = np.eye(4)[np.repeat(np.arange(4), 10)]
    shards = deal(ByLabel(pieces=1), 4, labels=labels)
    assert all(len(np.unique(np.argmax(labels[s], axis=1))) == 1 for s in shards)


@pytest.mark.parametrize(
    ("scheme", "learners", "message"),
    [
        (Iid(), 11, "10 examples cannot be dealt to 11 learners"),
        (Iid(minimum=6), 2, "would get 5 examples, fewer than the minimum of 6"),
        (BySize(sizes=(5, 4)), 2, "the sizes add up to 9, but there are 10"),
        (ByKey(column="k"), 4, "'k' has 3 keys for 4 learners"),
        (Dirichlet(alpha=0.01, minimum=6), 2, "fewer than the minimum"),
    ],
)
def test_schemes_that_do_not_fit(scheme: Any, learners: int, message: str) -> None:
    labels = np.zeros(10)
    with pytest.raises(DataError, match=message):
        deal(scheme, learners, labels=labels, keys=np.arange(10) % 3)


def test_parts_are_disjoint_complete_and_seeded() -> None:
    parts = split(100, Parts(train=0.7, vote=0.2, test=0.1), [1, 2])
    assert {k: len(v) for k, v in parts.items()} == {"train": 70, "vote": 20, "test": 10}
    assert sorted(np.concatenate(list(parts.values()))) == list(range(100))
    assert not np.array_equal(parts["train"], split(100, Parts(train=0.7, vote=0.2, test=0.1), [1, 3])["train"])


@pytest.mark.parametrize(("before", "after"), [(400, 700), (1000, 1010), (60, 600)])
def test_a_growing_table_tests_on_hardly_anything_that_was_trained_on(before: int, after: int) -> None:
    parts = Parts(train=0.8, vote=0.0, test=0.2)
    first, then = split(before, parts, [1, 2]), split(after, parts, [1, 2])
    assert np.isin(then["test"], first["train"]).sum() <= 0.06 * before
    assert np.isin(then["train"], first["test"]).sum() <= 0.06 * before
    (dealt_first, held_first), (dealt_then, held_then) = holdout(before, 0.2, 1), holdout(after, 0.2, 1)
    assert np.isin(held_then, dealt_first).sum() <= 0.06 * before
    assert np.isin(held_first, dealt_then).sum() <= 0.06 * before


def test_the_holdout_is_disjoint_from_the_rest() -> None:
    kept, held = holdout(50, 0.2, 0)
    assert len(held) == 10
    assert sorted([*kept, *held]) == list(range(50))
    assert len(holdout(50, 0.0, 0)[1]) == 0


@pytest.mark.parametrize(
    ("batch_size", "parts", "message"),
    [
        (40, {}, r"training\.batch_size: the train part of a has 32 examples, but a batch has 40\. Lower it"),
        (
            16,
            {"train": 0.78, "vote": 0.02, "test": 0.2},
            r"data\.parts\.vote: the vote part of a has 1 examples, but a batch has 16\. Raise it",
        ),
    ],
    ids=["train part", "vote part"],
)
def test_a_part_below_a_batch(tmp_path: Path, batch_size: int, parts: dict[str, float], message: str) -> None:
    np.savez(tmp_path / "d.npz", x=np.zeros((100, 2)), y=np.arange(100) % 2)
    federation = make_federation(
        ("a", "b"),
        data={"uri": "d.npz", "parts": parts or {"train": 0.8, "vote": 0.1, "test": 0.1}},
        training={"rounds": 1, "batch_size": batch_size},
        evaluation={"holdout": 0.2},
        algorithm={"name": "collective"},
    )
    with pytest.raises(DataError, match=message):
        dealt(federation, str(tmp_path / "d.npz"))
