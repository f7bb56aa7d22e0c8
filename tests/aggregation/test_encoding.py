"""Updates in fewer bytes: what they stand for, that they combine like others, and what hostile ones cannot do."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays, floating_dtypes

from fedpipe import weights
from fedpipe.aggregation import Combined, Forest, Rule, Source, combine, make_rule, make_server_step
from fedpipe.aggregation.encoding import Encoding, encode
from fedpipe.federation.exchange import Exchange
from fedpipe.federation.optimizers import Sgd
from fedpipe.federation.rules import Mean
from fedpipe.store import MemoryStore, keys
from fedpipe.store.objects import digest_of
from tests.aggregation.registered import EACH_KIND, Case, closest, registered

INT8 = Exchange(dtype="int8")
EVERY = [INT8, Exchange(dtype="bfloat16"), Exchange(kind="weights", dtype="bfloat16"), Exchange()]
RNG = np.random.default_rng(7)
BASE: dict[str, Any] = {
    "kernel": RNG.normal(size=(130, 1000)).astype(np.float32),
    "bias": RNG.normal(size=3).astype(ml_dtypes.bfloat16),
    "exact": RNG.normal(size=(2, 150)),
    "half": RNG.normal(size=700).astype(np.float16),
    "none": np.zeros((0, 4), np.float32),
    "scale": np.float64(1.0),
    "seen": np.int64(3),
    "flag": np.array([False]),
}


def trained(seed: int, base: dict[str, Any] = BASE) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    moved = {
        name: (np.asarray(value) + rng.normal(size=np.shape(value)) * 0.01).astype(np.asarray(value).dtype)
        for name, value in base.items()
    }
    counters = {"seen": np.int64(3 + seed), "flag": np.array([seed == 1])}
    return moved | {name: value for name, value in counters.items() if name in base}


def plain(exchange: Exchange, sent: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Reads what an encoded update stands for in another way: in one piece, block by block, in plain loops."""
    layout, data = weights.layout_of(BASE), bytes(sent["exchange"])
    width = {"int8": 1, "bfloat16": 2, "float32": 8}[exchange.dtype]
    found, position, found_bytes = {}, 0, {}
    tensors = list(layout.tensors)
    while tensors:  # floats of one dtype that are next to each other are one row of numbers
        run = [t for t in tensors if t.dtype == tensors[0].dtype]
        tensors = tensors[len(run) :]
        dtype, count = run[0].numpy_dtype, sum(int(np.prod(t.shape)) for t in run)
        if run[0].dtype not in weights.FLOATS or dtype.itemsize <= width:
            values = np.frombuffer(data, dtype, count, position).astype(
                np.float64 if run[0].dtype in weights.FLOATS else dtype
            )
            position += count * dtype.itemsize
        elif exchange.dtype == "bfloat16":
            values = np.frombuffer(data, ml_dtypes.bfloat16, count, position).astype(np.float64)
            position += 2 * count
        else:
            values = plain_vector(data[position:], count)
            position += count + 4 * -(-count // 256)
        found_bytes[run[0].dtype] = values
        for tensor in run:
            size = int(np.prod(tensor.shape))
            part, values = values[:size].reshape(tensor.shape), values[size:]
            if tensor.dtype in weights.FLOATS and exchange.changes:
                part = part + np.asarray(BASE[tensor.name]).astype(np.float64)
            found[tensor.name] = part.astype(dtype)
    assert position == len(data)
    return found


def put(store: MemoryStore, learner: str, arrays: dict[str, Any], **more: Any) -> Source:
    data = more.pop("data", None) or weights.dumps(arrays)
    digest = digest_of(data)
    store.replace(keys.content(digest, learner), data)
    return Source(learner, digest, len(data), 1.0, int(learner[1:]))


def combined(
    store: MemoryStore, sources: list[Source], folder: Path, exchange: Exchange | None, rule: Rule | None = None,
    forest: Forest | None = None,
) -> Combined:  # fmt: skip
    data = weights.dumps(BASE)
    store.replace(keys.content(digest_of(data)), data)
    folder.mkdir(exist_ok=True)
    return combine(
        store, sources, layout=weights.layout_of(BASE), base=digest_of(data), state={}, rule=rule or make_rule(Mean()),
        server=make_server_step(Sgd(learning_rate=1.0)), folder=folder, exchange=exchange, forest=forest,
    )  # fmt: skip


def sent(exchange: Exchange, seed: int) -> dict[str, Any]:
    return encode(exchange, trained(seed), BASE, {}, np.random.default_rng(seed)).update


@pytest.mark.parametrize("exchange", EVERY, ids=str)
@pytest.mark.parametrize("case", EACH_KIND, ids=str)
def test_a_rule_sees_the_weights_that_updates_stand_for(
    store: MemoryStore, tmp_path: Path, exchange: Exchange, case: Case
) -> None:
    with registered(closest=closest):
        rule = case.make()
    updates = [sent(exchange, seed) for seed in range(4)]
    encoded = [put(store, f"l{k}", update) for k, update in enumerate(updates)]
    exact = [put(store, f"l{k}", plain(exchange, update, tmp_path)) for k, update in enumerate(updates)]
    found = combined(store, encoded, tmp_path / "encoded", exchange, rule)
    assert found.weights[1] == combined(store, exact, tmp_path / "exact", None, rule).weights[1]
    assert found.weights[1] == combined(store, encoded[::-1], tmp_path / "again", exchange, rule).weights[1]


@pytest.mark.parametrize("exchange", EVERY, ids=str)
def test_sums_that_grow_early_are_the_same(
    store: MemoryStore, tmp_path: Path, exchange: Exchange, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedpipe.aggregation.tree.WORTH_ADDING", 0)
    sources = [put(store, f"l{k}", sent(exchange, k)) for k in range(3)]
    whole = combined(store, sources, tmp_path / "whole", exchange)
    layout, base = weights.layout_of(BASE), tmp_path / "base"
    base.write_bytes(weights.dumps(BASE))
    encoding = Encoding(exchange, layout, base)
    forest = Forest.plant(store, layout, make_rule(Mean()), range(3), tmp_path, encoding=encoding)
    assert forest is not None
    for source in sources[::-1]:
        forest.add(source)
    assert combined(store, sources, tmp_path / "early", exchange, forest=forest).weights[1] == whole.weights[1]


def test_int8_takes_at_most_26_hundredths_of_float32() -> None:
    base = {"kernel": np.zeros((1000, 300), np.float32)}
    update = encode(INT8, trained(1, base), base, {}, np.random.default_rng(0)).update
    assert len(weights.dumps(update)) <= 0.26 * len(weights.dumps(base))


@given(
    values=arrays(
        floating_dtypes(sizes=(32, 64), endianness="<"), st.integers(1, 600), elements=st.floats(-1e3, 1e3, width=32)
    ),
    seed=st.integers(0, 2**31),
)
def test_rounding_takes_less_than_a_step_and_the_residual_has_it(values: Any, seed: int) -> None:
    base, after = {"w": np.zeros_like(values)}, {"w": values}
    found = encode(INT8, after, base, {}, np.random.default_rng(seed))
    layout = weights.layout_of(base)
    held = plain_vector(found.update["exchange"], values.size)
    steps = np.repeat([max(abs(values[k : k + 256]).max() / 127, 1e-38) for k in range(0, values.size, 256)], 256)
    assert (abs(held - values) <= steps[: values.size] * 1.0001).all()
    np.testing.assert_allclose(found.residual["w"], values - held, atol=1e-4)
    assert layout.tensors[0].name == "w"


def plain_vector(data: Any, count: int) -> Any:
    rows, position = [], 0
    for start in range(0, count, 256):
        length = min(256, count - start)
        (step,) = struct.unpack_from("<f", bytes(data), position)
        rows += [step * whole for whole in struct.unpack_from(f"{length}b", bytes(data), position + 4)]
        position += 4 + length
    return np.array(rows)


def test_the_mean_of_many_draws_is_the_value() -> None:
    values = np.linspace(-1, 1, 256, dtype=np.float32)
    draws = [
        plain_vector(
            encode(INT8, {"w": values}, {"w": np.zeros_like(values)}, {}, np.random.default_rng(seed)).update[
                "exchange"
            ],
            256,
        )
        for seed in range(2000)
    ]
    np.testing.assert_allclose(np.mean(draws, axis=0), values, atol=5 * 0.5 / 127 / np.sqrt(2000))


def test_what_was_taken_away_arrives_with_the_next_change() -> None:
    """The changes of many rounds add up to the sum of what was wanted, but for the last residual."""
    wanted, base, residual, arrived = (
        np.full(300, 0.001, np.float32),
        {"w": np.zeros(300, np.float32)},
        {},
        np.zeros(300),
    )
    wanted[0] = 1.0  # the others are much smaller than a step
    for number in range(50):
        found = encode(INT8, {"w": wanted}, base, residual, np.random.default_rng(number))
        residual = found.residual
        arrived += plain_vector(found.update["exchange"], 300)
    np.testing.assert_allclose(arrived + residual["w"], 50 * wanted.astype(np.float64), atol=1e-4)
    assert abs(residual["w"]).max() < 1 / 127 * 1.1


def test_equal_work_gives_equal_bytes() -> None:
    first, again = (weights.dumps(sent(INT8, 3)) for _ in range(2))
    assert first == again
    assert first != weights.dumps(encode(INT8, trained(3), BASE, {}, np.random.default_rng(4)).update)


def hostile() -> dict[str, bytes]:
    good = weights.dumps(sent(INT8, 1))
    header = 8 + int.from_bytes(good[:8], "little")
    nan = bytearray(good)
    first_float = weights.layout_of(sent(INT8, 1)).data_start + 8  # behind the counter
    nan[first_float : first_float + 4] = struct.pack("<f", float("nan"))
    large = bytearray(good)
    single = first_float + 301 + 2 * 4  # behind the floats of 64 bits, which could hold it
    large[single : single + 4] = struct.pack("<f", 3e38)
    return {
        "truncated": good[:-9],
        "longer": good + b"\0" * 8,
        "only a header": good[:header],
        "whole weights": weights.dumps(trained(1)),
        "another name": weights.dumps({"other": sent(INT8, 1)["exchange"]}),
        "not bytes": weights.dumps({"exchange": sent(INT8, 1)["exchange"].view(np.int8)}),
        "a scale that is not a number": bytes(nan),
        "a scale without bounds": bytes(large),
    }


@pytest.mark.parametrize("kind", list(hostile()))
def test_a_hostile_update_drops_its_learner(store: MemoryStore, tmp_path: Path, kind: str) -> None:
    good = [put(store, f"l{k}", sent(INT8, k)) for k in (0, 2, 3)]
    found = combined(store, [*good, put(store, "l1", {}, data=hostile()[kind])], tmp_path / "all", INT8)
    assert list(found.refused) == ["l1"]
    assert found.weights[1] == combined(store, good, tmp_path / "good", INT8).weights[1]
