from __future__ import annotations

import numpy as np
import pytest

from fedpipe.data.examples import Examples
from fedpipe.errors import DataError, ModelError
from fedpipe.federation.training import Privacy, Training
from fedpipe.learners.check import built_model
from fedpipe.learners.numpy import Linear, NumpyFramework, NumpyModel, _orders, cached_model
from fedpipe.learners.user_code import load_code
from fedpipe.store.objects import digest_of
from tests.federations import make_federation
from tests.learners.contract import PART, GradientContract, X, Y
from tests.models import LINEAR

ONE_BATCH = Training(rounds=1, batch_size=60, local_epochs=1)
MODULE = load_code(b"", digest_of(b""))


class TestContract(GradientContract):
    framework = "numpy"
    plain = LINEAR
    code = LINEAR.replace("0.5)", "0.5, momentum=0.9)")
    squared = LINEAR.replace("4, 3, learning_rate=0.5", "4, 1, 'squared', learning_rate=0.5")

    def another(self) -> NumpyModel:
        return cached_model.__wrapped__(self.code.encode(), digest_of(self.code.encode()), "build")


class TestTheFormulas:
    def test_softmax(self) -> None:
        model = NumpyModel(Linear(4, 3, learning_rate=0.5, l2=0.1), MODULE)
        start = model.initial_weights(1)
        found = model.train(start, PART, ONE_BATCH, seed=0, seconds=60, optimizer=None)
        scores = X @ start["kernel"] + start["bias"]
        shares = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
        error = (shares - np.eye(3)[Y]) / 60
        np.testing.assert_allclose(
            found.weights["kernel"], start["kernel"] - 0.5 * (X.T @ error + 0.1 * start["kernel"]), atol=1e-6
        )
        np.testing.assert_allclose(found.weights["bias"], start["bias"] - 0.5 * error.sum(axis=0), atol=1e-6)
        assert found.epochs == [
            {
                "loss": pytest.approx(-np.log(shares[np.arange(60), Y]).mean(), rel=1e-6),
                "accuracy": pytest.approx(np.mean(scores.argmax(axis=1) == Y)),
            }
        ]

    def test_squared_error_with_several_outputs(self) -> None:
        model = NumpyModel(Linear(4, 2, loss="squared", learning_rate=0.5), MODULE)
        start, wanted = model.initial_weights(1), X[:, :2] * 3 + 1
        found = model.train(start, Examples(X, wanted), ONE_BATCH, seed=0, seconds=60, optimizer=None)
        error = X @ start["kernel"] + start["bias"] - wanted
        np.testing.assert_allclose(found.weights["kernel"], start["kernel"] - 0.5 * X.T @ error / 60, atol=1e-6)
        np.testing.assert_allclose(found.weights["bias"], -0.5 * error.mean(axis=0), atol=1e-6)
        assert found.epochs == [{"loss": pytest.approx(np.mean(error**2), rel=1e-6)}]

    def test_momentum_over_two_steps(self) -> None:
        model = NumpyModel(Linear(4, 1, loss="squared", learning_rate=0.1, momentum=0.9), MODULE)
        part, twice = Examples(X, X[:, 0]), Training(rounds=1, batch_size=60, local_epochs=2, optimizer="keep")
        w, v = model.initial_weights(1)["kernel"].astype(np.float64), np.zeros((4, 1))
        b, u = np.zeros(1), np.zeros(1)
        for _ in range(2):
            error = X @ w + b - X[:, :1]
            v, u = 0.9 * v - 0.1 * 2 * X.T @ error / 60, 0.9 * u - 0.1 * 2 * error.mean(axis=0)
            w, b = w + v, b + u
        found = model.train(model.initial_weights(1), part, twice, seed=0, seconds=60, optimizer=None)
        np.testing.assert_allclose(found.weights["kernel"], w, rtol=1e-5)
        np.testing.assert_allclose(found.optimizer["kernel"], v, rtol=1e-4)  # type: ignore[index]

    def test_it_learns_a_line(self) -> None:
        model = NumpyModel(Linear(4, 1, loss="squared", learning_rate=0.1), MODULE)
        part = Examples(X, X @ np.array([1.0, -2.0, 3.0, 0.0]) + 5)
        training = Training(rounds=1, batch_size=10, local_epochs=100)
        found = model.train(model.initial_weights(0), part, training, seed=0, seconds=60, optimizer=None)
        np.testing.assert_allclose(found.weights["kernel"][:, 0], [1, -2, 3, 0], atol=1e-4)
        np.testing.assert_allclose(found.weights["bias"], [5], atol=1e-4)
        (values,) = model.predictor(found.weights)(X[:2])
        np.testing.assert_allclose(values[:, 0], part.y[:2], atol=1e-3)


