"""TFF's aggregators and server optimizers over updates from a store, against NumPy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedpipe.engine.preflight import check_aggregation
from fedpipe.engine.workers import Worker, run_logged
from fedpipe.errors import StepError
from fedpipe.learners.contribute import contribute
from fedpipe.learners.learner import Arrays, Trained
from fedpipe.rounds.beginning import begin, make_plan
from fedpipe.rounds.history import read_record
from fedpipe.rounds.manifests import Record
from fedpipe.rounds.plan import RunPlace, Shards, read_plan
from fedpipe.steps.aggregate import close
from fedpipe.store import LocalStore
from fedpipe.store.objects import digest_of, put_bytes
from tests.federations import PlusOneLearner, make_federation
from tests.tff.oracle import SERVERS
from tests.tff.simulated import copied, records_of, weights_of

pytestmark = [pytest.mark.heavy, pytest.mark.xdist_group("tff")]

NAMES = ("a", "b", "c")
START: Arrays = {"w": np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4), "b": np.zeros((), np.float64),
                 "steps": np.int64(7)}  # fmt: skip
SIZES = {"a": 1, "b": 2, "c": 5}
RANDOM = np.random.default_rng(4)
CHANGES = {name: (RANDOM.normal(size=(3, 4)) * 0.1, 0.2 * k) for k, name in enumerate(NAMES)}
"""Each learner adds to `w` and to `b` in every round."""


class Adding(PlusOneLearner):
    """Adds the same to its weights in every round."""

    def __init__(self, w: Any, b: float, examples: int) -> None:
        super().__init__(1.0, examples)
        self._change = {"w": w, "b": b, "steps": examples}

    def propose_weights(self, *, seed: int, seconds: float, optimizer: Arrays | None) -> Trained:
        new = {k: (v + self._change[k]).astype(v.dtype) for k, v in self._current.items()}
        return Trained(new, self._examples, {"loss": 1.0}, None, None)


def begun(
    folder: Path, start: Arrays = START, weighting: str = "uniform", names: tuple[str, ...] = NAMES, **algorithm: Any
) -> RunPlace:
    algorithm = {"name": "averaging", "engine": "tff", "weighting": weighting, **algorithm}
    federation = make_federation(names, algorithm=algorithm, evaluation={"every_round": False})
    store = LocalStore(folder).below(federation.name)
    put_bytes(store, b"code")
    plan = make_plan("run-1", federation, "code", Shards(learners=dict.fromkeys(names, digest_of(b"x"))))
    begin(store, plan, lambda: start)
    return RunPlace(store=f"file://{folder}", federation=federation.name, run="run-1", plan=plan.digest)


def played(tff: Worker, place: RunPlace, *rounds: dict[str, Any]) -> list[Record]:
    """Works through rounds, given as the learners' changes, each aggregated in the tff environment."""
    for number, changes in enumerate(rounds, 1):
        base = trained(place, number, changes)
        tff.call(close, place, number, base)
    return records_of(place)


