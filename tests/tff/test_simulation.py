"""Compares simulated rounds with NumPy: softmax regression, with a whole batch per step, so order is irrelevant."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from fedpipe import weights
from fedpipe.data.examples import Examples
from fedpipe.data.parts import put_parts, put_shard
from fedpipe.engine.preflight import SimulationFiles, check_simulation
from fedpipe.engine.workers import Worker
from fedpipe.errors import DataError, InputError, ModelError, NotFoundError, RoundError
from fedpipe.rounds.beginning import begin, make_plan
from fedpipe.rounds.history import read_record
from fedpipe.rounds.manifests import Record
from fedpipe.rounds.plan import RunPlace, Shards
from fedpipe.steps.contract import Hands
from fedpipe.steps.simulate import Inputs, advance, run
from fedpipe.store import LocalStore
from fedpipe.store.objects import get_bytes, put_bytes
from tests.federations import make_federation
from tests.models import DENSE
from tests.tff_files import clients_of

pytestmark = [pytest.mark.heavy, pytest.mark.xdist_group("tff")]

Arrays = dict[str, np.ndarray]
RANDOM = np.random.default_rng(11)
KERNEL, BIAS = "sequential/dense/kernel", "sequential/dense/bias"
START: Arrays = {KERNEL: RANDOM.normal(size=(4, 3)).astype(np.float32), BIAS: np.zeros(3, np.float32)}


def examples(count: int) -> Examples:
    x = RANDOM.normal(size=(count, 4)).astype(np.float32)
    return Examples(x, np.argmax(x[:, :3] + RANDOM.normal(size=(count, 3)), axis=1))


TRAIN = {"a": examples(6), "b": examples(10), "c": examples(3)}
TEST = {"a": examples(4), "b": examples(5), "c": examples(2)}
CENTRAL = examples(7)
WHOLE = {"rounds": 3, "batch_size": 16, "local_epochs": 2}


@pytest.fixture(scope="module")
def tff() -> Iterator[Worker]:
    worker = Worker("tff")
    yield worker
    worker.stop()


def begun(folder: Path, *, code: str = DENSE, start: Arrays = START, **content: Any) -> RunPlace:
    """Creates a run whose round 0 is committed, without Keras."""
    federation = make_federation(**{"training": WHOLE, **content})
    whole = LocalStore(folder)
    store = whole.below(federation.name)
    shards = {n: put_shard(store, n, {"train": TRAIN[n], "test": TEST[n]})[1] for n in TRAIN}
    test = put_parts(store, {"test": CENTRAL})[0]
    put_bytes(store, code.encode())
    plan = make_plan("run-1", federation, code, Shards(learners=shards, test=test))
    begin(store, plan, lambda: start)
    return RunPlace(store=f"file://{folder}", federation=federation.name, run="run-1", plan=plan.digest)


def rounds(tff: Worker, place: RunPlace, count: int = 3, **texts: str) -> list[Record]:
    """Simulates rounds in the tff environment."""
    inputs = Inputs(place=place, base="", **texts)
    for number in range(1, count + 1):
        tff.call(advance, inputs, number)
    found = [read_record(place.open(), "run-1", number) for number in range(count + 1)]
    return [record for record in found if record]


def weights_of(place: RunPlace, record: Record) -> Arrays:
    return dict(weights.loads(get_bytes(place.open(), record.weights)))


# The oracle: float64, formulas as in the papers.


def soft(w: Arrays, x: np.ndarray) -> np.ndarray:
    scores = x @ w[KERNEL] + w[BIAS]
    exp = np.exp(scores - scores.max(axis=1, keepdims=True))
    return exp / exp.sum(axis=1, keepdims=True)


def gradient(w: Arrays, data: Examples) -> Arrays:
    error = (soft(w, data.x.astype(np.float64)) - np.eye(3)[data.y]) / len(data.y)
    return {KERNEL: data.x.T.astype(np.float64) @ error, BIAS: error.sum(axis=0)}


def trained(w: Arrays, data: Examples, rate: float, steps: int, pull: float = 0.0) -> Arrays:
    now = {k: v.astype(np.float64) for k, v in w.items()}
    for _ in range(steps):
        g = gradient(now, data)
        now = {k: now[k] - rate * (g[k] + pull * (now[k] - w[k])) for k in now}
    return now


def mean_delta(w: Arrays, rate: float = 0.5, steps: int = 2, pull: float = 0.0, uniform: bool = False) -> Arrays:
    """Returns the negative pseudo-gradient: the mean change of the clients."""
    sizes = [1 if uniform else len(TRAIN[n].y) for n in TRAIN]
    deltas = [{k: v - w[k] for k, v in trained(w, TRAIN[n], rate, steps, pull).items()} for n in TRAIN]
    return {k: np.average([d[k] for d in deltas], axis=0, weights=sizes) for k in w}


def federated(delta: Any, server: Any, count: int = 3) -> Arrays:
    now: Arrays = {k: v.astype(np.float64) for k, v in START.items()}
    memory: dict[str, Any] = {k: {} for k in now}
    for step in range(1, count + 1):
        d = delta(now)
        now = {k: server(now[k], -d[k], memory[k], step) for k in now}
    return now


def sgd(w: np.ndarray, g: np.ndarray, m: dict[str, Any], t: int) -> np.ndarray:
    return w - g


def momentum(w: np.ndarray, g: np.ndarray, m: dict[str, Any], t: int) -> np.ndarray:
    m["v"] = 0.9 * m.get("v", 0) + g
    return w - 0.7 * m["v"]


def adagrad(w: np.ndarray, g: np.ndarray, m: dict[str, Any], t: int) -> np.ndarray:
    m["s"] = m.get("s", 0.1) + g**2
    return w - 0.1 * g / np.sqrt(m["s"] + 1e-7)


def adam(w: np.ndarray, g: np.ndarray, m: dict[str, Any], t: int) -> np.ndarray:
    m["a"] = 0.9 * m.get("a", 0) + 0.1 * g
    m["s"] = 0.99 * m.get("s", 0) + 0.01 * g**2
    return w - 0.1 * np.sqrt(1 - 0.99**t) / (1 - 0.9**t) * m["a"] / (np.sqrt(m["s"]) + 1e-3)


def yogi(w: np.ndarray, g: np.ndarray, m: dict[str, Any], t: int) -> np.ndarray:
    m["a"] = 0.9 * m.get("a", 0) + 0.1 * g
    s = m.get("s", 1e-6)
    m["s"] = s + 0.01 * np.sign(g**2 - s) * g**2
    return w - 0.1 * np.sqrt(1 - 0.99**t) / (1 - 0.9**t) * m["a"] / (np.sqrt(m["s"]) + 1e-3)


BETAS = {"learning_rate": 0.1, "beta_2": 0.99, "epsilon": 1e-3}
CASES = {
    "fedavg": ({}, federated(mean_delta, sgd)),
    "uniform": ({"weighting": "uniform"}, federated(lambda w: mean_delta(w, uniform=True), sgd)),
    "client rate": (
        {"client_optimizer": {"name": "sgd", "learning_rate": 0.2}},
        federated(lambda w: mean_delta(w, rate=0.2), sgd),
    ),
    "fedprox": (
        {"algorithm": "fedprox", "proximal_strength": 0.8},
        federated(lambda w: mean_delta(w, pull=0.8), sgd),
    ),
    "fedsgd": (
        {"algorithm": "fedsgd", "server_optimizer": {"name": "sgd", "learning_rate": 1.0}},
        federated(lambda w: mean_delta(w, rate=1.0, steps=1), sgd),
    ),
    "momentum": (
        {"server_optimizer": {"name": "sgd", "learning_rate": 0.7, "momentum": 0.9}},
        federated(mean_delta, momentum),
    ),
    "adagrad": ({"server_optimizer": {"name": "adagrad", "learning_rate": 0.1}}, federated(mean_delta, adagrad)),
    "adam": ({"server_optimizer": {"name": "adam", **BETAS}}, federated(mean_delta, adam)),
    "yogi": ({"server_optimizer": {"name": "yogi", **BETAS}}, federated(mean_delta, yogi)),
}


class TestAlgorithms:
    @pytest.mark.parametrize("case", CASES)
    def test_weights_are_those_of_the_formulas(self, case: str, tff: Worker, tmp_path: Path) -> None:
        settings, expected = CASES[case]
        algorithm = {"name": "averaging", "weighting": settings.get("weighting", "examples")}
        simulation = {k: v for k, v in settings.items() if k != "weighting"}
        place = begun(tmp_path, algorithm=algorithm, simulation={"test_every": 0, **simulation})
        found = weights_of(place, rounds(tff, place)[-1])
        for name, value in expected.items():
            np.testing.assert_allclose(found[name], value, atol=2e-5)

    def test_mime_lite_keeps_the_clients_optimizer_state_at_the_server(self, tff: Worker, tmp_path: Path) -> None:
        """Without momentum there is no state, and MimeLite is federated averaging (Karimireddy et al. 2020)."""
        place = begun(tmp_path, simulation={"algorithm": "mimelite", "test_every": 0})
        found = weights_of(place, rounds(tff, place)[-1])
        np.testing.assert_allclose(found[KERNEL], CASES["fedavg"][1][KERNEL], atol=2e-5)


class TestRounds:
    def test_each_is_a_committed_round_of_the_run(self, tff: Worker, tmp_path: Path) -> None:
        place = begun(tmp_path)
        records = rounds(tff, place)
        assert [r.round for r in records] == [0, 1, 2, 3]
        for before, record in itertools.pairwise(records):
            assert (record.previous, record.base, record.layout) == (before.ref, before.weights, before.layout)
            assert record.rule == "simulation fedavg"
            events = f"runs/run-1/{record.round}/tensorboard/events.out.tfevents.{record.round:06d}"
            assert b"test_accuracy" in place.open().read(events).data

    def test_it_is_tested_on_the_learners_test_parts_and_centrally(self, tff: Worker, tmp_path: Path) -> None:
        place = begun(tmp_path)
        for record in rounds(tff, place, 2)[1:]:
            w = {k: v.astype(np.float64) for k, v in weights_of(place, record).items()}
            merged = Examples(*(np.concatenate([e[k] for e in TEST.values()]) for k in (0, 1)))
            for prefix, data in (("test_", merged), ("central_", CENTRAL)):
                right = soft(w, data.x)[np.arange(len(data.y)), data.y]
                assert record.metrics[f"{prefix}loss"] == pytest.approx(-np.log(right).mean(), abs=1e-5)
                accuracy = np.mean(np.argmax(soft(w, data.x), axis=1) == data.y)
                assert record.metrics[f"{prefix}accuracy"] == pytest.approx(accuracy, abs=1e-6)
            assert record.metrics["num_examples"] == 2 * 19

    def test_learners_that_are_held_out_never_train(self, tff: Worker, tmp_path: Path) -> None:
        place = begun(tmp_path, simulation={"held_out": ["b"], "test_every": 2}, training={**WHOLE, "rounds": 2})
        records = rounds(tff, place, 2)
        assert records[1].metrics["num_examples"] == 2 * (6 + 3)
        assert "held_out_loss" not in records[1].metrics
        w = {k: v.astype(np.float64) for k, v in weights_of(place, records[2]).items()}
        both = Examples(*(np.concatenate([TRAIN["b"][k], TEST["b"][k]]) for k in (0, 1)))
        right = soft(w, both.x)[np.arange(len(both.y)), both.y]
        assert records[2].metrics["held_out_loss"] == pytest.approx(-np.log(right).mean(), abs=1e-5)

    def test_some_are_drawn_for_each_round(self, tff: Worker, tmp_path: Path) -> None:
        place = begun(tmp_path, quorum={"learners_per_round": 1, "min_learners": 1}, simulation={"test_every": 0})
        sizes = {2 * len(e.y) for e in TRAIN.values()}
        found = [record.metrics["num_examples"] for record in rounds(tff, place)[1:]]
        assert set(found) <= sizes

    def test_a_stopped_simulation_resumes_to_the_same_bytes(self, tff: Worker, tmp_path: Path) -> None:
        server = {"name": "adam", **BETAS}
        small = {"rounds": 4, "batch_size": 2, "local_epochs": 2, "seed": 5}
        ends = []
        for name, restart in (("whole", False), ("stopped", True)):
            place = begun(tmp_path / name, simulation={"server_optimizer": server}, training=small)
            if restart:
                rounds(tff, place, 2)
                other = Worker("tff")
                ends.append(rounds(other, place, 4))
                other.stop()
            else:
                ends.append(rounds(tff, place, 4))
        assert ends[0] == ends[1]

    def test_preprocessing_defines_the_batches_of_a_round(self, tff: Worker, tmp_path: Path) -> None:
        """Checks that three whole batches per round are three steps."""
        code = DENSE + "\ndef same(x, y):\n    return x * 1.0, y\n"
        training = {"rounds": 1, "batch_size": 2, "preprocessing": "map(same).batch(16).repeat(3)"}
        place = begun(tmp_path, code=code, training=training, simulation={"test_every": 0})
        found = weights_of(place, rounds(tff, place, 1)[-1])
        expected = federated(lambda w: mean_delta(w, steps=3), sgd, 1)
        np.testing.assert_allclose(found[KERNEL], expected[KERNEL], atol=2e-5)

    def test_preprocessing_keeps_the_form(self, tff: Worker, tmp_path: Path) -> None:
        code = DENSE + "\ndef half(x, y):\n    return x[:2], y\n"
        place = begun(tmp_path, code=code, training={"rounds": 1, "batch_size": 2, "preprocessing": "map(half)"})
        with pytest.raises(DataError, match=r"preprocessing changes features from float32\[4\] to float32\[2\]"):
            rounds(tff, place, 1)

    def test_the_step_reports_each_round_and_ends_early(self, tff: Worker, tmp_path: Path) -> None:
        stopping = {"patience": 1, "metric": "test_loss", "min_delta": 100.0}
        place = begun(tmp_path, training={**WHOLE, "rounds": 9, "early_stopping": stopping})
        reported: list[Any] = []
        hands = Hands(call=tff.call, notify=lambda moment, numbers: reported.append((moment, numbers)))
        outputs = run(Inputs(place=place, base=""), hands)
        assert outputs.rounds == 2  # the first improves on nothing, the second on the first by less than 100
        assert [moment.record.round for moment, _ in reported] == [1, 2]
        assert reported[0][1].keys() >= {"loss", "accuracy", "test_loss", "central_accuracy"}
        assert "num_examples" not in reported[0][1]
        assert reported[0][0].board.asked == ("a", "b", "c")

    def test_another_algorithm_does_not_resume_from_its_state(self, tff: Worker, tmp_path: Path) -> None:
        place = begun(tmp_path, simulation={"process": "own.py:build", "test_every": 0})
        rounds(tff, place, 1, process=OWN)
        with pytest.raises(InputError, match=r"was made by 'simulation own\.py:build"):
            rounds(tff, place, 2, process=OWN + "\n# changed\n")


EXAMPLES = Path(__file__).parents[2] / "examples" / "tff"
OWN = (EXAMPLES / "own_algorithm.py").read_text().replace("LEARNING_RATE = 0.01", "LEARNING_RATE = 0.5")


class TestAnAlgorithmOfTheUser:
    def test_its_state_is_the_model(self, tff: Worker, tmp_path: Path) -> None:
        place = begun(tmp_path, simulation={"process": "own.py:build"})
        records = rounds(tff, place, process=OWN)
        expected = federated(lambda w: mean_delta(w, uniform=True), sgd)
        np.testing.assert_allclose(weights_of(place, records[-1])[KERNEL], expected[KERNEL], atol=2e-5)
        assert records[-1].metrics["test_loss"] < records[1].metrics["test_loss"]

    def test_or_a_learning_process(self, tff: Worker, tmp_path: Path) -> None:
        text = (
            "import tensorflow_federated as tff\n"
            "def build(model_fn):\n"
            "    sgd = tff.learning.optimizers.build_sgdm(0.5)\n"
            "    return tff.learning.algorithms.build_unweighted_fed_avg(model_fn, sgd)\n"
        )
        place = begun(tmp_path, simulation={"process": "own.py:build", "test_every": 0})
        found = weights_of(place, rounds(tff, place, process=text)[-1])
        np.testing.assert_allclose(found[KERNEL], CASES["uniform"][1][KERNEL], atol=2e-5)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("def build(model_fn): return 3", "returns int without a federated computation `initialize`"),
            ("def build(model_fn): return (1, 2)", "without a federated computation `initialize`"),
            ("import tensorflow_federated as tff\n"
             "def build(model_fn):\n"
             "    @tff.tensorflow.computation\n"
             "    def f(): return 1\n"
             "    return f, None\n", "without a federated computation `next`"),
            ("import numpy as np, tensorflow_federated as tff\n"
             "def build(model_fn):\n"
             "    @tff.tensorflow.computation\n"
             "    def f(): return 1\n"
             "    @tff.tensorflow.computation(np.float32)\n"
             "    def g(x): return x\n"
             "    return f, g\n", "`initialize` and `next` do not fit.*int32.*float32"),
            ("def make(model_fn): return 3", "own.py: there is no function 'build'"),
            ("def build(model_fn):\n    return 1 / 0", r"own.py: build\(\) fails: ZeroDivisionError.*line 2"),
            ("def build(", r"own.py: cannot be imported: SyntaxError.*line 1"),
        ],
    )  # fmt: skip
    def test_mistakes_name_the_file_and_the_remedy(self, text: str, message: str, tff: Worker) -> None:
        with pytest.raises(ModelError, match=message):
            check(tff, {"process": "own.py:build"}, process=text)


def check(tff: Worker, simulation: dict[str, Any], *, code: str = DENSE, process: str = "", model: str = "") -> None:
    federation = make_federation(training=WHOLE, simulation=simulation)
    data = weights.dumps(TRAIN["a"]._asdict())
    tff.call(check_simulation, federation, code, data, SimulationFiles(process, model))


FUNCTIONAL = """
import collections
import numpy as np
import tensorflow as tf
import tensorflow_federated as tff


