"""Server optimizers: the step from the aggregate to the next global weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fedpipe.federation.algorithms import OptimizerSettings, Sgd
from fedpipe.federation.names import tag_of

Floats = npt.NDArray[np.float64]


class ServerStep(NamedTuple):
    """An optimizer, and the data that it needs.

    `slots` are the names of its state arrays (each as large as the weights, float64, zero at first). `replaces` is
    true when the aggregate itself is the result, so that neither base nor state is read.
    """

    slots: tuple[str, ...]
    replaces: bool
    step: Callable[[Floats, Floats, dict[str, Floats]], tuple[Floats, dict[str, Floats]]]


def sgd(settings: Sgd) -> ServerStep:
    """Make gradient descent on the server, with momentum.

    .. math:: v' = \\beta v + (\\bar w - w), \\quad w' = w + \\eta v'

    Args:
        settings: learning rate eta and momentum beta of the federation file.

    Source: Reddi et al., "Adaptive Federated Optimization", 2021, Algorithm 1 (SERVEROPT = SGD); momentum as FedAvgM
    in Hsu et al., "Measuring the Effects of Non-Identical Data Distribution", 2019, section 2.
    """
    rate, momentum = settings.learning_rate, settings.momentum

    def step(base: Floats, aggregate: Floats, state: dict[str, Floats]) -> tuple[Floats, dict[str, Floats]]:
        velocity = aggregate - base
        if not momentum:
            return base + rate * velocity, {}
        velocity += momentum * state["velocity"]
        return base + rate * velocity, {"velocity": velocity}

    return ServerStep(slots=("velocity",) if momentum else (), replaces=rate == 1.0 and not momentum, step=step)


SERVER_OPTIMIZERS: dict[str, Callable[..., ServerStep]] = {"sgd": sgd}


def make_server_step(settings: OptimizerSettings) -> ServerStep:
    """Make the optimizer that the federation file names; the others are TFF's."""
    return SERVER_OPTIMIZERS[tag_of(settings)](settings)
