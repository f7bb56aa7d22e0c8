import numpy as np
import pytest

from fedpipe.aggregation.optimizers import SERVER_OPTIMIZERS, make_server_step
from fedpipe.federation.algorithms import Sgd


def test_the_default_takes_the_aggregate() -> None:
    step = make_server_step(Sgd(learning_rate=1.0))
    assert step.replaces
    assert step.slots == ()
    np.testing.assert_array_equal(step.step(np.array([5.0]), np.array([7.0]), {})[0], [7.0])


def test_momentum_against_keras() -> None:
    """Keras's SGD with the gradient w - mean is an independent form of the same step."""
    keras = pytest.importorskip("keras")
    rate, momentum = 0.3, 0.9
    step = make_server_step(Sgd(learning_rate=rate, momentum=momentum))
    variable = keras.Variable(np.array([1.0, -2.0]), dtype="float64")
    optimizer = keras.optimizers.SGD(rate, momentum=momentum)
    optimizer.build([variable])
    ours, state = np.array([1.0, -2.0]), {"velocity": np.zeros(2)}
    rng = np.random.default_rng(1)
    for _ in range(5):
        aggregate = rng.normal(size=2)
        optimizer.apply([keras.ops.convert_to_tensor(variable.numpy() - aggregate)])
        ours, state = step.step(ours, aggregate, state)
        np.testing.assert_allclose(ours, variable.numpy(), rtol=1e-6)


def test_by_hand() -> None:
    step = make_server_step(Sgd(learning_rate=0.5, momentum=0.5))
    ours, state = step.step(np.array([1.0]), np.array([3.0]), {"velocity": np.array([4.0])})
    assert state["velocity"] == 4.0  # (3 - 1) + 0.5 * 4
    assert ours == 3.0  # 1 + 0.5 * 4


def test_the_table() -> None:
    assert list(SERVER_OPTIMIZERS) == ["sgd"]
