"""Compares TFF's aggregators and server optimizers, with updates from a store, with NumPy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedpipe import weights
from fedpipe.engine.preflight import check_aggregation
from fedpipe.engine.workers import Worker
from fedpipe.errors import StepError
from fedpipe.learners.adapters import make_learner
from fedpipe.learners.contribute import contribute
from fedpipe.learners.learner import Arrays, Trained
from fedpipe.rounds.beginning import begin, make_plan
from fedpipe.rounds.history import read_record
from fedpipe.rounds.manifests import Record, Update
from fedpipe.rounds.plan import RunPlace, Shards, read_plan
from fedpipe.steps.aggregate import close
from fedpipe.store import LocalStore
from fedpipe.store.objects import digest_of, get_bytes, put_bytes
from tests.federations import PlusOneLearner, make_federation
from tests.tff.test_simulation import BETAS, adagrad, adam, momentum, rounds, yogi
from tests.tff.test_simulation import begun as begun_simulation

pytestmark = [pytest.mark.heavy, pytest.mark.xdist_group("tff")]

NAMES = ("a", "b", "c")
START: Arrays = {"w": np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4), "b": np.zeros((), np.float64),
                 "steps": np.int64(7)}  # fmt: skip
SIZES = {"a": 1, "b": 2, "c": 5}
RANDOM = np.random.default_rng(4)
CHANGES = {name: (RANDOM.normal(size=(3, 4)) * 0.1, 0.2 * k) for k, name in enumerate(NAMES)}
"""Maps a learner to its changes of `w` and `b` in every round."""


@pytest.fixture(scope="module")
def tff() -> Iterator[Worker]:
    worker = Worker("tff")
    yield worker
    worker.stop()


class Adding(PlusOneLearner):
    """Adds the same to its weights in every round."""

    def __init__(self, w: Any, b: float, examples: int) -> None:
        super().__init__(1.0, examples)
        self._change = {"w": w, "b": b, "steps": examples}

    def propose_weights(self, *, seed: int, seconds: float, optimizer: Arrays | None) -> Trained:
        new = {k: (v + self._change[k]).astype(v.dtype) for k, v in self._current.items()}
        return Trained(new, self._examples, {"loss": 1.0}, None, None)


def begun(folder: Path, start: Arrays = START, weighting: str = "uniform", **algorithm: Any) -> RunPlace:
    algorithm = {"name": "averaging", "engine": "tff", "weighting": weighting, **algorithm}
    federation = make_federation(NAMES, algorithm=algorithm, evaluation={"every_round": False})
    store = LocalStore(folder).below(federation.name)
    put_bytes(store, b"code")
    plan = make_plan("run-1", federation, "code", Shards(learners=dict.fromkeys(NAMES, digest_of(b"x"))))
    begin(store, plan, lambda: start)
    return RunPlace(store=f"file://{folder}", federation=federation.name, run="run-1", plan=plan.digest)


def played(tff: Worker, place: RunPlace, count: int = 1, changes: dict[str, Any] = CHANGES) -> list[Record]:
    """Plays rounds, each aggregated in the tff environment."""
    store = place.open()
    plan = read_plan(store, place.plan)
    found = [read_record(store, "run-1", 0)]
    for number in range(1, count + 1):
        base = found[-1].weights  # type: ignore[union-attr]
        for name, change in changes.items():
            contribute(store, plan, name, number, base, lambda n=name, c=change: Adding(*c, SIZES[n]))
        found.append(tff.call(close, place, number, base))
    return found  # type: ignore[return-value]


def weights_of(place: RunPlace, record: Record) -> Arrays:
    return dict(weights.loads(get_bytes(place.open(), record.weights)))


# The oracle: float64, every update one vector of 13 numbers.


def flat(change: Any) -> np.ndarray:
    return np.append(np.asarray(change[0], np.float64).ravel(), change[1])


def vectors(changes: dict[str, Any] = CHANGES) -> list[np.ndarray]:
    return [flat(change) for change in changes.values()]


def clipped(vector: np.ndarray, norm: float) -> np.ndarray:
    return vector * min(1.0, norm / max(np.linalg.norm(vector), 1e-12))


def found_of(place: RunPlace, record: Record) -> np.ndarray:
    arrays = weights_of(place, record)
    return np.append(arrays["w"].astype(np.float64).ravel(), arrays["b"])


ORIGIN = np.append(START["w"].astype(np.float64).ravel(), START["b"])


class TestRules:
    def test_mean_weights_by_examples(self, tff: Worker, tmp_path: Path) -> None:
        place = begun(tmp_path, weighting="examples")
        record = played(tff, place)[-1]
        expected = ORIGIN + np.average(vectors(), axis=0, weights=list(SIZES.values()))
        np.testing.assert_allclose(found_of(place, record), expected, atol=1e-6)
        assert record.rule == "tff mean"
        assert [u.learner for u in record.updates] == list(NAMES)

    def test_counters_take_the_largest_and_all_keep_their_dtypes(self, tff: Worker, tmp_path: Path) -> None:
        place = begun(tmp_path)
        found = weights_of(place, played(tff, place)[-1])
        assert found["steps"] == 7 + 5
        assert {name: value.dtype for name, value in found.items()} == {n: v.dtype for n, v in START.items()}

    def test_robust_zeroes_and_clips_by_quantiles_that_adapt(self, tff: Worker, tmp_path: Path) -> None:
        """Charles et al. 2021, "On Large-Cohort Training", and Andrew et al. 2021, Algorithm 1, without noise."""
        wild = {"a": (np.full((3, 4), 0.5), 0.1), "b": (np.full((3, 4), 500.0), 0.1), "c": (np.full((3, 4), 0.01), 0.0)}
        place = begun(tmp_path, rule="robust")
        records = played(tff, place, 3, wild)
        now, zero, clip = ORIGIN.copy(), 10.0, 1.0
        for record in records[1:]:
            bound = 2 * zero + 1
            kept = [v if np.abs(v).max() <= bound else np.zeros_like(v) for v in vectors(wild)]
            assert record.metrics["aggregator/zeroed_count"] == 1
            assert record.metrics["aggregator/zeroing_norm"] == pytest.approx(bound, rel=1e-5)
            assert record.metrics["aggregator/zeroing/clipping_norm"] == pytest.approx(clip, rel=1e-5)
            now = now + np.mean([clipped(v, clip) for v in kept], axis=0)
            zero *= np.exp(-np.log(10) * (np.mean([np.abs(v).max() <= zero for v in vectors(wild)]) - 0.98))
            clip *= np.exp(-0.2 * (np.mean([np.linalg.norm(v) <= clip for v in kept]) - 0.8))
            np.testing.assert_allclose(found_of(place, record), now, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("name", ["dp_fixed", "dp_tree"])
    def test_noise_without_noise_is_the_mean_of_clipped_updates(self, name: str, tff: Worker, tmp_path: Path) -> None:
        place = begun(tmp_path, rule={"name": name, "noise_multiplier": 0.0, "clip": 0.2})
        found = found_of(place, played(tff, place)[-1])
        np.testing.assert_allclose(found, ORIGIN + np.mean([clipped(v, 0.2) for v in vectors()], axis=0), atol=1e-6)

    def test_a_learner_that_is_missing_leaves_the_divisor(self, tff: Worker, tmp_path: Path) -> None:
        """Checks it because otherwise the presence of a learner would change the sensitivity."""
        place = begun(tmp_path, rule={"name": "dp_fixed", "noise_multiplier": 0.0, "clip": 100.0})
        two = {name: CHANGES[name] for name in ("a", "b")}
        found = found_of(place, played(tff, place, 1, two)[-1])
        np.testing.assert_allclose(found, ORIGIN + np.sum(vectors(two), axis=0) / 3, atol=1e-6)

    def test_the_adaptive_norm_follows_the_median(self, tff: Worker, tmp_path: Path) -> None:
        """Andrew et al. 2021, Algorithm 1, with the geometric update."""
        rule = {"name": "dp_adaptive", "noise_multiplier": 0.0, "initial_clip": 0.3, "clip_rate": 0.5, "zeroing": False}
        place = begun(tmp_path, rule=rule)
        clip, now = 0.3, ORIGIN.copy()
        for record in played(tff, place, 3)[1:]:
            now = now + np.mean([clipped(v, clip) for v in vectors()], axis=0)
            np.testing.assert_allclose(found_of(place, record), now, atol=1e-5)
            clip *= np.exp(-0.5 * (np.mean([np.linalg.norm(v) <= clip for v in vectors()]) - 0.5))

    @pytest.mark.parametrize(
        ("rule", "tolerance"),
        [({"name": "compression", "zeroing": False, "clipping": False}, 0.01),
         ({"name": "secure", "zeroing": False, "clipping": False}, 1e-4),
         ({"name": "secure_dp", "noise_multiplier": 0.0}, 0.5)],
    )  # fmt: skip
    def test_the_others_are_means_of_a_coarser_grain(
        self, rule: dict[str, Any], tolerance: float, tff: Worker, tmp_path: Path
    ) -> None:
        place = begun(tmp_path, rule=rule)
        found = found_of(place, played(tff, place)[-1])
        updates = vectors() if rule["name"] != "secure_dp" else [clipped(v, 0.1) for v in vectors()]
        np.testing.assert_allclose(found, ORIGIN + np.mean(updates, axis=0), atol=tolerance * 0.1)

    def test_large_tensors_are_compressed_to_eight_bits(self, tff: Worker, tmp_path: Path) -> None:
        start = {"w": np.zeros(30_000, np.float32), "b": np.float64(0), "steps": np.int64(0)}
        changes = {name: (RANDOM.uniform(-1, 1, 30_000), 0.0) for name in NAMES}
        place = begun(tmp_path, start, rule={"name": "compression", "clipping": False})
        found = weights_of(place, played(tff, place, 1, changes)[-1])["w"]
        exact = np.mean([c[0] for c in changes.values()], axis=0)
        assert 0 < np.abs(found - exact).max() <= 2 / 255 + 1e-6  # one step of the grid for each update, averaged

    @pytest.mark.parametrize("name", ["dp_fixed", "dp_tree", "dp_adaptive"])
    def test_noise_has_the_requested_deviation(self, name: str, tff: Worker, tmp_path: Path) -> None:
        """Checks the sum's deviation, noise_multiplier times the clipping norm, and that equal states draw other noise."""
        start = {"w": np.zeros(40_000, np.float32), "b": np.float64(0), "steps": np.int64(0)}
        still = {learner: (np.zeros(40_000), 0.0) for learner in NAMES}
        clip = {"dp_adaptive": {"initial_clip": 2.0}}.get(name, {"clip": 2.0})
        seen = []
        for folder in ("one", "two"):
            rule = {"name": name, "noise_multiplier": 0.2, **clip}
            place = begun(tmp_path / folder, start, rule=rule)
            seen.append(weights_of(place, played(tff, place, 1, still)[-1])["w"])
            assert abs(seen[-1].mean()) < 5 * seen[-1].std() / 200
            expected = {"dp_adaptive": effective(0.2, 3)}.get(name, 0.2) * 2.0 / 3
            assert seen[-1].std() == pytest.approx(expected, rel=0.03)
        assert not np.array_equal(*seen)

    def test_distributed_noise_has_at_least_the_requested_deviation(self, tff: Worker, tmp_path: Path) -> None:
        start = {"w": np.zeros(8_000, np.float32), "b": np.float64(0), "steps": np.int64(0)}
        still = {learner: (np.zeros(8_000), 0.0) for learner in NAMES}
        place = begun(tmp_path, start, rule={"name": "secure_dp", "noise_multiplier": 0.2})
        found = weights_of(place, played(tff, place, 1, still)[-1])["w"]
        assert found.std() > 0.2 * 0.1 / 3 * 0.9
        assert found.std() < 0.2 * 0.1 / 3 * 2


