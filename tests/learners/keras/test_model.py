from __future__ import annotations

import contextlib
import gc
from typing import Any

import numpy as np
import pytest

from fedpipe import weights
from fedpipe.errors import ModelError
from fedpipe.frameworks import uncollected
from fedpipe.learners.check import check_model
from fedpipe.learners.keras.arguments import check_arguments
from fedpipe.learners.keras.model import KerasModel
from fedpipe.learners.user_code import load_code
from fedpipe.store.objects import digest_of
from tests.federations import make_federation
from tests.models import DENSE, RICH

X = np.random.default_rng(0).normal(size=(40, 4)).astype(np.float32)


def built(code: str, function: str = "build") -> KerasModel:
    return KerasModel(code.encode(), digest_of(code.encode()), function)


def after_training(model: KerasModel, seed: int) -> str:
    model.reset(seed)
    model.keras.fit(X, (X[:, 0] > 0).astype(np.float32), epochs=2, batch_size=8, verbose=0)
    return weights.digest_of(model.weights())


@pytest.mark.parametrize("enabled", [True, False])
def test_no_garbage_is_looked_for_meanwhile_and_then_as_before(enabled: bool) -> None:
    was = gc.isenabled()
    (gc.enable if enabled else gc.disable)()
    try:
        with contextlib.suppress(ImportError), uncollected():
            assert not gc.isenabled()
            raise ImportError
        assert gc.isenabled() == enabled
    finally:
        (gc.enable if was else gc.disable)()


def test_names_are_stable_and_hold_no_random_state() -> None:
    names = set(built(RICH).weights())
    assert names == set(built(RICH).weights())
    assert "batch_normalization/moving_mean" in names
    assert not any("seed" in name for name in names)


def test_equal_seeds_give_equal_weights_in_a_used_and_in_a_fresh_model() -> None:
    model = built(RICH)
    first = after_training(model, 1)
    assert after_training(model, 2) != first
    assert after_training(model, 1) == first
    assert after_training(built(RICH), 1) == first


def test_weights_go_out_and_in() -> None:
    model = built(RICH)
    changed = {name: value + 1 for name, value in model.weights().items()}
    model.set_weights(changed)
    assert weights.digest_of(model.weights()) == weights.digest_of(changed)


def test_two_layers_of_one_name_are_distinguished() -> None:
    code = DENSE.replace("keras.layers.Dense(3", "keras.layers.Dense(4), keras.layers.Dense(3")
    assert len(built(code).weights()) == 4


CODES = {
    "syntax": ("def build(:\n", r"model.py: cannot be imported, because SyntaxError: .*\(line 1\)"),
    "import": ("import nothing_of_that_name\n", r"ModuleNotFoundError: .*\(line 1\)"),
    "no function": ("def biuld():\n    pass\n", "there is no function 'build'. Did you mean 'biuld'"),
    "no function at all": ("x = 1\n", "there is no function 'build'. Define it"),
    "raises": ("def build():\n    raise ValueError('oops')\n", r"build\(\) fails, because ValueError: oops \(line 2\)"),
    "no model": ("def build():\n    return 3\n", "returns int, not a Keras model"),
    "not compiled": (
        "import keras\ndef build():\n    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])\n",
        "the model is not compiled",
    ),
    "no input": (
        "import keras\ndef build():\n    m = keras.Sequential([keras.layers.Dense(1)])\n    m.compile('sgd', 'mse')\n    return m\n",
        "has no input shape",
    ),
}


