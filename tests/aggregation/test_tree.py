"""Sums that grow while others are awaited: the same bytes in any order of arrival."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedpipe import weights
from fedpipe.aggregation import Combined, Forest, Rule, Source, combine, make_rule, make_server_step
from fedpipe.aggregation.rules.mean import mean
from fedpipe.federation.optimizers import Sgd
from fedpipe.federation.rules import Mean, Median
from fedpipe.store import MemoryStore, keys
from fedpipe.store.objects import digest_of
from tests.aggregation.registered import Closest, closest
from tests.aggregation.test_streaming import BASE, put, update


def final(
    store: MemoryStore, sources: list[Source], folder: Path, forest: Forest | None = None, rule: Rule | None = None
) -> Combined:
    data = weights.dumps(BASE)
    store.replace(keys.content(digest_of(data)), data)
    return combine(
        store, sources, layout=weights.layout_of(BASE), base=digest_of(data), state={}, rule=rule or mean(Mean()),
        server=make_server_step(Sgd(learning_rate=1.0, momentum=0.9)), folder=folder, forest=forest,
    )  # fmt: skip


def forest_of(store: MemoryStore, asked: set[int], folder: Path) -> Forest:
    return Forest(store, weights.layout_of(BASE), mean(Mean()), asked, folder)


@settings(deadline=None, max_examples=30)
@given(st.data())
def test_the_same_bytes_in_any_order_of_arrival(data: st.DataObject) -> None:
    """Some are fetched early, in any order; the rest is read in the last pass; some of those asked never come."""
    count = data.draw(st.integers(1, 12))
    asked = data.draw(st.sets(st.integers(0, count), min_size=1))
    come = data.draw(st.sets(st.sampled_from(sorted(asked)), min_size=1))
    early = data.draw(st.permutations(sorted(data.draw(st.sets(st.sampled_from(sorted(come)))))))
    store = MemoryStore()
    sources = {k: put(store, f"l{k}", weights.dumps(update(k)), data.draw(st.integers(1, 1000))) for k in come}
    with (
        tempfile.TemporaryDirectory() as one,
        tempfile.TemporaryDirectory() as two,
        tempfile.TemporaryDirectory() as trees,
    ):
        forest = forest_of(store, asked, Path(trees))
        for place in early:
            forest.add(sources[place])
        expected = final(store, list(sources.values()), Path(one))
        found = final(store, data.draw(st.permutations(list(sources.values()))), Path(two), forest)
        assert found.weights[0].read_bytes() == expected.weights[0].read_bytes()
        assert found.accepted == expected.accepted
        assert {k: v[1] for k, v in found.state.items()} == {k: v[1] for k, v in expected.state.items()}


def test_complete_subtrees_are_kept_as_one_sum(store: MemoryStore, tmp_path: Path) -> None:
    sources = [put(store, f"l{k}", weights.dumps(update(k)), k + 1) for k in range(8)]
    forest = forest_of(store, set(range(8)), tmp_path)
    held = []
    for place in (0, 2, 1, 3, 7, 4, 6, 5):
        forest.add(sources[place])
        held.append(len(forest.kept))
    assert held == [1, 2, 2, 1, 2, 3, 3, 1]
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda data: data[:-1], "the manifest says"),
        (lambda data: data[:-1] + bytes([data[-1] ^ 1]), "do not match their digest"),
        (lambda _: weights.dumps({**update(1), "w": np.float32([[np.nan]])}), "shape|NaN|bytes"),
    ],
)
def test_what_is_unfit_is_refused_before_it_is_added(
    store: MemoryStore, tmp_path: Path, change: object, why: str
) -> None:
    sources = [put(store, f"l{k}", weights.dumps(update(k)), k + 1) for k in range(3)]
    evil = sources[1]
    store.replace(keys.content(evil.digest, "l1"), change(weights.dumps(update(1))))  # type: ignore[operator]
    forest = forest_of(store, {0, 1, 2}, tmp_path)
    for source in sources:
        forest.add(source)
    combined = final(store, sources, tmp_path, forest)
    assert combined.accepted == ("l0", "l2")
    assert set(combined.refused) == {"l1"}
    assert re.search(why, combined.refused["l1"])
    expected = final(store, [sources[0], sources[2]], tmp_path)
    assert combined.weights[1] == expected.weights[1]


@pytest.mark.parametrize("early", [(1,), (0, 1), (2, 0, 1)])
def test_a_damaged_file_of_a_sum_counts_against_nobody(
    store: MemoryStore, tmp_path: Path, early: tuple[int, ...]
) -> None:
    """The disk was full, or a cleaner came by: the updates are fetched again."""
    sources = [put(store, f"l{k}", weights.dumps(update(k)), k + 1) for k in range(3)]
    forest = forest_of(store, {0, 1, 2}, tmp_path)
    for place in early:
        forest.add(sources[place])
    for kept in forest.kept:
        kept.path.write_bytes(kept.path.read_bytes()[:-3])
    combined = final(store, sources, tmp_path, forest)
    assert (combined.accepted, combined.refused) == (("l0", "l1", "l2"), {})
    assert combined.weights[1] == final(store, sources, tmp_path).weights[1]


@pytest.mark.parametrize("before", [(), (0,)], ids=["alone", "added to a neighbour"])
def test_not_finite_is_refused_early(store: MemoryStore, tmp_path: Path, before: tuple[int, ...]) -> None:
    bad = {**update(1)}
    name = next(k for k, v in bad.items() if v.dtype == np.float32)
    bad[name] = np.full_like(bad[name], np.inf)
    forest = forest_of(store, {0, 1}, tmp_path)
    for place in before:
        forest.add(put(store, f"l{place}", weights.dumps(update(place))))
    kept = [tree.path.read_bytes() for tree in forest.kept]
    forest.add(put(store, "l1", weights.dumps(bad)))
    assert forest.refused == {"l1": "the weights hold NaN or infinity"}
    assert [path.read_bytes() for path in tmp_path.iterdir()] == kept


@pytest.mark.parametrize("large", range(4))
def test_an_update_because_of_which_a_sum_overflows_leaves_nothing_in_it(
    store: MemoryStore, tmp_path: Path, large: int
) -> None:
    """Its own numbers are finite, so it is fetched early; the last pass finds it, and adds the others again."""
    sources = [
        put(store, f"l{k}", weights.dumps({**update(k), "scale": np.float64(1.7e308 if k == large else k)}), 2)
        for k in range(4)
    ]
    forest = forest_of(store, {0, 1, 2, 3}, tmp_path)
    for source in sources:
        forest.add(source)
    found = final(store, sources, tmp_path, forest)
    assert found.refused == {f"l{large}": "the weights are so large that the aggregate is not finite"}
    digest = found.weights[1]
    assert digest == final(store, [s for s in sources if s.learner != f"l{large}"], tmp_path).weights[1]


def test_a_damaged_sum_is_no_fault_of_the_next_update(store: MemoryStore, tmp_path: Path) -> None:
    forest = forest_of(store, {0, 1}, tmp_path)
    forest.add(put(store, "l0", weights.dumps(update(0))))
    (kept,) = forest.kept
    kept.path.write_bytes(kept.path.read_bytes()[:-3])
    with pytest.raises(OSError, match="Input/output error"):
        forest.add(put(store, "l1", weights.dumps(update(1))))
    assert not forest.refused


def test_a_forest_with_something_that_does_not_count_is_not_used(store: MemoryStore, tmp_path: Path) -> None:
    sources = [put(store, f"l{k}", weights.dumps(update(k)), k + 1) for k in range(3)]
    forest = forest_of(store, {0, 1, 2}, tmp_path)
    forest.add(sources[0])
    forest.add(sources[2]._replace(weight=9))
    combined = final(store, sources[:2], tmp_path, forest)
    assert combined.weights[1] == final(store, sources[:2], tmp_path).weights[1]


@pytest.mark.parametrize("rule", [make_rule(Median()), closest(Closest())], ids=["columns", "distances"])
def test_a_rule_that_needs_single_updates_gets_no_sums(store: MemoryStore, tmp_path: Path, rule: Rule) -> None:
    """Three times: no forest is planted, none can be made, and one of another rule is not taken."""
    layout, why = weights.layout_of(BASE), "needs single updates"
    assert Forest.plant(store, layout, rule, {0, 1}, tmp_path) is None
    with pytest.raises(TypeError, match=why):
        Forest(store, layout, rule, {0, 1}, tmp_path)  # type: ignore[arg-type]
    sources, forest = (
        [put(store, f"l{k}", weights.dumps(update(k))) for k in range(2)],
        forest_of(store, {0, 1}, tmp_path),
    )
    for source in sources:
        forest.add(source)
    with pytest.raises(TypeError, match=why):
        final(store, sources, tmp_path, forest, rule)