def test_every_pass_over_the_examples_has_an_order_of_its_own() -> None:
    epochs = list(_orders(6, Training(rounds=1, batch_size=4, local_epochs=3), 1))
    assert [sorted(order.tolist()) for order in epochs] == [list(range(6))] * 3
    assert len({str(order) for order in epochs}) == 3
    (steps,) = _orders(6, Training(rounds=1, batch_size=4, local_steps=4), 1)
    assert len(steps) == 16
    assert sorted(steps[:6].tolist()) == sorted(steps[6:12].tolist()) == list(range(6))


def test_pictures_are_taken_as_rows() -> None:
    model = NumpyModel(Linear((2, 2), 3), MODULE)
    start, training = model.initial_weights(0), Training(rounds=1, batch_size=8)
    flat = NumpyModel(Linear(4, 3), MODULE)
    pictures = Examples(X.reshape(60, 2, 2), Y)
    assert model.evaluate(start, pictures, training) == flat.evaluate(start, PART, training)
    assert model.outline.inputs[0].shape == (None, 2, 2)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("def build():\n    return 3\n", r"build\(\) returns int, not a Linear. Return fedpipe.learners.numpy.Linear"),
        ("def build():\n    raise ValueError('oops')\n", r"build\(\) fails, because ValueError: oops \(line 2\)"),
        (LINEAR.replace("4, 3", "4"), r"build\(\) fails, because TypeError: .*outputs.* \(line 5\)"),
        (LINEAR.replace("4, 3", "4, 3, 'hinge'"), "unknown loss 'hinge'. Valid: softmax, squared."),
        (LINEAR.replace("4, 3", "'4', 3"), "features is '4'. Give Linear a whole number from 1 on"),
        (LINEAR.replace("4, 3", "(2, 0), 3"), "features is 0. Give Linear a whole number from 1 on"),
        (LINEAR.replace("4, 3", "4, 3.0"), r"outputs is 3\.0\. Give Linear a whole number from 1 on"),
        (LINEAR.replace("0.5", "'0.5'"), "learning_rate is '0.5'. Give Linear a number from 0 on"),
        (LINEAR.replace("0.5", "float('nan')"), "learning_rate is nan. Give Linear a number from 0 on"),
        (LINEAR.replace("0.5", "0.5, momentum=-1"), "momentum is -1. Give Linear a number from 0 on"),
        (LINEAR.replace("0.5", "0.5, l2=None"), "l2 is None. Give Linear a number from 0 on"),
        (
            LINEAR.replace("def build", "async def build"),
            r"build\(\) is asynchronous, so it returns no model. Write `def`",
        ),
        (LINEAR.replace("build", "biuld"), "there is no function 'build'. Did you mean 'biuld'"),
    ],
)
def test_a_model_py_that_cannot_be_used(code: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        built_model(make_federation(framework="numpy"), code)


def test_labels_that_are_not_classes() -> None:
    with pytest.raises(ModelError, match="the labels are not whole numbers"):
        built_model(make_federation(framework="numpy"), LINEAR).check_examples(X[:2], np.array([0.5, 1.0]))


def test_no_private_training() -> None:
    privacy = Privacy(noise_multiplier=1.0, l2_norm_clip=1.0, microbatches=1, delta=1e-5, target_epsilon=1.0)
    with pytest.raises(ModelError, match=r"the framework numpy cannot train privately\. Set framework to keras"):
        built_model(make_federation(framework="numpy"), LINEAR, privacy)


def test_it_reads_arrays_alone() -> None:
    with pytest.raises(DataError, match=r"the data of a is int, not \(x, y\) or"):
        NumpyFramework().read_part(3, "a")
