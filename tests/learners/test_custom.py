"""Learners of a user's own functions: the contract of all models, and every way in which a function can be wrong."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fedpipe import weights
from fedpipe.data.examples import Examples
from fedpipe.data.ports import ports_of
from fedpipe.errors import DroppedError, ExportError, ModelError
from fedpipe.federation.training import Privacy, Training
from fedpipe.learners.check import built_model, check_model, rehearse_training
from fedpipe.learners.custom import CustomFramework, CustomModel, cached_model
from fedpipe.learners.framework import Model
from fedpipe.registry.export import convert_checked
from fedpipe.registry.rehearsal import rehearse
from fedpipe.store.objects import digest_of
from tests.federations import make_federation
from tests.learners.contract import PART, ModelContract, X, Y
from tests.models import CUSTOM

FEDERATION = make_federation(framework="custom", model="model.py:learner", training={"rounds": 1, "batch_size": 8})


class TestContract(ModelContract):
    framework = "custom"
    code = CUSTOM
    squared = CUSTOM.replace("RATE = 4, 3, 0.5", "RATE = 4, 3, 1e30").replace('"loss": losses.mean()', '"loss": np.inf')

    def model(self, code: str = "") -> Model:
        return built_model(FEDERATION, code or self.code)

    def another(self) -> CustomModel:
        return cached_model.__wrapped__(self.code.encode(), digest_of(self.code.encode()), "learner")

    def test_a_loss_that_explodes_is_dropped(self) -> None:
        model = self.model(self.squared)
        with pytest.raises(DroppedError, match=r"the loss is inf in epoch 1: lower the learning rate"):
            self.train(model, model.initial_weights(0), Examples(X, Y))


MINIMAL = """
import numpy as np

def learner():
    return {"initial_weights": initial_weights, "train": train, "evaluate": evaluate, "predict": predict}

def initial_weights(seed):
    return {"w": np.zeros((4, 3), np.float32)}

def train(weights, x, y):
    return weights

def evaluate(weights, x, y):
    return {"loss": 0.5}

def predict(weights, x):
    return x @ weights["w"]
