"""Aggregation from the store: constant memory, any order, and what hostile updates cannot do."""

from __future__ import annotations

import itertools
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from fedpipe import weights
from fedpipe.aggregation import Combined, Rule, Source, combine, make_rule, make_server_step
from fedpipe.errors import CorruptError, NotFoundError, StoreError, StoreUnavailableError, WeightsError
from fedpipe.federation.optimizers import Adagrad, Adam, OptimizerSettings, Sgd, Yogi
from fedpipe.federation.rules import Mean, Median
from fedpipe.store import LocalStore, MemoryStore, Reader, Store, keys
from fedpipe.store.objects import digest_of
from tests.aggregation.registered import EACH_KIND, Case, Closest, closest, registered
from tests.processes import few_files

BASE = {
    "kernel": np.linspace(-1, 1, 700_000, dtype=np.float32).reshape(700, 1000),
    "bias": np.zeros(3, ml_dtypes.bfloat16),
    "scale": np.float64(1.0),
    "none": np.zeros((0,), np.float32),
    "count": np.int64(3),
    "flag": np.array([False]),
}


def update(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "kernel": BASE["kernel"] + rng.normal(size=BASE["kernel"].shape).astype(np.float32),
        "bias": rng.normal(size=3).astype(ml_dtypes.bfloat16),
        "scale": np.float64(rng.normal()),
        "none": BASE["none"],
        "count": np.int64(3 + seed),
        "flag": np.array([seed == 1]),
    }


def put(store: Store, learner: str, data: bytes, weight: float = 1.0, **more: Any) -> Source:
    digest = more.get("digest", digest_of(data))
    store.replace(keys.content(digest, learner), data)
    return Source(learner, digest, more.get("size", len(data)), weight, more.get("place", place_of(learner)))


def place_of(learner: str) -> int:
    """Of `l3`: 3; of others: behind them."""
    return int(learner[1:]) if learner[1:].isdigit() else 99


MEAN = make_rule(Mean())


def run(
    store: MemoryStore, sources: list[Source], folder: Path, *, rule: Rule = MEAN, state: Any = None, **optimizer: float
) -> Combined:
    data = weights.dumps(BASE)
    store.replace(keys.content(digest_of(data)), data)
    return combine(
        store, sources, layout=weights.layout_of(BASE), base=digest_of(data), state=state or {}, rule=rule,
        server=make_server_step(Sgd(**{"learning_rate": 1.0} | optimizer)), folder=folder,
    )  # fmt: skip


@pytest.fixture
def sources(store: MemoryStore) -> list[Source]:
    return [put(store, f"l{k}", weights.dumps(update(k)), k + 1) for k in range(4)]


def test_more_updates_than_a_process_may_open_files(tmp_path: Path) -> None:
    """The limit is raised: a learner whose file cannot be opened would be refused."""
    store, arrays = LocalStore(tmp_path / "store"), {"w": np.ones(3)}
    names, data = [f"l{k}" for k in range(40)], weights.dumps(arrays)
    given = [put(store, name, data) for name in names]
    with few_files(25):
        found = combine(
            store, given, layout=weights.layout_of(arrays), base=given[0].digest, state={}, rule=MEAN,
            server=make_server_step(Sgd(learning_rate=1.0)), folder=tmp_path,
        )  # fmt: skip
    assert (found.accepted, found.refused) == (tuple(sorted(names)), {})


def result(combined: Combined) -> dict[str, np.ndarray]:
    assert digest_of(combined.weights[0].read_bytes()) == combined.weights[1]
    return weights.load(combined.weights[0])


def test_it_is_the_mean(store: MemoryStore, sources: list[Source], tmp_path: Path) -> None:
    found = result(run(store, sources, tmp_path))
    expected = sum(update(k)["kernel"].astype(np.float64) * (k + 1) for k in range(4)) / 10
    np.testing.assert_array_equal(found["kernel"], expected.astype(np.float32))
    assert found["bias"].dtype == ml_dtypes.bfloat16
    assert found["count"] == 6
    assert found["flag"] == [True]
    assert found["none"].shape == (0,)
    assert found["scale"] == pytest.approx(sum(update(k)["scale"] * (k + 1) for k in range(4)) / 10, rel=1e-15)


def test_it_is_the_median(store: MemoryStore, sources: list[Source], tmp_path: Path) -> None:
    """The mean of two float32 is computed in float64, and of counters the largest is taken."""
    found = result(run(store, sources, tmp_path, rule=make_rule(Median())))
    expected = np.sort([update(k)["kernel"] for k in range(4)], axis=0)[1:3].astype(np.float64).mean(axis=0)
    np.testing.assert_array_equal(found["kernel"], expected.astype(np.float32))
    assert found["count"] == 6
    assert found["flag"] == [True]