def effective(noise: float, learners: int) -> float:
    """Returns the noise for the updates if the clipped count has its own (Andrew et al. 2021, Theorem 1)."""
    counted = 0.05 * learners
    return float((noise**-2 - (2 * counted) ** -2) ** -0.5)


class TestServerOptimizers:
    @pytest.mark.parametrize(
        ("settings", "step"),
        [({"name": "sgd", "learning_rate": 0.7, "momentum": 0.9}, momentum),
         ({"name": "adagrad", "learning_rate": 0.1}, adagrad),
         ({"name": "adam", **BETAS}, adam),
         ({"name": "yogi", **BETAS}, yogi)],
        ids=["momentum", "adagrad", "adam", "yogi"],
    )  # fmt: skip
    def test_step_as_their_formulas(
        self, settings: dict[str, Any], step: Callable[..., np.ndarray], tff: Worker, tmp_path: Path
    ) -> None:
        place = begun(tmp_path, server_optimizer=settings)
        now, memory = ORIGIN.copy(), {}
        for number, record in enumerate(played(tff, place, 3)[1:], 1):
            now = step(now, -np.mean(vectors(), axis=0), memory, number)
            np.testing.assert_allclose(found_of(place, record), now, atol=2e-5)


@pytest.mark.parametrize("name", ["sgd", "adam", "yogi"])
def test_keras_learners_and_this_step_give_the_weights_of_a_simulation(name: str, tff: Worker, tmp_path: Path) -> None:
    """Compares FedAvgM, FedAdam and FedYogi (Reddi et al. 2021): same data, model, seed, optimizer and rounds."""
    server = {"name": name, "learning_rate": 0.1, **({"momentum": 0.9} if name == "sgd" else {})}
    algorithm = {"name": "averaging", "engine": "tff", "server_optimizer": server}
    training = {"rounds": 5, "batch_size": 2, "local_epochs": 2, "seed": 3}
    places = [
        begun_simulation(tmp_path / kind, algorithm=algorithm, training=training, simulation={"test_every": 0})
        for kind in ("run", "simulated")
    ]
    store = places[0].open()
    plan = read_plan(store, places[0].plan)
    record = read_record(store, "run-1", 0)
    for number in range(1, 6):
        assert record is not None
        for learner in plan.shards:
            make = partial(make_learner, store, plan, learner, number)
            offered = contribute(store, plan, learner, number, record.weights, make)
            assert isinstance(offered, Update), offered
        record = tff.call(close, places[0], number, record.weights)
    simulated = rounds(tff, places[1], 5)[-1]
    assert record is not None
    ours, theirs = weights_of(places[0], record), weights_of(places[1], simulated)
    for key, value in ours.items():
        np.testing.assert_allclose(theirs[key], value, atol=1e-5)