def trained(place: RunPlace, number: int, changes: dict[str, Any]) -> str:
    """Lets learners contribute to a round, and returns the weights that it begins with."""
    store = place.open()
    plan, before = read_plan(store, place.plan), read_record(store, "run-1", number - 1)
    assert before is not None
    for name, change in changes.items():
        contribute(store, plan, name, number, before.weights, lambda n=name, c=change: Adding(*c, SIZES.get(n, 3)))
    return before.weights


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
        """Counters take the largest, and all keep their dtypes."""
        place = begun(tmp_path, weighting="examples")
        record = played(tff, place, CHANGES)[-1]
        expected = ORIGIN + np.average(vectors(), axis=0, weights=list(SIZES.values()))
        np.testing.assert_allclose(found_of(place, record), expected, atol=1e-6)
        assert record.rule == "tff mean"
        assert [u.learner for u in record.updates] == list(NAMES)
        found = weights_of(place, record)
        assert found["steps"] == 7 + 5
        assert {name: value.dtype for name, value in found.items()} == {n: v.dtype for n, v in START.items()}

    @pytest.mark.parametrize("name", ["dp_fixed", "dp_tree"])
    def test_noise_without_noise_is_the_mean_of_clipped_updates(self, name: str, tff: Worker, tmp_path: Path) -> None:
        """A learner that is missing leaves the divisor: else its presence would change the sensitivity."""
        place = begun(tmp_path, rule={"name": name, "noise_multiplier": 0.0, "clip": 0.2})
        two = {name: CHANGES[name] for name in ("a", "b")}
        _, first, second = played(tff, place, CHANGES, two)
        now = ORIGIN + np.sum([clipped(v, 0.2) for v in vectors()], axis=0) / 3
        np.testing.assert_allclose(found_of(place, first), now, atol=1e-6)
        now += np.sum([clipped(v, 0.2) for v in vectors(two)], axis=0) / 3
        np.testing.assert_allclose(found_of(place, second), now, atol=1e-6)

    def test_the_adaptive_norm_follows_the_median(self, tff: Worker, tmp_path: Path) -> None:
        """Andrew et al. 2021, Algorithm 1, with the geometric update."""
        rule = {"name": "dp_adaptive", "noise_multiplier": 0.0, "initial_clip": 0.3, "clip_rate": 0.5, "zeroing": False}
        place = begun(tmp_path, rule=rule)
        clip, now = 0.3, ORIGIN.copy()
        for record in played(tff, place, CHANGES, CHANGES)[1:]:
            now = now + np.mean([clipped(v, clip) for v in vectors()], axis=0)
            np.testing.assert_allclose(found_of(place, record), now, atol=1e-5)
            clip *= np.exp(-0.5 * (np.mean([np.linalg.norm(v) <= clip for v in vectors()]) - 0.5))

    def test_sums_of_integers_are_means_and_the_log_says_that_they_are_not_secret(
        self, tff: Worker, tmp_path: Path
    ) -> None:
        place = begun(tmp_path, rule={"name": "secure", "zeroing": False, "clipping": False})
        tff.call(run_logged, str(tmp_path / "log"), close, place, 1, trained(place, 1, CHANGES))
        found = found_of(place, records_of(place)[-1])
        np.testing.assert_allclose(found, ORIGIN + np.mean(vectors(), axis=0), atol=1e-5)
        assert "the sums are computed in the clear: this step sees every update" in (tmp_path / "log").read_text()

    def test_large_tensors_are_compressed_to_eight_bits(self, tff: Worker, tmp_path: Path) -> None:
        """Small ones are not."""
        start = {"w": np.zeros(30_000, np.float32), "b": np.float64(0), "steps": np.int64(0)}
        changes = {name: (RANDOM.uniform(-1, 1, 30_000), 0.2 * k) for k, name in enumerate(NAMES)}
        place = begun(tmp_path, start, rule={"name": "compression", "zeroing": False, "clipping": False})
        found = weights_of(place, played(tff, place, changes)[-1])
        exact = np.mean([c[0] for c in changes.values()], axis=0)
        assert 0 < np.abs(found["w"] - exact).max() <= 2 / 255 + 1e-6  # a step of the grid an update, averaged
        assert found["b"] == pytest.approx(0.2, abs=1e-6)

    @pytest.mark.parametrize("name", ["dp_fixed", "dp_tree", "dp_adaptive"])
    def test_noise_has_the_deviation_that_was_asked_for(self, name: str, tff: Worker, tmp_path: Path) -> None:
        """Of the sum: noise_multiplier times the clipping norm; a process with the same state draws other noise."""
        start = {"w": np.zeros(40_000, np.float32), "b": np.float64(0), "steps": np.int64(0)}
        still = {learner: (np.zeros(40_000), 0.0) for learner in NAMES}
        clip = {"dp_adaptive": {"initial_clip": 2.0}}.get(name, {"clip": 2.0})
        seen = []
        for folder in ("one", "two"):
            rule = {"name": name, "noise_multiplier": 0.2, **clip}
            place = begun(tmp_path / folder, start, rule=rule)
            record = played(tff, place, still)[-1]
            seen.append(weights_of(place, record)["w"])
            assert abs(seen[-1].mean()) < 5 * seen[-1].std() / 200
            expected = {"dp_adaptive": effective(0.2, 3)}.get(name, 0.2) * 2.0 / 3
            assert seen[-1].std() == pytest.approx(expected, rel=0.03)
            assert_unreadable(place, record)
        assert not np.array_equal(*seen)

    def test_distributed_noise_is_at_least_what_was_asked_for(self, tff: Worker, tmp_path: Path) -> None:
        """Around the mean of updates that are clipped to a norm of 0.1."""
        start = {"w": np.zeros(8_000, np.float32), "b": np.float64(0), "steps": np.int64(0)}
        large = {learner: (np.ones(8_000), 0.0) for learner in NAMES}
        place = begun(tmp_path, start, rule={"name": "secure_dp", "noise_multiplier": 0.2})
        found = weights_of(place, played(tff, place, large)[-1])["w"]
        assert found.std() > 0.2 * 0.1 / 3 * 0.9
        assert found.std() < 0.2 * 0.1 / 3 * 2
        standard_error = found.std() / np.sqrt(8_000)
        assert found.mean() == pytest.approx(0.1 / np.sqrt(8_000), abs=4 * standard_error)
        assert found.mean() > 4 * standard_error