def test_it_is_the_mean_of_the_closest(store: MemoryStore, tmp_path: Path) -> None:
    """Only updates that count leave something, be it a counter; the others are checked all the same."""
    far = {**update(3), "kernel": update(3)["kernel"] + 100, "count": np.int64(1_000_000)}
    updates = [update(0), far, update(1), update(2)]
    sources = [put(store, f"l{k}", weights.dumps(u), k + 1) for k, u in enumerate(updates)]
    combined = run(store, sources, tmp_path, rule=closest(Closest(share=0.75)))
    found = result(combined)
    expected = sum(updates[k]["kernel"].astype(np.float64) * (k + 1) for k in (0, 2, 3)) / 8
    np.testing.assert_array_equal(found["kernel"], expected.astype(np.float32))
    assert found["count"] == 5
    assert combined.accepted == ("l0", "l1", "l2", "l3")
    assert combined.refused == {}


def test_bytes_that_change_between_two_passes_are_refused(tmp_path: Path) -> None:
    """Distances are of the verified updates that are combined afterwards, or of none."""

    class Changing(MemoryStore):
        """Gives other bytes from the second reading of an update on."""

        readings = 0

        def open(self, key: str) -> Any:
            if "/l1/" in key:
                self.readings += 1
                if self.readings == 2:
                    self.replace(key, altered(self.read(key, limit=2**30).data))
            return super().open(key)

    store, rule = Changing(), closest(Closest(share=1.0))
    sources = [put(store, f"l{k}", weights.dumps(update(k)), k + 1) for k in range(3)]
    combined = run(store, sources, tmp_path, rule=rule)
    assert combined.refused == {"l1": "the weights do not match their digest"}
    assert combined.weights[1] == run(store, [sources[0], sources[2]], tmp_path, rule=rule).weights[1]


@pytest.mark.parametrize(
    "optimizer",
    [
        Adam(learning_rate=0.5),
        Adam(learning_rate=0.5, formulas="tff"),
        Yogi(learning_rate=0.5, formulas="tff"),
        Adagrad(learning_rate=0.5),
    ],
)
def test_an_optimizer_continues_from_its_state(
    store: MemoryStore, sources: list[Source], tmp_path: Path, optimizer: OptimizerSettings
) -> None:
    """The number of steps is part of it, where the formulas need it."""
    server = make_server_step(optimizer)
    mean = sum(update(k)["kernel"].astype(np.float64) * (k + 1) for k in range(4)) / 10
    expected: Any = BASE["kernel"].astype(np.float64)
    held = {slot: np.full(mean.shape, server.starts.get(slot, 0.0)) for slot in server.slots}
    base, state = digest_of(weights.dumps(BASE)), dict[str, str]()
    store.replace(keys.content(base), weights.dumps(BASE))
    for number in (1, 2, 3):
        folder = tmp_path / str(number)
        folder.mkdir()
        found = combine(
            store,
            sources,
            layout=weights.layout_of(BASE),
            base=base,
            state=state,
            rule=MEAN,
            server=server,
            folder=folder,
        )
        expected, held = server.step(expected, mean, held, number)
        np.testing.assert_allclose(result(found)["kernel"], expected, rtol=1e-5, atol=1e-5)
        expected = result(found)["kernel"].astype(np.float64)
        base = found.weights[1]
        store.upload(keys.content(base), found.weights[0])
        state = {slot: digest for slot, (_, digest) in found.state.items()}
        for path, digest in found.state.values():
            store.upload(keys.content(digest, kind="coordinator"), path)
    assert ("steps" in state) == server.counts == (getattr(optimizer, "formulas", None) == "tff")