class TestRounds:
    def test_another_process_continues_from_the_state_to_the_same_bytes(self, tff: Worker, tmp_path: Path) -> None:
        settings = {"rule": "robust", "server_optimizer": {"name": "adam", "learning_rate": 0.1}}
        whole = played(tff, begun(tmp_path / "whole", **settings), 2)
        place = begun(tmp_path / "parts", **settings)
        played(tff, place, 1)
        other = Worker("tff")
        assert played(other, place, 2) == whole
        other.stop()

    def test_no_learner_may_read_the_state(self, tff: Worker, tmp_path: Path) -> None:
        """Checks that the state is not in `objects/`, which learners may read: a tree's state reveals its noise."""
        place = begun(tmp_path, rule={"name": "dp_tree", "noise_multiplier": 0.3, "clip": 1.0})
        record = played(tff, place)[-1]
        (digest,) = record.state.values()
        store = place.open()
        assert store.size(f"coordinator/{digest[7:]}")
        assert store.size(f"objects/{digest[7:]}") is None

    def test_an_invalid_update_leaves_nothing_behind(self, tff: Worker, tmp_path: Path) -> None:
        bad = {**CHANGES, "b": (np.full((3, 4), np.nan), 0.0)}
        place = begun(tmp_path, rule="robust")
        record = played(tff, place, 1, bad)[-1]
        assert [(d.learner, d.why) for d in record.dropped] == [("b", "tensor 'w' holds NaN or infinity")]
        sound = begun(tmp_path / "sound", rule="robust")
        without = played(tff, sound, 1, {name: CHANGES[name] for name in ("a", "c")})[-1]
        assert record.weights == without.weights

    def test_limits_of_the_protection_are_in_the_log(self, tff: Worker, tmp_path: Path) -> None:
        from fedpipe.engine.workers import run_logged

        place = begun(tmp_path, rule="secure")
        base = played(tff, place, 0)[0].weights
        for name, change in CHANGES.items():
            store = place.open()
            contribute(store, read_plan(store, place.plan), name, 1, base, lambda c=change: Adding(*c, 1))
        tff.call(run_logged, str(tmp_path / "log"), close, place, 1, base)
        assert "the sums are computed in the clear: this step sees every update" in (tmp_path / "log").read_text()


def test_an_aggregation_is_compiled_before_the_run(tff: Worker) -> None:
    algorithm = {"name": "averaging", "engine": "tff", "rule": "robust", "server_optimizer": "yogi"}
    algorithm["server_optimizer"] = {"name": "yogi", "learning_rate": 0.1}
    finding = tff.call(check_aggregation, make_federation(NAMES, algorithm=algorithm), [(3, 4), ()])
    assert finding.what == "robust and yogi, by TensorFlow Federated"


def test_an_aggregation_that_tff_refuses(tff: Worker) -> None:
    rule = {"name": "dp_adaptive", "noise_multiplier": 9.0}
    algorithm = {"name": "averaging", "engine": "tff", "rule": rule, "weighting": "uniform"}
    with pytest.raises(StepError, match=r"cannot compile this aggregation: ValueError: .*noise"):
        tff.call(check_aggregation, make_federation(NAMES, algorithm=algorithm), [(3, 4)])
