"""Sums that are read, hashed and added up block by block: the same bytes however many there are of either."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from fedpipe import weights
from fedpipe.aggregation import Bounds, Combined, Forest, Norms, Source, combine, make_rule, make_server_step
from fedpipe.aggregation.arithmetic import ADDED, total
from fedpipe.aggregation.feeds import PIECE, Feed
from fedpipe.aggregation.passes import Checks, added
from fedpipe.federation.optimizers import Sgd
from fedpipe.federation.rules import Mean
from fedpipe.store import MemoryStore, keys
from fedpipe.store.objects import digest_of
from tests.faults.stores import Counting

MEAN = make_rule(Mean())
DTYPES = {"float32": np.float32, "float64": np.float64, "bfloat16": ml_dtypes.bfloat16}


def arrays(count: int, dtype: Any, elements: int) -> list[np.ndarray]:
    """Values of several updates; the base is 0, and the updates are of about the same norm."""
    random = np.random.default_rng(7)
    return [(random.normal(size=elements) * (1 + k / count)).astype(dtype) for k in range(count)]


def put(store: MemoryStore, values: list[np.ndarray]) -> tuple[str, weights.Layout, list[Source]]:
    base = {"w": np.zeros_like(values[0])}
    data = weights.dumps(base)
    store.replace(keys.content(digest_of(data)), data)
    sources = []
    for place, value in enumerate(values):
        update = weights.dumps({"w": value})
        store.replace(keys.content(digest_of(update), f"l{place}"), update)
        sources.append(Source(f"l{place}", digest_of(update), len(update), 3.0 + place, place))
    return digest_of(data), weights.layout_of(base), sources


def combined(store: MemoryStore, values: list[np.ndarray], folder: Path, **more: Any) -> Combined:
    base, layout, sources = put(store, values)
    folder.mkdir()
    server = make_server_step(Sgd(learning_rate=1.0))
    return combine(store, sources, layout=layout, base=base, state={}, rule=MEAN, server=server, folder=folder, **more)


def tree(values: list[np.ndarray], first: int = 0) -> np.ndarray:
    """The weighted sum of whole arrays in the binary tree over their places, by its definition."""
    if len(values) == 1:
        return values[0].astype(np.float64) * (3.0 + first)
    half = 1 << (len(values) - 1).bit_length() - 1
    return tree(values[:half], first) + tree(values[half:], first + half)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", [1, 2, 3, 5, 16, 17, 33, 40])
def test_a_sum_has_the_bits_of_the_tree(dtype: str, count: int, tmp_path: Path) -> None:
    """Few updates are held together, many are taken one at a time; both end inside a strip of a second piece."""
    size = np.dtype(DTYPES[dtype]).itemsize
    values = arrays(count, DTYPES[dtype], PIECE // size + ADDED + 5)
    found = combined(MemoryStore(), values, tmp_path / "out", bounds=Bounds(norm=10.0))
    weight = sum(3.0 + place for place in range(count))
    expected = (tree(values) / weight).astype(DTYPES[dtype])
    assert weights.load(found.weights[0])["w"].tobytes() == expected.tobytes()
    assert found.refused == {}


@pytest.mark.parametrize("cores", [1, 2, 4, 64])
def test_as_many_threads_read_as_there_are_cores_for(
    cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    values = arrays(7, np.float32, PIECE // 2 + 3)
    store = MemoryStore()
    digest = combined(store, values, tmp_path / "whole").weights[1]
    assert digest == digest_of(weights.dumps({"w": (tree(values) / 42.0).astype(np.float32)}))
    _, _, sources = put(store, values)
    key = keys.content(sources[5].digest, "l5")
    data = store.read(key, limit=2**30).data
    server = make_server_step(Sgd(learning_rate=1.0))
    for changed, why in ((data[:-8] + b"12345678", "the weights do not match their digest"), (data[:-8], "bytes")):
        store.replace(key, changed)
        (folder := tmp_path / why[:5]).mkdir()
        base, layout, _ = put(MemoryStore(), values)
        found = combine(
            store, sources, layout=layout, base=base, state={}, rule=MEAN, server=server, folder=folder
        )  # fmt: skip
        assert list(found.refused) == ["l5"]
        assert why in found.refused["l5"]


@pytest.mark.parametrize(("count", "times"), [(3, 0), (4, 1)])
def test_a_base_is_read_only_where_norms_are_compared(count: int, times: int, tmp_path: Path) -> None:
    """Among three updates, none is compared."""
    store, values = Counting(), arrays(count, np.float32, 1000)
    values[-1] *= 1e6
    found = combined(store, values, tmp_path / "out", bounds=Bounds(norm=10.0))
    base = weights.dumps({"w": np.zeros(1000, np.float32)})
    assert store.opened.count(keys.content(digest_of(base))) == times
    assert list(found.refused) == [f"l{count - 1}"] * times


@pytest.mark.parametrize("fetched", [0, 1, 4, 5])
def test_any_part_of_the_updates_may_be_fetched_early(fetched: int, tmp_path: Path) -> None:
    """Nothing is fetched before the closing, not even the base, when all answer at once."""
    store, values = MemoryStore(), arrays(5, np.float32, 1000)
    base, layout, sources = put(store, values)
    early = tmp_path / "early"
    early.mkdir()
    forest = Forest(store, layout, MEAN, range(5), early, Checks(norms=Norms(early / "base", 10.0, layout)))
    if fetched:
        (early / "base").write_bytes(store.read(keys.content(base)).data)
    for source in sources[:fetched]:
        forest.add(source)
    found = combined(store, values, tmp_path / "out", bounds=Bounds(norm=10.0), forest=forest)
    assert found.weights[1] == combined(store, values, tmp_path / "again", bounds=Bounds(norm=10.0)).weights[1]


@pytest.mark.parametrize("dtype", DTYPES)
def test_norms_are_the_same_early_and_late(dtype: str, tmp_path: Path) -> None:
    """Of an update that is fetched alone, in pieces, and of one among many, in strips: to the last bit."""
    size = np.dtype(DTYPES[dtype]).itemsize
    values = arrays(40, DTYPES[dtype], 2 * PIECE // size + 77)
    store = MemoryStore()
    base, layout, sources = put(store, values)
    (tmp_path / "base").write_bytes(store.read(keys.content(base), limit=2**30).data)
    early = Norms(tmp_path / "base", 10.0, layout)
    forest = Forest.plant(store, layout, MEAN, range(40), tmp_path, base, early)
    assert forest is not None
    for source in sources:
        forest.add(source)
    found = combined(store, values, tmp_path / "out", bounds=Bounds(norm=10.0), forest=forest)
    assert found.weights[1] == combined(store, values, tmp_path / "again", bounds=Bounds(norm=10.0)).weights[1]
    for count in (5, 40):  # held together, and taken one at a time
        late = Norms(tmp_path / "base", 10.0, layout)
        with contextlib.ExitStack() as stack:
            feeds = [stack.enter_context(contextlib.closing(Feed(store, s, layout))) for s in sources[:count]]
            for _ in added(stack, feeds, layout, Checks(norms=late)):
                pass
        assert late._squares == {s.learner: early._squares[s.learner] for s in sources[:count]}
    exact = np.square(values[3].astype(np.float64)).sum()
    assert early._squares["l3"] == pytest.approx(exact, rel=1e-12)


def test_the_last_strip_may_be_shorter() -> None:
    for size in (0, 1, ADDED - 1, ADDED, ADDED + 1, 3 * ADDED + 2):
        values = arrays(5, np.float32, size)
        expected = tree(values)
        given = [values[k] for k in range(5)]
        weights_of = [3.0 + k for k in range(5)]
        assert total(given, weights_of).tobytes() == expected.tobytes()
        assert total(iter(given), weights_of).tobytes() == expected.tobytes()
        out = np.full(size, np.nan)
        assert total(given, weights_of, out=out) is out
        assert out.tobytes() == expected.tobytes()


def test_a_sum_of_a_subtree_is_not_overwritten() -> None:
    """Bytes of a file, which cannot be written to, are copied before anything is added to them."""
    values = arrays(4, np.float32, ADDED + 9)
    left = np.frombuffer(tree(values[:2]).tobytes(), np.float64)
    before = left.tobytes()
    found = total([left, values[2], values[3]], [7.0, 5.0, 6.0], places=[0, 2, 3], summed={0})
    assert found.tobytes() == tree(values).tobytes()
    assert left.tobytes() == before
    alone = total([left], [7.0], summed={0})
    alone[0] = 1.0
    assert left.tobytes() == before
