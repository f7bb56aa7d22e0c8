"""Simulated rounds against NumPy: softmax regression, a whole batch a step, so that no order counts."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from msgspec.structs import replace

from fedpipe.data.examples import Examples, examples_joined
from fedpipe.data.parts import dump_examples
from fedpipe.engine.preflight import SimulationFiles, check_simulation
from fedpipe.engine.workers import Worker
from fedpipe.errors import DataError, InputError, ModelError, NotFoundError, RoundError
from fedpipe.rounds.history import read_head, read_record
from fedpipe.rounds.manifests import Record
from fedpipe.rounds.plan import RunPlace, read_plan
from fedpipe.rounds.selection import select, took_part, trainers
from fedpipe.sessions.coordinator import Moment
from fedpipe.steps.contract import Hands
from fedpipe.steps.coordinate import Outputs
from fedpipe.steps.simulate import Inputs, run
from tests.federations import make_federation
from tests.models import DENSE
from tests.tff import inside
from tests.tff.oracle import (
    BIAS,
    CENTRAL,
    KERNEL,
    ROUNDS,
    SERVERS,
    START,
    TEST,
    TRAIN,
    Arrays,
    federated,
    loss,
    mean_delta,
    soft,
)
from tests.tff.simulated import PARTS, UNTESTED, WHOLE, begun, copied, records_of, rounds, weights_of

pytestmark = [pytest.mark.heavy, pytest.mark.xdist_group("tff")]


class Averaged(NamedTuple):
    """A run of federated averaging that was ended early, by the step."""

    place: RunPlace
    records: list[Record]
    outputs: Outputs
    told: list[tuple[Moment, Any]]


@pytest.fixture(scope="module")
def averaged(tff: Worker, tmp_path_factory: pytest.TempPathFactory) -> Averaged:
    stopping = {"patience": 1, "metric": "test_loss", "min_delta": 100.0}
    place = begun(tmp_path_factory.mktemp("averaged"), training={**WHOLE, "rounds": 9, "early_stopping": stopping})
    told: list[tuple[Moment, Any]] = []
    hands = Hands(call=tff.call, notify=lambda moment, numbers: told.append((moment, numbers)))
    outputs = run(Inputs(place=place, base=""), hands)
    return Averaged(place, records_of(place), outputs, told)


class TestAveraging:
    def test_weights_are_those_of_the_formula(self, averaged: Averaged) -> None:
        assert_weights(averaged.place, federated(mean_delta))

    def test_each_round_is_a_committed_round_of_the_run(self, averaged: Averaged) -> None:
        assert [r.round for r in averaged.records] == [0, 1, 2]
        for before, record in itertools.pairwise(averaged.records):
            assert (record.previous, record.base, record.layout) == (before.ref, before.weights, before.layout)
            assert record.rule == "simulation fedavg"
            events = f"runs/run-1/{record.round}/tensorboard/events.out.tfevents.{record.round:06d}"
            assert b"test_accuracy" in averaged.place.open().read(events).data

    def test_it_is_tested_on_the_learners_test_parts_and_centrally(self, averaged: Averaged) -> None:
        merged = examples_joined(list(TEST.values()))
        for record in averaged.records[1:]:
            w = {k: v.astype(np.float64) for k, v in weights_of(averaged.place, record).items()}
            for prefix, data in (("test_", merged), ("central_", CENTRAL)):
                assert record.metrics[f"{prefix}loss"] == pytest.approx(loss(w, data), abs=1e-5)
                accuracy = np.mean(np.argmax(soft(w, data.x), axis=1) == data.y)
                assert record.metrics[f"{prefix}accuracy"] == pytest.approx(accuracy, abs=1e-6)
            assert record.metrics["num_examples"] == 2 * 19

    def test_the_step_reports_each_round_and_ends_early(self, averaged: Averaged) -> None:
        told = averaged.told
        assert averaged.outputs.rounds == 2  # the first improves on nothing, the second on the first by less than 100
        assert [moment.record.round for moment, _ in told if moment.record] == [1, 2]
        assert told[0][1].keys() >= {"loss", "accuracy", "test_loss", "central_accuracy"}
        assert "num_examples" not in told[0][1]
        assert told[0][0].board.asked == ("a", "b", "c")


def assert_weights(place: RunPlace, expected: Arrays) -> None:
    found = weights_of(place, records_of(place)[-1])
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, atol=2e-5)


class TestAlgorithms:
    """The steps of all optimizers: test_optimizers.py."""

    def test_proximal_clients_of_their_own_rate_count_alike_for_a_server_with_momentum(
        self, tff: Worker, tmp_path: Path
    ) -> None:
        server, step = SERVERS["momentum"]
        place = begun(
            tmp_path,
            algorithm={"name": "averaging", "weighting": "uniform"},
            simulation={
                **UNTESTED, "algorithm": "fedprox", "proximal_strength": 0.8, "server_optimizer": server,
                "client_optimizer": {"name": "sgd", "learning_rate": 0.2},
            },
        )  # fmt: skip
        rounds(tff, place)
        assert_weights(place, federated(lambda w: mean_delta(w, rate=0.2, pull=0.8, uniform=True), step))

    def test_federated_sgd_takes_one_step_along_the_gradient_of_all_examples(self, tff: Worker, tmp_path: Path) -> None:
        server, step = SERVERS["yogi"]
        place = begun(tmp_path, simulation={**UNTESTED, "algorithm": "fedsgd", "server_optimizer": server})
        rounds(tff, place)
        assert_weights(place, federated(lambda w: mean_delta(w, rate=1.0, steps=1), step))

    def test_mime_lite_keeps_the_clients_optimizer_state_at_the_server(self, tff: Worker, tmp_path: Path) -> None:
        """Without momentum there is no state, and MimeLite is federated averaging (Karimireddy et al. 2020)."""
        place = begun(tmp_path, simulation={**UNTESTED, "algorithm": "mimelite"})
        rounds(tff, place)
        assert_weights(place, federated(mean_delta))


class TestRounds:
    def test_learners_are_drawn_from_those_that_are_not_held_out(self, tff: Worker, tmp_path: Path) -> None:
        place = begun(
            tmp_path,
            simulation={"held_out": ["b"], "test_every": 2},
            quorum={"learners_per_round": 1, "min_learners": 1},
        )
        _, first, second = rounds(tff, place)
        federation = trainers(read_plan(place.open(), place.plan).federation)
        for record in (first, second):
            (name,) = select(federation, record.round)
            assert record.metrics["num_examples"] == 2 * len(TRAIN[name].y)
        assert "held_out_loss" not in first.metrics
        w = {k: v.astype(np.float64) for k, v in weights_of(place, second).items()}
        both = examples_joined([TRAIN["b"], TEST["b"]])
        assert second.metrics["held_out_loss"] == pytest.approx(loss(w, both), abs=1e-5)

    def test_a_stopped_simulation_continues_to_the_same_bytes(
        self, tff: Worker, other_tff: Worker, tmp_path: Path
    ) -> None:
        """In another process, with batches in an order of their own and a server that keeps a state."""
        small = {"rounds": ROUNDS + 1, "batch_size": 2, "local_epochs": 2, "seed": 5}
        settings = {**UNTESTED, "server_optimizer": SERVERS["adam"][0]}
        place = begun(tmp_path / "whole", simulation=settings, training=small)
        rounds(tff, place, 1)
        stopped = copied(place, tmp_path / "stopped")
        assert rounds(other_tff, stopped) == rounds(tff, place)

    def test_preprocessing_says_what_a_client_trains_on(self, tff: Worker) -> None:
        code = "def labels(x, y):\n    return x * 1.0, y + 1\n"
        training = {"rounds": 1, "batch_size": 2, "preprocessing": "map(labels).batch(3).repeat(2)"}
        found = tff.call(inside.batches_of, code, training, np.zeros((4, 2)).tolist(), [0, 1, 2, 3], 1)
        assert found == [[1, 2, 3], [4]] * 2

    def test_preprocessing_keeps_the_form(self, tff: Worker) -> None:
        code = "def half(x, y):\n    return x[:2], y\n"
        training = {"rounds": 1, "batch_size": 2, "preprocessing": "map(half)"}
        with pytest.raises(DataError, match=r"preprocessing changes features from float32\[4\] to float32\[2\]"):
            tff.call(inside.batches_of, code, training, np.zeros((4, 4)).tolist(), [0, 1, 2, 3], 1)

    def test_learners_with_examples_of_other_forms(self, tff: Worker, tmp_path: Path) -> None:
        """The one with the unusual form is dropped, also when it is the first."""
        odd = {part: Examples(held.x.astype(np.float64), held.y) for part, held in PARTS["a"].items()}
        place = begun(tmp_path, parts={**PARTS, "a": odd})
        rounds(tff, place, 1)
        record = records_of(place)[1]
        (dropped,) = record.dropped
        assert dropped.learner == "a"
        assert dropped.why.startswith("the features of b are float32[4], but those of a are float64[4]")
        federation = read_plan(place.open(), place.plan).federation
        assert took_part(federation, record) == ("b", "c")
        assert read_head(place.open()) is None  # a rehearsal moves nothing


EXAMPLES = Path(__file__).parents[2] / "examples" / "tff"
OWN = (EXAMPLES / "own_algorithm.py").read_text()
LEARNING_PROCESS = """
import tensorflow_federated as tff

