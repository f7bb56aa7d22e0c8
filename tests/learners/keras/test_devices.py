"""Several devices at once: two processors stand in for two GPUs, with the same MirroredStrategy."""

from __future__ import annotations

import numpy as np
import pytest

from fedpipe.engine.workers import Worker, start_server
from tests.learners.keras.replicas import on_one_and_on_two


@pytest.mark.xdist_group("runs")  # one process that has TensorFlow loaded serves all
def test_two_replicas_train_like_one() -> None:
    start_server()
    worker = Worker()
    (one, loss_of_one), (two, loss_of_two) = worker.call(on_one_and_on_two)
    worker.stop()
    assert one.keys() == two.keys()
    for name, value in one.items():
        np.testing.assert_allclose(two[name], value, atol=1e-6)
    assert loss_of_two == pytest.approx(loss_of_one, rel=1e-5)