def build():
    return tff.learning.models.functional_model_from_keras(
        lambda: tf.keras.Sequential([tf.keras.layers.InputLayer((4,)), tf.keras.layers.Dense(3, "softmax")]),
        tf.keras.losses.SparseCategoricalCrossentropy(),
        collections.OrderedDict(x=tf.TensorSpec((None, 4), tf.float32), y=tf.TensorSpec((None,), tf.int64)),
        collections.OrderedDict(loss=lambda: tf.keras.metrics.SparseCategoricalCrossentropy()),
    )
"""


HAND_WRITTEN = (EXAMPLES / "hand_written_model.py").read_text()


class TestAModelMadeForTff:
    def test_a_functional_model(self, tff: Worker, tmp_path: Path) -> None:
        place = begun(tmp_path, simulation={"model": "f.py:build", "test_every": 0})
        found = weights_of(place, rounds(tff, place, tff_model=FUNCTIONAL)[-1])
        np.testing.assert_allclose(found[KERNEL], CASES["fedavg"][1][KERNEL], atol=2e-5)

    def test_a_hand_written_variable_model(self, tff: Worker, tmp_path: Path) -> None:
        place = begun(tmp_path, simulation={"model": "v.py:build", "test_every": 0})
        records = rounds(tff, place, tff_model=HAND_WRITTEN)
        np.testing.assert_allclose(weights_of(place, records[-1])[KERNEL], CASES["fedavg"][1][KERNEL], atol=2e-5)
        assert records[-1].metrics["accuracy"] > 0.4

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("def build(): return 3", "returns int, not a TFF model"),
            ("def build(): raise ValueError('no')", r"build\(\) fails: ValueError: no \(line 1\)"),
            (
                HAND_WRITTEN.replace("loss=mean, accuracy=mean", "loss=mean, acuracy=mean"),
                r"cannot train the model: ValueError: The metric names in `metric_finalizers` do not match .* \{'acuracy'\}",
            ),
            (
                HAND_WRITTEN.replace("(None,), tf.int64", "(None,), tf.int32"),
                r"its input_spec is x float32\[4\], y int32\[\], but the batches are x float32\[4\], y int64\[\]",
            ),
            (HAND_WRITTEN.replace("(None, FEATURES)", "(None, 5)"), r"its input_spec is x float32\[5\], y int64\[\]"),
            (
                HAND_WRITTEN.replace("axis=1), labels", "axis=1), 1.0 * labels"),
                r"cannot train the model: TypeError: .* \(line 54\)",
            ),
            (FUNCTIONAL.replace("Dense(3,", "Dense(2,"), r"shapes \[\(4, 2\), \(2,\)\], but those of the Keras model"),
        ],
    )
    def test_mistakes(self, text: str, message: str, tff: Worker) -> None:
        with pytest.raises(ModelError, match=message):
            check(tff, {"model": "m.py:build"}, model=text)


class TestMistakes:
    @pytest.mark.parametrize(
        ("optimizer", "message"),
        [
            ("keras.optimizers.RMSprop(0.1)", "no counterpart of the compiled optimizer, RMSprop"),
            ("keras.optimizers.SGD(0.1, nesterov=True)", "no counterpart of the compiled optimizer, SGD"),
            ("keras.optimizers.SGD(0.1, clipnorm=1.0)", "SGD with clipnorm"),
            ("keras.optimizers.SGD(keras.optimizers.schedules.ExponentialDecay(0.1, 1, 0.5))", "SGD with a schedule"),
        ],
    )
    def test_a_compiled_optimizer_that_tff_lacks(self, optimizer: str, message: str, tff: Worker) -> None:
        with pytest.raises(ModelError, match=message) as caught:
            check(tff, {}, code=DENSE.replace("keras.optimizers.SGD(0.5)", optimizer))
        assert caught.value.remedy == "Name one: sgd, adagrad, adam, yogi."

    def test_learners_with_examples_of_other_forms(self, tff: Worker, tmp_path: Path) -> None:
        place = begun(tmp_path)
        store = place.open()
        federation = make_federation(training=WHOLE)
        odd = Examples(TRAIN["c"].x.astype(np.float64), TRAIN["c"].y)
        shards = {n: put_shard(store, n, {"train": TRAIN[n] if n != "c" else odd})[1] for n in TRAIN}
        plan = make_plan("run-2", federation, DENSE, Shards(learners=shards))
        begin(store, plan, lambda: START)
        with pytest.raises(DataError, match=r"the features of a are float32\[4\], but those of c are float64\[4\]"):
            tff.call(
                advance,
                Inputs(place=RunPlace(store=place.store, federation="tiny", run="run-2", plan=plan.digest), base=""),
                1,
            )

    def test_weights_that_are_not_finite_are_not_committed(self, tff: Worker, tmp_path: Path) -> None:
        place = begun(tmp_path, simulation={"process": "own.py:build", "test_every": 0})
        with pytest.raises(RoundError, match=r"after round 1, .* NaN or infinity\. Lower the learning rates"):
            rounds(tff, place, 1, process=OWN.replace("LEARNING_RATE = 0.5", 'LEARNING_RATE = float("inf")'))
        assert read_record(place.open(), "run-1", 1) is None


class TestClientData:
    def test_it_is_keyed_by_learner(self, tff: Worker, tmp_path: Path) -> None:
        place = begun(tmp_path)
        for part, held in (("train", TRAIN), ("test", TEST)):
            expected = [(name, len(e.y), e.x[0].tobytes()) for name, e in held.items()]
            assert tff.call(clients_of, place, part) == expected

    def test_a_part_that_does_not_exist(self, tff: Worker, tmp_path: Path) -> None:
        with pytest.raises(NotFoundError, match="no learner has a part 'tain'"):
            tff.call(clients_of, begun(tmp_path), "tain")
        with pytest.raises(NotFoundError, match="there is no run 'run-2'"):
            tff.call(clients_of, replace(begun(tmp_path), run="run-2"), "train")