def build(model_fn):
    sgd = tff.learning.optimizers.build_sgdm(0.5)
    return tff.learning.algorithms.build_unweighted_fed_avg(model_fn, sgd)
"""


OF_THE_USER = {**UNTESTED, "process": "own.py:build"}


class TestAnAlgorithmOfTheUser:
    """In this order, the worker compiles each of the two once."""

    def test_its_state_is_the_model(self, tff: Worker, tmp_path: Path) -> None:
        place = begun(tmp_path, simulation=OF_THE_USER)
        rounds(tff, place, process=OWN)
        assert_weights(place, federated(lambda w: mean_delta(w, rate=0.01, uniform=True)))

    def test_weights_that_are_not_finite_are_not_committed(self, tff: Worker, tmp_path: Path) -> None:
        huge = {KERNEL: np.full((4, 3), 3e38, np.float32), BIAS: START[BIAS]}
        place = begun(tmp_path, start=huge, simulation=OF_THE_USER)
        with pytest.raises(RoundError, match=r"after round 1, .* NaN or infinity\. Lower the learning rates"):
            rounds(tff, place, 1, process=OWN)
        assert read_record(place.open(), "run-1", 1) is None

    def test_or_a_learning_process(self, tff: Worker, tmp_path: Path) -> None:
        place = begun(tmp_path, simulation=OF_THE_USER)
        rounds(tff, place, process=LEARNING_PROCESS)
        assert_weights(place, federated(lambda w: mean_delta(w, uniform=True)))

    def test_another_one_does_not_continue_from_its_state(self, tff: Worker, tmp_path: Path) -> None:
        place = begun(tmp_path, simulation=OF_THE_USER)
        rounds(tff, place, 1, process=OWN)
        with pytest.raises(InputError, match=r"was made by 'simulation own\.py:build"):
            rounds(tff, place, process=LEARNING_PROCESS)

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
            ("def build(model_fn):\n    return 1 / 0", r"own.py: build\(\) fails, because ZeroDivisionError.*line 2"),
            ("def build(", r"own.py: cannot be imported, because SyntaxError.*line 1"),
        ],
    )  # fmt: skip
    def test_mistakes_name_the_file_and_the_remedy(self, text: str, message: str, tff: Worker) -> None:
        with pytest.raises(ModelError, match=message):
            check(tff, {"process": "own.py:build"}, process=text)


def check(
    tff: Worker, simulation: dict[str, Any], *, code: str = DENSE, process: str = "", model: str = "",
    examples: Examples = TRAIN["a"], **training: Any,
) -> None:  # fmt: skip
    federation = make_federation(training={**WHOLE, **training}, simulation=simulation)
    tff.call(check_simulation, federation, code, dump_examples(examples), SimulationFiles(process, model))


def divisible(body: str, inputs: str = "[number, code, text]") -> str:
    """A model of numbers, codes and texts."""
    return f"""