"""
"""All that a learner needs: the other keywords and constants are left out."""


def built(code: str, **more: Any) -> Model:
    return built_model(FEDERATION, code, **{"inputs": ports_of(X), **more})


def test_a_learner_needs_four_functions_and_no_constants() -> None:
    model = built(MINIMAL)
    assert model.check_examples(X, Y) == {"loss"}
    found = model.train(
        model.initial_weights(0), PART, Training(rounds=1, batch_size=7), seed=0, seconds=9, optimizer=None
    )
    assert found.steps == 9
    assert found.epochs == [{"loss": 0.5}]  # measured, because train() returns no metrics
    assert [(port.name, port.shape) for port in model.outline.inputs] == [("input", (None, 4))]
    assert [head.task for head in model.heads] == [""]
    with pytest.raises(ExportError, match=r"the learner has no function convert\(weights, opset\)"):
        model.convert(model.initial_weights(0), 17)


def test_functions_get_what_they_have_parameters_for() -> None:
    code = MINIMAL.replace(
        "def train(weights, x, y):\n    return weights",
        "GOT = []\ndef train(weights, x, y, *, alpha=1, **more):\n    GOT.append((alpha, more))\n    return weights, None, {'s': 1.0}",
    )
    model = built(code)
    training = Training(rounds=1, batch_size=7, local_epochs=2, learning_rate=0.1, optimizer="keep", fit={"alpha": 3})
    model.check_training(training, private=False)
    weighted = Examples(X, Y, np.full(60, 2, np.float32))
    found = model.train(model.initial_weights(0), weighted, training, seed=5, seconds=9, optimizer={"s": np.ones(2)})
    ((alpha, more),) = model.module.GOT
    assert alpha == 3
    assert {name: more[name] for name in ("epochs", "steps", "batch_size", "learning_rate", "seed")} == {
        "epochs": 2, "steps": 0, "batch_size": 7, "learning_rate": 0.1, "seed": 5,
    }  # fmt: skip
    assert 8 < more["seconds"] <= 9
    np.testing.assert_array_equal(more["optimizer"]["s"], np.ones(2))
    np.testing.assert_array_equal(more["sample_weight"], np.full(60, 2))
    assert found.optimizer == {"s": np.array(1.0)}


def test_what_functions_change_stays_with_them() -> None:
    code = MINIMAL.replace("    return weights\n", "    weights['w'] += 1; x += 1; y *= 0\n    return weights\n")
    model, part = built(code), Examples(X.copy(), Y.copy())
    start = model.initial_weights(0)
    found = model.train(start, part, Training(rounds=1, batch_size=8), seed=0, seconds=9, optimizer=None)
    assert start["w"].sum() == 0
    assert found.weights["w"].sum() == 12
    np.testing.assert_array_equal(part.x, X)
    np.testing.assert_array_equal(part.y, Y)


def test_weights_keep_the_dtypes_that_they_began_with() -> None:
    model = built(
        MINIMAL.replace("    return weights\n", "    return {'w': weights['w'].astype(np.float64) + 1 / 3}\n")
    )
    found = model.train(
        model.initial_weights(0), PART, Training(rounds=1, batch_size=8), seed=0, seconds=9, optimizer=None
    )
    assert found.weights["w"].dtype == np.float32


def test_the_metrics_of_several_learners_are_those_of_all_examples() -> None:
    code = MINIMAL.replace('{"loss": 0.5}', "{'loss': float(y.mean()), 'mean_of_x': float(x.mean())}")
    code = code.replace('"predict": predict}', '"predict": predict, "metrics": ["mean_of_x", "loss"]}')
    model, training = built(code), Training(rounds=1, batch_size=8)
    start = model.initial_weights(0)
    parts = [model.evaluate(start, Examples(X[s], Y[s]), training) for s in (slice(0, 7), slice(7, 60))]
    together = model.metrics_of(np.sum([part.states for part in parts], axis=0), ())
    assert together == {"mean_of_x": pytest.approx(X.mean()), "loss": pytest.approx(Y.mean())}
    assert model.evaluate(start, PART, training, batches=2).metrics["loss"] == pytest.approx(Y[:16].mean())


def test_inputs_by_name() -> None:
    code = MINIMAL.replace("x @ weights", "(x['a'] + x['b']) @ weights")
    x = {"a": X, "b": X}
    model = built(code, inputs=ports_of(x))
    assert model.check_examples(x, Y) == {"loss"}
    assert [port.name for port in model.outline.inputs] == ["a", "b"]
    with pytest.raises(ModelError, match="missing are 'b'"):
        model.check_examples({"a": X, "c": X}, Y)


def test_several_outputs_have_their_tasks() -> None:
    code = MINIMAL.replace('"predict": predict}', '"predict": predict, "task": ["multiclass", "regression"]}')
    code = code.replace('    return x @ weights["w"]', '    return x @ weights["w"], x[:, 0]')
    assert [(head.name, head.task, head.width) for head in built(code).heads] == [
        ("output", "multiclass", 3), ("output_1", "regression", 1),
    ]  # fmt: skip


def test_own_data_needs_named_inputs() -> None:
    with pytest.raises(ModelError, match="it is unknown which features the learner takes"):
        _ = built(MINIMAL, inputs=()).outline
    code = MINIMAL.replace('"predict": predict}', '"predict": predict, "inputs": [("age", "int64", [None, 4])]}')
    assert built(code, inputs=()).outline.inputs[0].shape == (None, 4)


def test_private_training_is_refused() -> None:
    privacy = Privacy(noise_multiplier=1.0, l2_norm_clip=1.0, microbatches=1, delta=1e-5, target_epsilon=1.0)
    with pytest.raises(ModelError, match="a custom learner cannot train privately"):
        CustomFramework().build(b"", digest_of(b""), "learner", Training(rounds=1, batch_size=1), privacy)


def case(old: str, new: str, message: str) -> Any:
    assert old in MINIMAL
    return pytest.param(MINIMAL.replace(old, new), message, id=message[:60])


WRONG = [
    case('"train": train, ', "", r"the learner of learner\(\) has no function 'train'"),
    case('"train": train, ', '"train": 3, ', r"has int instead of a function 'train'"),
    case("    return {\"init", "    return None and {\"init", "has no function 'initial_weights'"),
    case("def learner", "def learn", "there is no function 'learner'"),
    case("weights(seed)", "weights()", r"initial_weights\(\) cannot be called with seed, because of too many positional"),
    case("train(weights, x, y)", "train(weights, x, y, *, foo)", r"train\(\) cannot be called .* parameter: 'foo'"),
    case("train(weights, x, y)", "train(weights, x)", r"train\(\) cannot be called with weights, x, y"),
    case('{"w": np.zeros((4, 3), np.float32)}', "np.zeros(3)", r"initial_weights\(\) returns ndarray, not arrays by name"),
    case('{"w": np.zeros((4, 3), np.float32)}', "{}", r"initial_weights\(\) returns an empty mapping"),
    case('{"w": np.zeros((4, 3), np.float32)}', "{0: np.zeros(3)}", "a mapping whose keys are not all names"),
    case("np.zeros((4, 3), np.float32)", "'text'", "returns str as 'w', not an array of numbers"),
    case("np.zeros((4, 3), np.float32)", "[[1], [2, 3]]", "returns list as 'w', not an array, because ValueError"),
    case("np.zeros((4, 3), np.float32)", "np.random.default_rng().random((4, 3))", "returns other weights when it is called"),
    case("np.zeros((4, 3), np.float32)", "np.zeros((4, 3), np.longdouble)", "cannot be exchanged, because"),
    case("    return weights\n", "    return None\n", r"train\(\) returns NoneType, not arrays by name"),
    case("    return weights\n", "    return weights, {}, {}, 1\n", r"train\(\) returns 4 values"),
    case("    return weights\n", "    return {'w': weights['w'][0]}\n", r"the weights of train\(\) do not fit the model: 'w' is \(3,\), not \(4, 3\)"),
    case("    return weights\n", "    return {'v': weights['w']}\n", "only one of them has 'v'"),
    case("    return weights\n", "    return {'w': weights['w'] * 1j}\n", "not an array of numbers"),
    case("    return weights\n", "    return {'w': weights['w'] * np.nan}\n", "not finite"),
    case("    return weights\n", "    return weights, 0.3\n", r"train\(\) returns float, not metrics by name"),
    case("    return weights\n", "    return weights, {'loss': x}\n", r"train\(\) returns ndarray as the metric 'loss'"),
    case("    return weights\n", "    return weights, {'loss': np.nan}\n", "the loss is nan in epoch 1"),
    case("    return weights\n", "    raise KeyError('k')\n", r"train\(\) fails, because KeyError: 'k' \(line 11\)"),
    case("    return weights\n", "    raise SystemExit(1)\n", r"train\(\) fails, because SystemExit"),
    case('{"loss": 0.5}', "0.5", r"evaluate\(\) returns float, not metrics by name"),
    case('{"loss": 0.5}', "{'loss': 0.5, 'f1': 1}", r"evaluate\(\) returns f1, loss, but the learner's metrics are loss"),
    case('{"loss": 0.5}', "{'loss': None}", "returns NoneType as the metric 'loss', not a number"),
    case('x @ weights["w"]', "None", r"predict\(\) returns NoneType as 'output', not an array of numbers"),
    case('x @ weights["w"]', "(x @ weights['w']).sum()", r"predict\(\) returns an array of shape \(\) for"),
    case('x @ weights["w"]', "x[:1] @ weights['w']", r"predict\(\) returns an array of shape \(1, 3\) for"),
    case('"predict": predict}', '"predict": predict, "task": "classes"}', "unknown task 'classes'"),
    case('"predict": predict}', '"predict": predict, "task": ["multiclass"] * 2}', r"there are 2 tasks for 1 outputs"),
    case('"predict": predict}', '"predict": predict, "metrics": ["accuracy"]}', "not the names that evaluate"),
    case('"predict": predict}', '"predict": predict, "inputs": [("x", "float33", [4])]}', "`inputs` cannot be read, because"),
    case('"predict": predict}', '"predict": predict, "inputs": [("x", "float32", [None, 5])]}', r"the features have shape \(4,\), but the model takes \(5,\)"),
]  # fmt: skip


@pytest.mark.parametrize(("code", "message"), WRONG)
def test_a_wrong_function_is_found_by_the_rehearsal(code: str, message: str) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        rehearse(FEDERATION, code, PART)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"local_epochs": 2}, "training.local_epochs: train() has no parameter 'epochs'"),
        ({"local_epochs": 0, "local_steps": 3}, "training.local_steps: train() has no parameter 'steps'"),
        ({"learning_rate": 0.1}, "training.learning_rate: train() has no parameter 'learning_rate'"),
        ({"optimizer": "keep"}, "training.optimizer: train() has no parameter 'optimizer'"),
        ({"fit": {"alpha": 1}}, "training.fit.alpha: train() of model.py has no parameter 'alpha'"),
        ({"fit": {"epochs": 1}}, "training.fit.epochs: fedpipe gives 'epochs' to train()"),
        ({"evaluate": {"alpha": 1}}, "training.evaluate.alpha: evaluate() of model.py has no parameter 'alpha'"),
    ],
)
def test_a_setting_without_effect_is_refused(settings: dict[str, Any], message: str) -> None:
    federation = make_federation(
        framework="custom", model="model.py:learner", training={"rounds": 1, "batch_size": 8, **settings}
    )
    with pytest.raises(ModelError) as caught:
        check_model(federation, MINIMAL, PART)
    assert str(caught.value).startswith(message)


def test_examples_with_weights_need_a_parameter() -> None:
    with pytest.raises(ModelError, match=r"the examples have weights, but train\(\) has no parameter 'sample_weight'"):
        built(MINIMAL).check_examples(X, Y, np.ones(60, np.float32))


def test_a_kept_optimizer_needs_a_state() -> None:
    model = built(MINIMAL.replace("def train(weights, x, y)", "def train(weights, x, y, optimizer)"))
    training = Training(rounds=1, batch_size=8, optimizer="keep")
    model.check_training(training, private=False)
    with pytest.raises(ModelError, match=r"train\(\) returns no optimizer state"):
        model.train(model.initial_weights(0), PART, training, seed=0, seconds=9, optimizer=None)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("    return helper.make_model(", "    return 3 or helper.make_model(", r"convert\(\) returns int, not an ONNX model"),
        ("    return helper.make_model(", "    return b'junk' or helper.make_model(", r"convert\(\) does not return a valid ONNX model"),
        ('make_opsetid("", opset)', 'make_opsetid("", opset + 1)', r"a model of opset 18, but export.opset is 17"),
        ('"custom",', "str(__import__('time').perf_counter_ns()),", r"convert\(\) returns other bytes when it is called again"),
        ('["z"], ["shares"], axis=-1', '["z"], ["shares"], axis=0', "the ONNX model differs from the trained one by"),
        ('"shares", TensorProto.FLOAT, ["batch", CLASSES])', '"shares", TensorProto.FLOAT, ["batch", CLASSES]), helper.make_tensor_value_info("z", TensorProto.FLOAT, ["batch", CLASSES])', "the ONNX model has 2 outputs, not 1"),
        ("def convert(weights, opset):", "def convert(weights, opset):\n    raise TypeError('no')", r"convert\(\) fails, because TypeError: no"),
    ],
)  # fmt: skip
def test_a_conversion_that_is_wrong(old: str, new: str, message: str) -> None:
    assert old in CUSTOM
    model = built(CUSTOM.replace(old, new))
    settings = FEDERATION.exported
    assert settings
    with pytest.raises((ModelError, ExportError), match=message):
        convert_checked(model, model.initial_weights(0), settings, X, {})


def test_the_rehearsal_returns_trained_weights() -> None:
    model = built(CUSTOM)
    found = rehearse_training(FEDERATION, model, PART)
    assert weights.digest_of(found) != weights.digest_of(model.initial_weights(0))
