"""Numbers at the edge of what their types hold drop the learner that sent them, and nobody else."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedpipe import weights
from fedpipe.errors import CorruptError, RoundError
from fedpipe.rounds import manifests
from fedpipe.rounds.beginning import begin
from fedpipe.rounds.closing import close_round
from fedpipe.rounds.history import read_record
from fedpipe.rounds.manifests import Dropped, Head, Record, Spent, Update
from fedpipe.rounds.updates import mean_metrics, publish_update
from fedpipe.store import MemoryStore, keys
from fedpipe.store.objects import decode, digest_of, encode, get_bytes, put_file
from tests.federations import PlusOneLearner, fresh, make_federation, make_plan, play_round
from tests.sessions.test_coordinator import Session, plan_of

LARGE: dict[str, dict[str, Any]] = {
    "weights of 3e38": {"w": np.full(5, 3e38, np.float32)},
    "one weight of 3e38": {"w": np.array([0, 1, 2, -3e38, 4], np.float32)},
    "a weight of 1.7e308": {"b": np.float64(1.7e308)},
    "a weight of -1.7e308": {"b": np.float64(-1.7e308)},
    "a counter of 2^63 - 1": {"steps": np.int64(2**63 - 1)},
    "a counter of 2^62": {"steps": np.int64(2**62)},
}
FAST = {"name": "averaging", "server_optimizer": {"learning_rate": 2.0}}
HEAVY = {"name": "averaging", "server_optimizer": {"learning_rate": 1.5, "momentum": 0.9}}


def offer(store: MemoryStore, folder: Path, learner: str, base: str, arrays: dict[str, Any], **changes: Any) -> None:
    digest = weights.save(arrays, folder / "offered")
    put_file(store, folder / "offered", digest, learner)
    size = (folder / "offered").stat().st_size
    content = {
        "federation": "tiny", "run": "r1", "round": 1, "learner": learner, "base": base, "weights": digest,
        "size": size, "examples": 100, "metrics": {"loss": 1.0},
    }  # fmt: skip
    publish_update(store, Update(**{**content, **changes}))


@pytest.mark.parametrize("change", LARGE.values(), ids=LARGE)
@pytest.mark.parametrize("algorithm", ["averaging", FAST, HEAVY], ids=["mean", "fast", "momentum"])
@pytest.mark.parametrize("hostile", ["a", "c"])
def test_the_culprit_is_dropped_by_name(
    store: MemoryStore, tmp_path: Path, change: dict[str, Any], algorithm: Any, hostile: str
) -> None:
    plan = make_plan(make_federation(algorithm=algorithm))
    start = begin(store, plan, fresh)
    honest = {name: PlusOneLearner(k, k) for name, k in zip("abc", (1, 2, 3), strict=True) if name != hostile}
    play_round(store, plan, 1, start.weights, honest)
    offer(store, tmp_path, hostile, start.weights, {**fresh(), **change})
    record = close_round(store, plan, 1, start.weights)
    if hostile in [update.learner for update in record.updates]:
        # a mean of finite numbers is finite, and so is every number of it
        arrays = weights.loads(get_bytes(store, record.weights))
        weights.check_finite(arrays)
        assert algorithm == "averaging"
        assert "w" in change
        return
    assert [item.learner for item in record.dropped] == [hostile]
    alone = MemoryStore()
    begin(alone, plan, fresh)
    play_round(alone, plan, 1, start.weights, {**honest, hostile: PlusOneLearner(0, fails=record.dropped[0].why)})
    assert encode(close_round(alone, plan, 1, start.weights)) == encode(record)


@pytest.mark.parametrize("change", LARGE.values(), ids=LARGE)
def test_also_while_updates_are_added_as_they_arrive(
    change: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedpipe.aggregation.tree.WORTH_ADDING", 0)

    class Hostile(PlusOneLearner):
        def propose_weights(self, **more: Any) -> Any:
            return super().propose_weights(**more)._replace(weights={**self._current, **change})

    outcomes = []
    for hostile in (Hostile(1, 100), PlusOneLearner(1, fails="no")):
        session = Session(plan_of(3, tuple("abcd"), algorithm=FAST))
        session.learners["b"] = hostile
        session.run(seconds={"a": 9.0, "b": 3.0, "c": 1.0, "d": 20.0})
        assert [list(session.dropped(k)) for k in (1, 2, 3)] == [["b"]] * 3
        outcomes.append([record.weights for record in session.records])
    assert outcomes[0] == outcomes[1]


def test_a_learning_rate_that_is_too_high_for_all_is_named(store: MemoryStore, tmp_path: Path) -> None:
    plan = make_plan(make_federation(algorithm=FAST))
    start = begin(store, plan, fresh)
    for name in "abc":
        offer(store, tmp_path, name, start.weights, {**fresh(), "w": np.full(5, 3e38, np.float32)})
    with pytest.raises(RoundError, match="lower the learning rates"):
        close_round(store, plan, 1, start.weights)
    assert read_record(store, "r1", 1) is None


@pytest.mark.parametrize("value", [1.7e308, -1.7e308, 1e39, 3.5e38])
def test_a_metric_that_is_too_large_drops_its_learner(store: MemoryStore, value: float) -> None:
    plan = make_plan()
    start = begin(store, plan, fresh)
    play_round(store, plan, 1, start.weights, {name: PlusOneLearner(1) for name in "ab"})
    update = (
        b'{"federation":"tiny","run":"r1","round":1,"learner":"c","base":"%s","weights":"%s","size":1,"examples":%d,'
    )
    update += b'"metrics":{"loss":%r}}'.replace(b"%r", repr(value).encode())
    zero = digest_of(b"").encode()
    store.create(keys.update("c", "r1", 1), update % (start.weights.encode(), zero, 2**53))
    record = close_round(store, plan, 1, start.weights)
    assert [item.learner for item in record.dropped] == ["c"]
    assert "metrics" in record.dropped[0].why
    assert record.metrics == {"loss": 1.0}


def test_the_largest_metrics_have_a_finite_mean() -> None:
    common = {"federation": "f", "run": "r", "round": 1, "base": digest_of(b""), "weights": digest_of(b""), "size": 1}
    updates = [
        Update(**common, learner=name, examples=2**53, metrics={"loss": sign * 3.4e38})
        for name, sign in (("a", 1), ("b", 1), ("c", 1))
    ]
    for update in updates:
        encode(update)
    assert mean_metrics(updates)["loss"] == pytest.approx(3.4e38)


def test_one_learner_takes_no_metric_from_the_others() -> None:
    common = {"federation": "f", "run": "r", "round": 1, "base": digest_of(b""), "weights": digest_of(b""), "size": 1}
    told: tuple[tuple[str, dict[str, float]], ...] = (("a", {"loss": 1.0}), ("b", {"loss": 3.0}), ("c", {"other": 9.0}))
    updates = [Update(**common, learner=name, examples=1, metrics=metrics) for name, metrics in told]
    assert mean_metrics(updates) == {"loss": 2.0}


ROUND: dict[str, Any] = {
    "federation": "f", "run": "r", "round": 1, "previous": None, "plan": digest_of(b""), "base": None,
    "weights": digest_of(b""), "layout": digest_of(b""),
}  # fmt: skip
UNREADABLE: dict[str, Any] = {
    "infinity": Record(**ROUND, metrics={"loss": math.inf}),
    "NaN": Record(**ROUND, metrics={"loss": math.nan}),
    "too many metrics": manifests.Tested(examples=1, metrics={str(k): 0.0 for k in range(101)}),
    "no examples": manifests.Tested(examples=0, metrics={}),
    "a malformed name": Head(run="../x", round=1, record=digest_of(b""), weights=digest_of(b"")),
    "a malformed digest": Head(run="r", round=1, record="sha256:0", weights=digest_of(b"")),
    "a huge number": Head(run="r", round=2**64, record=digest_of(b""), weights=digest_of(b"")),
    "epsilon": Spent(
        events=1, epsilon_poisson=math.inf, epsilon_unamplified=1.0, delta=1e-5, target_epsilon=1.0, sampling="none"
    ),
    "another type": Dropped(learner="a", why=7),  # type: ignore[arg-type]
    "half of a pair": Dropped(learner="a", why="\ud800"),
    "a plain value": {"path": [1.0, math.inf]},
}


@pytest.mark.parametrize("value", UNREADABLE.values(), ids=UNREADABLE)
def test_encoding_refuses_what_decoding_would_not_give_back(value: Any) -> None:
    with pytest.raises(CorruptError, match="cannot be written"):
        encode(value)


@pytest.mark.parametrize("number", [0, 2, 2**70, -1])
def test_another_format_is_named(number: int) -> None:
    data = encode(Update(**{**ROUND_UPDATE, "format": 1})).replace(b'"format":1', b'"format":%d' % number)
    with pytest.raises(CorruptError, match="unknown format") as caught:
        decode(data.replace(b'"size"', b'"bytes"'), Update, where="update")
    assert caught.value.remedy == "Upgrade fedpipe."
    with pytest.raises(CorruptError, match="unknown format"):
        decode(data, Update, where="update")


ROUND_UPDATE: dict[str, Any] = {
    "federation": "f", "run": "r", "round": 1, "learner": "a", "base": digest_of(b""), "weights": digest_of(b""),
    "size": 1, "examples": 1, "metrics": {},
}  # fmt: skip