@pytest.mark.parametrize(("code", "message"), CODES.values(), ids=CODES.keys())
def test_a_model_py_that_cannot_be_used(code: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        built(code)


def test_code_is_checked_before_it_is_imported() -> None:
    with pytest.raises(ModelError, match="not the one that the plan names"):
        load_code(b"raise SystemExit", digest_of(b"other"))


class TestArguments:
    @pytest.mark.parametrize(
        ("training", "message"),
        [
            ({"fit": {"shufle": True}}, "training.fit: unknown argument 'shufle'. Did you mean 'shuffle'?"),
            ({"fit": {"zzz": 1}}, "training.fit: unknown argument 'zzz'. Valid: class_weight, shuffle"),
            ({"fit": {"batch_size": 1}}, "'batch_size' cannot be set here. It is given by training.batch_size"),
            ({"evaluate": {"step": 1}}, "training.evaluate: unknown argument 'step'. Remove it: fedpipe gives all"),
            (
                {"evaluate": {"steps": 1}},
                "training.evaluate: 'steps' cannot be set here. It is given by algorithm.vote.batches for a vote;",
            ),
            ({"evaluate": {"batch_size": 1}}, "'batch_size' cannot be set here. It is given by training.batch_size."),
            ({"evaluate": {"callbacks": []}}, "'callbacks' cannot be set here. It is given by fedpipe;"),
            ({"fit": {"class_weight": {"a": 1}}}, "training.fit.class_weight: 'a' is not a label. Count labels from 0"),
            ({"fit": {"class_weight": {-1: 1}}}, "training.fit.class_weight: -1 is not a label"),
            ({"fit": {"class_weight": {10**9: 1}}}, "training.fit.class_weight: 1000000000 is not a label"),
            ({"fit": {"class_weight": {0: "1"}}}, "training.fit.class_weight.0: '1' is not a weight. Write a number"),
            ({"fit": {"class_weight": [1, 2]}}, "training.fit.class_weight: is not a table. Write a weight for each"),
            ({"callbacks": {"EarlyStoping": {}}}, "unknown callback 'EarlyStoping'. Did you mean 'EarlyStopping'?"),
            ({"callbacks": {"EarlyStopping": {}, "Nope": {}}}, "unknown callback 'Nope'. Valid: "),
            ({"callbacks": {"EarlyStopping": {"patienc": 1}}}, "Did you mean 'patience'?"),
            ({"callbacks": {"ReduceLROnPlateau": {"factor": 2.0}}}, "a callback refuses its arguments"),
        ],
    )
    def test_that_keras_does_not_know(self, training: Any, message: str) -> None:
        federation = make_federation(training={"rounds": 1, "batch_size": 1, **training})
        with pytest.raises(ModelError) as caught:
            check_arguments(federation.training)
        assert message in str(caught.value)

    def test_that_keras_knows(self) -> None:
        training = {
            "fit": {"class_weight": {"0": 2.0}, "shuffle": False},
            "callbacks": {"EarlyStopping": {"patience": 1}},
        }
        check_arguments(make_federation(training={"rounds": 1, "batch_size": 1, **training}).training)


def test_a_model_that_cannot_be_private_is_found_before_the_run() -> None:
    settings = {"noise_multiplier": 1.0, "l2_norm_clip": 1.0, "microbatches": 1, "delta": 1e-5, "target_epsilon": 8.0}
    assert check_model(make_federation(), RICH, None)
    with pytest.raises(ModelError, match="mixes the examples of a batch, so that no epsilon holds"):
        check_model(make_federation(privacy=settings), RICH, None)


def test_a_schedule_keeps_its_rate() -> None:
    code = DENSE.replace("SGD(0.5)", "SGD(keras.optimizers.schedules.ExponentialDecay(0.1, 10, 0.9))")
    with pytest.raises(ModelError, match="learning rate schedule"):
        built(code).set_learning_rate(0.1)


def test_mixed_precision_keeps_float32_weights() -> None:
    model = KerasModel(DENSE.encode(), digest_of(DENSE.encode()), "build", "mixed_bfloat16")
    assert {str(v.dtype) for v in model.weights().values()} == {"float32"}
    assert model.keras.layers[-1].compute_dtype == "bfloat16"
    built(DENSE)  # and the next model has the default policy again