class TestLimits:
    """They are those of fedpipe's own mean, and hold before TFF sees an update."""

    MANY = CHANGES | {"d": (np.full((3, 4), 0.1), 0.1)}
    NAMES = ("a", "b", "c", "d", "e")

    @pytest.mark.parametrize("large", [50.0, -1e30, 3e38])
    def test_an_update_far_larger_than_others_drops_its_learner(
        self, large: float, tff: Worker, tmp_path: Path
    ) -> None:
        hostile = self.MANY | {"e": (np.full((3, 4), large), 0.1)}
        settings: dict[str, Any] = {"weighting": "examples", "names": self.NAMES}
        record = played(tff, begun(tmp_path / "five", **settings), hostile)[-1]
        assert [item.learner for item in record.dropped] == ["e"]
        assert record.dropped[0].why.endswith("more than 12 times")  # it takes 3 steps, the others 2.5 in the median
        without = played(tff, begun(tmp_path / "four", **settings), self.MANY)[-1]
        assert record.weights == without.weights
        assert record.metrics == without.metrics

    def test_the_limit_can_be_higher_or_off(self, tff: Worker, tmp_path: Path) -> None:
        hostile = self.MANY | {"e": (np.full((3, 4), 50.0), 0.1)}
        for number, most in enumerate((0, 1000)):
            place = begun(tmp_path / str(number), weighting="examples", names=self.NAMES, most_norm=most)
            record = played(tff, place, hostile)[-1]
            assert [update.learner for update in record.updates] == list(self.NAMES)
            weights = [*SIZES.values(), 3, 3]
            expected = ORIGIN + np.average(vectors(hostile), axis=0, weights=weights)
            np.testing.assert_allclose(found_of(place, record), expected, atol=1e-4)

    def test_a_weight_has_at_most_its_share(self, tff: Worker, tmp_path: Path) -> None:
        """Of 1, 2 and 5 examples, the last count as the others together."""
        place = begun(tmp_path, weighting="examples", most_share=0.5)
        record = played(tff, place, CHANGES)[-1]
        expected = ORIGIN + np.average(vectors(), axis=0, weights=[1, 2, 3])
        np.testing.assert_allclose(found_of(place, record), expected, atol=1e-6)
        assert [update.examples for update in record.updates] == [1, 2, 5]


def effective(noise: float, learners: int) -> float:
    """The noise that is left for the updates when the clipped count gets its own (Andrew et al. 2021, Theorem 1)."""
    counted = 0.05 * learners
    return float((noise**-2 - (2 * counted) ** -2) ** -0.5)


def assert_unreadable(place: RunPlace, record: Record) -> None:
    """Policies give learners `objects/`; a tree's state would reveal its noise."""
    (digest,) = record.state.values()
    store = place.open()
    assert store.size(f"coordinator/{digest[7:]}")
    assert store.size(f"objects/{digest[7:]}") is None


ROBUST = {"rule": "robust", "server_optimizer": SERVERS["adam"][0]}


