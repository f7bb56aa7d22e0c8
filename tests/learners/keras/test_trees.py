"""Models of several inputs and outputs, sample weights, text, and subclasses of keras.Model."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fedpipe.data.examples import Examples, examples_joined
from fedpipe.errors import ModelError
from fedpipe.federation.training import Training
from fedpipe.learners.check import built_model, check_model, rehearse_training
from fedpipe.learners.framework import Model
from fedpipe.learners.keras.datasets import DatasetPart
from fedpipe.learners.parts import Part, label_shape_of
from fedpipe.registry.export import largest_difference
from fedpipe.rounds.plan import Port
from tests.federations import make_federation

pytestmark = [pytest.mark.heavy, pytest.mark.xdist_group("keras")]
HEAD = "import keras, numpy as np\nfrom keras import layers, ops\n\n"
RNG = np.random.default_rng(0)
A, B = RNG.normal(size=(40, 3)).astype(np.float32), RNG.normal(size=40).astype(np.float32)
KIND, DAYS = RNG.integers(0, 2, 40), RNG.random(40)
TRAINING = Training(rounds=1, batch_size=8)

TWO_INPUTS = (
    HEAD
    + """
def build():
    a, b = keras.Input((3,), name="a"), keras.Input((1,), name="b")
    x = layers.Concatenate()([a, b])
    model = keras.Model([b, a], layers.Dense(2, activation="softmax")(x))
    model.compile("sgd", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model
"""
)
TWO_OUTPUTS = (
    HEAD
    + """
def build():
    x = keras.Input((3,))
    outputs = [layers.Dense(2, activation="softmax", name="kind")(x), layers.Dense(1, name="days")(x)]
    model = keras.Model(x, outputs)
    model.compile(
        "sgd", {"kind": "sparse_categorical_crossentropy", "days": "mse"}, loss_weights={"kind": 1.0, "days": 0.5},
        metrics={"kind": ["accuracy"], "days": ["mae"]})
    return model
"""
)
SUBCLASS = (
    HEAD
    + """
class Net(keras.Model):
    def __init__(self):
        super().__init__()
        self.last = layers.Dense(2, activation="softmax")

    def call(self, x):
        return self.last(TAKEN)

def build():
    model = Net()
    BUILT
    model.compile("sgd", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model
"""
)


def model_of(code: str, inputs: tuple[Port, ...] = ()) -> Model:
    return built_model(make_federation(), code, inputs=inputs)


def trained(model: Model, part: Part, **more: Any) -> dict[str, np.ndarray]:
    start = model.initial_weights(0)
    training = Training(**{"rounds": 1, "batch_size": 8, **more})
    return model.train(start, part, training, seed=1, seconds=60, optimizer=None).weights


def assert_equal(first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> None:
    for name, value in first.items():
        np.testing.assert_array_equal(value, second[name])


def test_inputs_by_name_and_by_position_are_the_same() -> None:
    model = model_of(TWO_INPUTS)
    assert [port.name for port in model.outline.inputs] == ["b", "a"]
    named, placed = Examples({"a": A, "b": B}, KIND), Examples({"0": B, "1": A}, KIND)
    assert_equal(trained(model, named), trained(model, placed))
    start = model.initial_weights(0)
    assert model.evaluate(start, named, TRAINING) == model.evaluate(start, placed, TRAINING)
    np.testing.assert_array_equal(model.predictor(start)(named.x)[0], model.predictor(start)(placed.x)[0])


@pytest.mark.parametrize(
    "more",
    [
        {"local_epochs": 0, "local_steps": 3},
        {"fit": {"validation_split": 0.25}},
        {"preprocessing": "repeat(2).batch(4)"},
    ],
)
def test_every_way_of_feeding(more: dict[str, Any]) -> None:
    model = model_of(TWO_INPUTS)
    found = trained(model, Examples({"a": A, "b": B}, KIND, np.ones(40, np.float32)), **more)
    assert not np.array_equal(found["dense/kernel"], model.initial_weights(0)["dense/kernel"])


def test_arrays_too_large_to_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedpipe.learners.keras.loop.LARGE", 0)
    model = model_of(TWO_INPUTS)
    weighted = Examples({"a": A, "b": B}, KIND, np.zeros(40, np.float32))
    assert_equal(trained(model, weighted), model.initial_weights(0))  # all weights are 0


def test_names_of_inputs_are_listed() -> None:
    with pytest.raises(
        ModelError, match="named 'a', 'c', but the model has 'b', 'a': missing are 'b'; unknown are 'c'"
    ):
        check_model(make_federation(), TWO_INPUTS, Examples({"a": A, "c": B}, KIND))


def test_a_dataset_of_dicts_with_weights() -> None:
    import tensorflow

    weight = RNG.random(40).astype(np.float32)
    part = DatasetPart(tensorflow.data.Dataset.from_tensor_slices(({"b": B, "a": A}, KIND, weight)))
    model, start = model_of(TWO_INPUTS), model_of(TWO_INPUTS).initial_weights(0)
    arrays = Examples({"a": A, "b": B}, KIND, weight)
    assert model.evaluate(start, part, TRAINING) == model.evaluate(start, arrays, TRAINING)
    wrong = DatasetPart(tensorflow.data.Dataset.from_tensor_slices(({"b": B, "z": A}, KIND)))
    with pytest.raises(ModelError, match="unknown are 'z'"):
        model.evaluate(start, wrong, TRAINING)


def test_federated_metrics_of_several_outputs_are_those_of_all_data_together() -> None:
    model = model_of(TWO_OUTPUTS)
    start = model.initial_weights(0)
    whole = Examples(A, {"days": DAYS, "kind": KIND})
    parts = [whole.rows(slice(0, 16)), whole.rows(slice(16, 40))]
    measured = [model.evaluate(start, part, TRAINING) for part in parts]
    states = [np.sum(state, axis=0) for state in zip(*(m.states for m in measured), strict=True)]
    expected = model.evaluate(start, examples_joined(parts), TRAINING).metrics
    assert {"loss", "kind_accuracy", "days_mae"} <= expected.keys()
    fresh = built_model(make_federation(("x", "y")), TWO_OUTPUTS + "# built again\n")
    assert label_shape_of(whole) == {"days": (), "kind": ()}
    found = fresh.metrics_of(states, label_shape_of(whole))
    for name in ("loss", "kind_accuracy", "days_mae"):
        assert found[name] == pytest.approx(expected[name], rel=1e-5)


def test_labels_by_position_and_by_name_are_the_same() -> None:
    model = model_of(TWO_OUTPUTS)
    named, placed = Examples(A, {"days": DAYS, "kind": KIND}), Examples(A, {"0": KIND, "1": DAYS})
    assert_equal(trained(model, named), trained(model, placed))


@pytest.mark.filterwarnings("ignore:Gradients do not exist")
def test_an_output_without_a_loss() -> None:
    code = TWO_OUTPUTS.replace('"days": "mse"}', '"days": None}').replace(', "days": ["mae"]', "")
    code = code.replace(', loss_weights={"kind": 1.0, "days": 0.5}', "")
    few = Examples(A, {"kind": KIND})
    assert check_model(make_federation(), code, few)
    model = model_of(code)
    assert_equal(trained(model, few), trained(model, Examples(A, KIND)))


def test_labels_of_one_of_the_outputs_that_do_not_fit() -> None:
    with pytest.raises(ModelError, match="the labels of 'kind' range from 3 to 4, but the model has 2 outputs"):
        check_model(make_federation(), TWO_OUTPUTS, Examples(A, {"days": DAYS, "kind": KIND + 3}))


def test_sample_weights_count_in_training_and_in_weighted_metrics() -> None:
    code = TWO_INPUTS.replace('metrics=["accuracy"]', 'metrics=["accuracy"], weighted_metrics=["accuracy"]')
    model = model_of(code)
    start = model.initial_weights(0)
    x, half = {"a": A, "b": B}, np.repeat([0.0, 1.0], 20).astype(np.float32)
    found = model.evaluate(start, Examples(x, KIND, half), TRAINING).metrics
    second = model.evaluate(start, Examples(x, KIND).rows(slice(20, 40)), TRAINING).metrics
    everything = model.evaluate(start, Examples(x, KIND), TRAINING).metrics
    assert found["weighted_accuracy"] == pytest.approx(second["accuracy"])
    assert found["accuracy"] == pytest.approx(everything["accuracy"])
    assert found["loss"] == pytest.approx(second["loss"] / 2, rel=1e-5)  # Keras divides by the number of examples


SUBCLASSES = {
    "of its examples": ("x", "pass", A, True),
    "called in build": ("x", "model(keras.Input((3,)))", A, False),
    "built for a shape": ("x", "model.build((None, 3))", A, False),
    "with a dict": ('ops.concatenate([x["a"], x["b"]], -1)', "pass", {"a": A, "b": B[:, None]}, True),
    "with a tuple": ("ops.concatenate([x[0], x[1]], -1)", "pass", {"0": A, "1": B[:, None]}, True),
}


@pytest.mark.filterwarnings("ignore:`build\\(\\)` was called on layer")
@pytest.mark.parametrize(("taken", "how", "x", "shared"), SUBCLASSES.values(), ids=SUBCLASSES)
def test_subclasses(taken: str, how: str, x: Any, shared: bool) -> None:
    from fedpipe.learners.check import shared_ports

    code = SUBCLASS.replace("TAKEN", taken).replace("BUILT", how)
    learners = {} if shared else {"learners": [{"name": "a", "data": "/nowhere/a.npz"}]}
    federation, examples = make_federation(**learners), Examples(x, KIND)
    assert "8 parameters" in check_model(federation, code, examples) or shared
    model = built_model(federation, code, inputs=shared_ports(federation, examples))
    after = rehearse_training(federation, model, examples)
    assert largest_difference(model.predictor(after), model.convert(after, 17), x) < 1e-5


def test_a_subclass_of_unknown_input() -> None:
    code = SUBCLASS.replace("TAKEN", "x").replace("BUILT", "pass")
    federation = make_federation(learners=[{"name": "a", "data": "/nowhere/a.npz"}])
    with pytest.raises(ModelError, match=r"no known input. Call it in build\(\) on a keras.Input"):
        check_model(federation, code, None)


def test_metrics_with_a_number_for_each_class() -> None:
    code = TWO_INPUTS.replace('"sparse_categorical_crossentropy", metrics=["accuracy"]',
                              '"categorical_crossentropy", metrics=[keras.metrics.F1Score()]')  # fmt: skip
    model = model_of(code)
    start, part = model.initial_weights(0), Examples({"a": A, "b": B}, np.eye(2, dtype=np.float32)[KIND])
    measured = model.evaluate(start, part, TRAINING)
    assert set(measured.metrics) == {"loss", "f1_score_0", "f1_score_1"}
    assert model.metrics_of([np.array(s) for s in measured.states], (2,)) == pytest.approx(measured.metrics)