import keras
layers = keras.layers

def build():
    number, code = keras.Input((2,), name="number"), keras.Input((1,), name="code", dtype="int64")
    text = keras.Input((1,), name="text", dtype="string")
    x = {body}
    model = keras.Model({inputs}, layers.Dense(1, "sigmoid")(x))
    model.compile("sgd", "binary_crossentropy")
    return model
"""


PEOPLE = Examples(
    {
        "number": np.array([[1, 2], [3, 4], [0.5, 6]], np.float32),
        "code": np.array([[7], [9], [7]], np.int64),
        "text": np.array([["a b"], ["b"], [""]], object),
    },
    np.array([0, 1, 0]),
)
NUMBERS = Examples({name: PEOPLE.x[name] for name in ("number", "code")}, PEOPLE.y)
TEXTS = Examples({"text": PEOPLE.x["text"]}, PEOPLE.y)
WORDS = "layers.TextVectorization(vocabulary=['a', 'b'], output_sequence_length=3)(text)"


class TestSeveralInputsAndTexts:
    @pytest.mark.parametrize(
        ("code", "examples", "given"),
        [
            (divisible(
                "layers.Concatenate()([layers.Dense(3)(number), layers.CategoryEncoding(3, 'one_hot')("
                "layers.IntegerLookup(vocabulary=[7, 9])(code)), layers.StringLookup(vocabulary=['a b', 'b'], "
                "output_mode='one_hot')(text)])"
             ), PEOPLE,
             {"number": ("float32", [3, 2]), "category_encoding": ("float32", [3, 3]),
              "string_lookup": ("float32", [3, 3])}),
            (divisible(f"layers.Flatten()(layers.Embedding(4, 2)({WORDS}))", "text"), TEXTS,
             {"text_vectorization": ("int64", [3, 3])}),
            (divisible("layers.Concatenate()([number, layers.Flatten()(layers.Embedding(10, 2)(code))])",
                       "{'number': number, 'code': code}"), NUMBERS,
             {"number": ("float32", [3, 2]), "code": ("int64", [3, 1])}),
            (divisible("layers.Dense(2)(number)", "{'number': number, 'text': text}"),
             Examples({name: PEOPLE.x[name] for name in ("text", "number")}, PEOPLE.y), {"number": ("float32", [3, 2])}),
        ],
        ids=["encoded", "embedded", "only numbers", "an unused text"],
    )  # fmt: skip
    def test_tff_gets_what_the_lookups_return(
        self, code: str, examples: Examples, given: dict[str, Any], tff: Worker
    ) -> None:
        forms, part, whole = tff.call(inside.divided, code, dump_examples(examples))
        assert forms == given
        np.testing.assert_allclose(part, whole, atol=1e-6)

    def test_tff_trains_it(self, tff: Worker) -> None:
        code = divisible(f"layers.Concatenate()([number, layers.Flatten()(layers.Embedding(4, 2)({WORDS}))])",
                         "[number, text]")  # fmt: skip
        examples = Examples({"0": PEOPLE.x["number"], "1": PEOPLE.x["text"]}, PEOPLE.y)
        check(tff, {}, code=code, examples=examples)

    @pytest.mark.parametrize(
        ("code", "examples", "training", "message"),
        [
            (divisible("layers.GlobalAveragePooling1D()(layers.Embedding(4, 2)("
                       "layers.TextVectorization(vocabulary=['a'])(text)))", "text"), TEXTS, {},
             r"the layer 'text_vectorization' returns rows of several lengths.*Set output_sequence_length"),
            (divisible("keras.Sequential([layers.StringLookup(vocabulary=['a']), layers.Embedding(3, 2), "
                       "layers.Flatten()], name='words')(text)", "text"), TEXTS, {},
             r"the layer 'words' takes text and has weights, which cannot be simulated\. Look texts up"),
            (divisible(f"layers.Flatten()(layers.Embedding(4, 2)({WORDS}))", "text"), TEXTS,
             {"preprocessing": "map(load)", "local_epochs": 1},
             r"training\.preprocessing: `map` cannot be simulated for a model of texts or of several inputs\. Move"),
            (DENSE, PEOPLE, {}, "the features are named 'code', 'number', 'text', but the model has"),
            (DENSE, Examples(np.array([["a"]] * 3, object), PEOPLE.y), {}, "the features are text, but the model takes"),
            (DENSE, Examples(TRAIN["a"].x, {"p": TRAIN["a"].y, "q": TRAIN["a"].y}), {},
             r"a model with several outputs \('p', 'q'\) cannot be simulated"),
            (DENSE.replace("keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, activation=\"softmax\")])",
                           "type('Own', (keras.Model,), {'call': lambda self, x: x})()"), TRAIN["a"], {},
             r"a model that computes in its own call\(\) cannot be simulated"),
        ],
    )  # fmt: skip
    def test_what_cannot_be_divided(
        self, code: str, examples: Examples, training: dict[str, Any], message: str, tff: Worker
    ) -> None:
        with pytest.raises(InputError, match=message):
            check(tff, {}, code=code, examples=examples, **training)


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
        place = begun(tmp_path, simulation={**UNTESTED, "model": "f.py:build"})
        rounds(tff, place, tff_model=FUNCTIONAL)
        assert_weights(place, federated(mean_delta))

    def test_a_hand_written_variable_model(self, tff: Worker, tmp_path: Path) -> None:
        place = begun(tmp_path, simulation={**UNTESTED, "model": "v.py:build"})
        records = rounds(tff, place, tff_model=HAND_WRITTEN)
        assert_weights(place, federated(mean_delta))
        assert records[-1].metrics["accuracy"] > 0.4

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("def build(): return 3", "returns int, not a TFF model"),
            ("def build(): raise ValueError('no')", r"build\(\) fails, because ValueError: no \(line 1\)"),
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


class TestClientData:
    def test_it_is_keyed_by_learner(self, tff: Worker, tmp_path: Path) -> None:
        place = begun(tmp_path)
        for part, held in (("train", TRAIN), ("test", TEST)):
            expected = [(name, len(e.y), e.x[0].tobytes()) for name, e in held.items()]
            assert tff.call(inside.clients_of, place, part) == expected

    def test_a_part_that_there_is_not(self, tff: Worker, tmp_path: Path) -> None:
        with pytest.raises(NotFoundError, match="no learner has a part 'tain'"):
            tff.call(inside.clients_of, begun(tmp_path), "tain")
        with pytest.raises(NotFoundError, match="there is no run 'run-2'"):
            tff.call(inside.clients_of, replace(begun(tmp_path), run="run-2"), "train")