def test_momentum_goes_on_from_its_state(store: MemoryStore, sources: list[Source], tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    optimizer = {"learning_rate": 0.5, "momentum": 0.9}
    first = run(store, sources, tmp_path / "one", **optimizer)
    path, digest = first.state["velocity"]
    store.upload(keys.content(digest, kind="coordinator"), path)
    second = result(run(store, sources, tmp_path / "two", state={"velocity": digest}, **optimizer))
    mean = sum(update(k)["kernel"].astype(np.float64) * (k + 1) for k in range(4)) / 10
    velocity = mean - BASE["kernel"]
    velocity = mean - BASE["kernel"] + 0.9 * velocity
    np.testing.assert_allclose(second["kernel"], BASE["kernel"] + 0.5 * velocity, rtol=1e-5, atol=1e-6)


def altered(data: bytes, position: int = -1) -> bytes:
    changed = bytearray(data)
    changed[position] ^= 1
    return bytes(changed)


def with_header(change: Any) -> bytes:
    """An update whose header was changed by hand, with a digest that fits its bytes."""
    data = weights.dumps(update(9))
    length = struct.unpack("<Q", data[:8])[0]
    table = json.loads(data[8 : 8 + length])
    change(table)
    head = json.dumps(table, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    return struct.pack("<Q", len(head)) + head + data[8 + length :]


def lie_about_dtype(table: Any) -> None:
    table["kernel"]["dtype"] = "I32"


def lie_about_shape(table: Any) -> None:
    table["kernel"]["shape"] = [1000, 700]


def rename(table: Any) -> None:
    table["../../HEAD"] = table.pop("kernel")


def overlap(table: Any) -> None:
    table["bias"]["data_offsets"] = [0, 6]


def outside(table: Any) -> None:
    table["kernel"]["data_offsets"][1] += 2**40


GOOD = weights.dumps(update(9))
HOSTILE: dict[str, tuple[bytes, str]] = {
    "truncated": (GOOD[:-1], "the tensors end at byte"),
    "truncated in the header": (GOOD[:100], "truncated"),
    "empty": (b"", "truncated"),
    "header too large": (struct.pack("<Q", 2**40) + GOOD[8:], "truncated"),
    "dtype lie": (with_header(lie_about_dtype), "is I32"),
    "shape lie": (with_header(lie_about_shape), r"is F32\[1000, 700\]"),
    "large header": (struct.pack("<Q", 2**21) + b" " * 2**21 + GOOD[8:], "the header claims 2097152 bytes where"),
    "large header of the same size": (struct.pack("<Q", 2**21) + b"[" * (len(GOOD) - 8), "the header claims 2097152"),
    "path trick": (with_header(rename), "'kernel' is missing"),
    "overlap": (with_header(overlap), "overlaps"),
    "outside": (with_header(outside), "bytes do not make its shape"),
    "nan": (weights.dumps({**update(9), "kernel": np.full((700, 1000), np.nan, np.float32)}), "NaN or infinity"),
    "one infinity": (weights.dumps({**update(9), "scale": np.float64(-np.inf)}), "NaN or infinity"),
    "bfloat16 nan": (
        weights.dumps({**update(9), "bias": np.array([1, np.nan, 2], ml_dtypes.bfloat16)}),
        "NaN or infinity",
    ),
    "a tensor more": (weights.dumps({**update(9), "more": np.zeros(1)}), "'more' is not part of the model"),
    "a tensor less": (weights.dumps({k: v for k, v in update(9).items() if k != "bias"}), "'bias' is missing"),
    "metadata": (with_header(lambda t: t.update(__metadata__={"a": "b"})), "canonical"),
}


@pytest.mark.parametrize(("data", "why"), HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_update_is_refused_and_leaves_no_trace(
    store: MemoryStore, sources: list[Source], tmp_path: Path, data: bytes, why: str
) -> None:
    clean = run(store, sources, tmp_path).weights[1]
    combined = run(store, [*sources, put(store, "evil", data, 5.0)], tmp_path)
    assert combined.weights[1] == clean
    assert list(combined.refused) == ["evil"]
    assert __import__("re").search(why, combined.refused["evil"])
    assert combined.accepted == ("l0", "l1", "l2", "l3")


def test_flipped_bits_are_refused(store: MemoryStore, sources: list[Source], tmp_path: Path) -> None:
    evil = put(store, "evil", altered(GOOD, -1000), digest=digest_of(GOOD))
    combined = run(store, [*sources, evil], tmp_path)
    assert combined.refused == {"evil": "the weights do not match their digest"}


def test_two_at_once(store: MemoryStore, sources: list[Source], tmp_path: Path) -> None:
    clean = run(store, sources, tmp_path).weights[1]
    evil = [put(store, "a-evil", altered(GOOD), digest=digest_of(GOOD)), put(store, "z-evil", HOSTILE["nan"][0])]
    combined = run(store, [*evil, *sources], tmp_path)
    assert combined.weights[1] == clean
    assert sorted(combined.refused) == ["a-evil", "z-evil"]


def test_missing_weights(store: MemoryStore, sources: list[Source], tmp_path: Path) -> None:
    combined = run(store, [*sources, Source("gone", digest_of(b"gone"), 10, 1.0, 99)], tmp_path)
    assert combined.refused == {"gone": "the weights are not in the store"}


def test_a_size_that_the_manifest_denies(store: MemoryStore, sources: list[Source], tmp_path: Path) -> None:
    combined = run(store, [*sources, put(store, "evil", GOOD, size=7)], tmp_path)
    assert "the manifest says 7" in combined.refused["evil"]


def test_when_nobody_is_left(store: MemoryStore, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no update can be used: evil: "):
        run(store, [put(store, "evil", HOSTILE["nan"][0])], tmp_path)


def test_a_step_that_overflows_is_reported(store: MemoryStore, sources: list[Source], tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="not finite although every update is"):
        run(store, sources, tmp_path, learning_rate=1e39)


def test_a_failing_store_is_no_ones_fault(store: MemoryStore, sources: list[Source], tmp_path: Path) -> None:
    class Failing(MemoryStore):
        def open(self, key: str) -> Any:
            raise StoreUnavailableError("down")

    failing = Failing(_shelf=store._shelf)
    with pytest.raises(StoreUnavailableError):
        run(failing, sources, tmp_path)


@pytest.mark.parametrize("case", EACH_KIND, ids=lambda case: case.name)
def test_memory_does_not_grow_with_learners(tmp_path: Path, case: Case) -> None:
    """24 updates of 8 MB: a few pieces are held, not all that wait to be read, hashed or added."""
    from fedpipe.store import LocalStore

    large = {"w": np.ones(2_000_000, np.float32)}
    digest = weights.save(large, tmp_path / "w")
    store = LocalStore(tmp_path / "store")
    store.upload(keys.content(digest), tmp_path / "w")
    for k in range(24):
        store.upload(keys.content(digest, f"l{k:02}"), tmp_path / "w")
    sources = [Source(f"l{k:02}", digest, (tmp_path / "w").stat().st_size, k + 1, k) for k in range(24)]
    server, layout = make_server_step(Sgd(learning_rate=1.0)), weights.layout_of(large)
    del large
    with registered(closest=closest):
        rule = case.make()
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = resident("VmRSS")
    combine(store, sources, layout=layout, base=digest, state={}, rule=rule, server=server, folder=tmp_path)
    assert resident("VmHWM") - before < 64 * 2**20


def resident(name: str) -> int:
    line = next(text for text in Path("/proc/self/status").read_text().splitlines() if text.startswith(name))
    return int(line.split()[1]) * 1024


class Changing(MemoryStore):
    """A store in which the owner of an update deletes it, or stores it with an encoding, while it is read."""

    errors: Iterator[Exception | None]

    def open(self, key: str) -> Reader:
        return Interrupted(super().open(key), self.errors) if "/evil/" in key else super().open(key)


class Interrupted:
    def __init__(self, reader: Reader, errors: Iterator[Exception | None]) -> None:
        self._reader, self._errors, self.size = reader, errors, reader.size

    def read(self, length: int) -> bytes:
        if error := next(self._errors):
            raise error
        return self._reader.read(length)

    def close(self) -> None:
        self._reader.close()


@pytest.mark.parametrize("moment", range(5))
@pytest.mark.parametrize(
    ("error", "why"),
    [
        (CorruptError("the object changed while it was read"), "the object changed while it was read"),
        (NotFoundError("gone"), "the weights are not in the store"),
        (StoreError("InvalidRequest"), "the weights cannot be read: InvalidRequest"),
    ],
    ids=["changed", "removed", "encrypted"],
)
def test_an_update_that_changes_while_it_is_read(tmp_path: Path, moment: int, error: Exception, why: str) -> None:
    """At the header and at any chunk, also when the next pass begins."""
    store = Changing()
    sources = [put(store, f"l{n}", weights.dumps(update(n)), n + 1.0) for n in range(4)]
    clean = run(store, sources, tmp_path).weights[1]
    store.errors = itertools.chain([None] * moment, itertools.repeat(error))
    combined = run(store, [*sources, put(store, "evil", GOOD, 5.0)], tmp_path)
    assert combined.weights[1] == clean
    assert combined.refused == {"evil": why}


@pytest.mark.parametrize(
    ("error", "why"),
    [(NotFoundError("gone"), "the weights are not in the store"), (StoreError("no"), "the weights cannot be read: no")],
    ids=["removed", "encrypted"],
)
def test_an_update_that_changes_before_it_is_read_again(tmp_path: Path, error: Exception, why: str) -> None:
    """It makes the aggregate overflow, and cannot be read when the largest weights are looked for."""

    class Denying(MemoryStore):
        def read_range(self, key: str, start: int, length: int) -> bytes:
            if "/evil/" in key:
                raise error
            return super().read_range(key, start, length)

    store = Denying()
    sources = [put(store, f"l{n}", weights.dumps(update(n)), n + 1.0) for n in range(4)]
    clean = run(store, sources, tmp_path, learning_rate=2.0).weights[1]
    evil = put(store, "evil", weights.dumps({**update(9), "kernel": BASE["kernel"] * 0 + np.float32(3e38)}), 1e9)
    combined = run(store, [*sources, evil], tmp_path, learning_rate=2.0)
    assert combined.weights[1] == clean
    assert combined.refused == {"evil": why}