class TestARobustRuleAndAServerOptimizer:
    """The worker compiles these settings once."""

    def test_zero_and_clip_by_quantiles_that_adapt_and_step(self, tff: Worker, tmp_path: Path) -> None:
        """Charles et al. 2021, "On Large-Cohort Training", and Andrew et al. 2021, Algorithm 1, without noise."""
        wild = {"a": (np.full((3, 4), 0.5), 0.1), "b": (np.full((3, 4), 500.0), 0.1), "c": (np.full((3, 4), 0.01), 0.0)}
        place = begun(tmp_path, **ROBUST)
        now, zero, clip, memory = ORIGIN.copy(), 10.0, 1.0, {}
        for number, record in enumerate(played(tff, place, wild, wild)[1:], 1):
            bound = 2 * zero + 1
            kept = [v if np.abs(v).max() <= bound else np.zeros_like(v) for v in vectors(wild)]
            assert record.metrics["aggregator/zeroed_count"] == 1
            assert record.metrics["aggregator/zeroing_norm"] == pytest.approx(bound, rel=1e-5)
            assert record.metrics["aggregator/zeroing/clipping_norm"] == pytest.approx(clip, rel=1e-5)
            now = SERVERS["adam"][1](now, -np.mean([clipped(v, clip) for v in kept], axis=0), memory, number)
            zero *= np.exp(-np.log(10) * (np.mean([np.abs(v).max() <= zero for v in vectors(wild)]) - 0.98))
            clip *= np.exp(-0.2 * (np.mean([np.linalg.norm(v) <= clip for v in kept]) - 0.8))
            np.testing.assert_allclose(found_of(place, record), now, rtol=1e-4, atol=1e-5)

    def test_an_update_that_is_not_sound_leaves_nothing_behind(self, tff: Worker, tmp_path: Path) -> None:
        bad = {**CHANGES, "b": (np.full((3, 4), np.nan), 0.0)}
        record = played(tff, begun(tmp_path / "bad", **ROBUST), bad)[-1]
        assert [(d.learner, d.why) for d in record.dropped] == [("b", "tensor 'w' holds NaN or infinity")]
        sound = {name: CHANGES[name] for name in ("a", "c")}
        without = played(tff, begun(tmp_path / "sound", **ROBUST), sound)[-1]
        assert record.weights == without.weights

    def test_values_that_overflow_drop_their_learner(self, tff: Worker, tmp_path: Path) -> None:
        """A mean of float32 overflows where this one's examples count; the others' round is one without it."""
        settings = {"server_optimizer": {"learning_rate": 2.0}, "weighting": "examples"}
        large = {**CHANGES, "b": (np.full((3, 4), 3e38), 0.0)}
        record = played(tff, begun(tmp_path / "large", **settings), large)[-1]
        assert [item.learner for item in record.dropped] == ["b"]
        sound = {name: CHANGES[name] for name in ("a", "c")}
        assert played(tff, begun(tmp_path / "sound", **settings), sound)[-1].weights == record.weights

    def test_continue_in_another_process_to_the_same_bytes(
        self, tff: Worker, other_tff: Worker, tmp_path: Path
    ) -> None:
        place = begun(tmp_path / "whole", **ROBUST)
        played(tff, place, CHANGES)
        base = trained(place, 2, CHANGES)
        stopped = copied(place, tmp_path / "stopped")
        assert other_tff.call(close, stopped, 2, base) == tff.call(close, place, 2, base)

    def test_are_compiled_before_the_run(self, tff: Worker) -> None:
        algorithm = {"name": "averaging", "engine": "tff", "weighting": "uniform", **ROBUST}
        finding = tff.call(check_aggregation, make_federation(NAMES, algorithm=algorithm), [(3, 4), ()])
        assert finding.what == "robust and adam, by TensorFlow Federated"


def test_what_tff_refuses_is_reported(tff: Worker) -> None:
    rule = {"name": "dp_adaptive", "noise_multiplier": 9.0}
    algorithm = {"name": "averaging", "engine": "tff", "rule": rule, "weighting": "uniform"}
    with pytest.raises(StepError, match=r"cannot compile this aggregation: ValueError: .*noise"):
        tff.call(check_aggregation, make_federation(NAMES, algorithm=algorithm), [(3, 4)])
