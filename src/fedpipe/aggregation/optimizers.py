"""Server optimizers: the step from the aggregate to the next global weights.

The pseudo-gradient is the change that the learners agree on: Delta = aggregate - w.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fedpipe.federation.names import tag_of
from fedpipe.federation.optimizers import Adagrad, Adam, FormulasName, OptimizerSettings, Sgd, Yogi, filled

Floats = npt.NDArray[np.float64]
State = dict[str, Floats]


class ServerStep(NamedTuple):
    """An optimizer, and the data that it needs.

    Args:
        slots: names of its state arrays, each as large as the weights, float64.
        replaces: whether the aggregate itself is the result, so that neither base nor state is read.
        step: takes base, aggregate, state and the number of the step, from 1; returns the next weights and state.
        starts: first values of the slots, where they are not 0.
        counts: whether `step` needs its number, which is then part of the state.
    """

    slots: tuple[str, ...]
    replaces: bool
    step: Callable[[Floats, Floats, State, int], tuple[Floats, State]]
    starts: Mapping[str, float] = MappingProxyType({})
    counts: bool = False


def sgd(settings: Sgd, factor: float = 1.0) -> ServerStep:
    r"""Make gradient descent on the server, with momentum.

    .. math:: v' = \beta v + \Delta, \quad w' = w + \eta v', \quad\text{with Nesterov}\quad
        w' = w + \eta (\beta v' + \Delta)

    Source: Reddi et al., "Adaptive Federated Optimization", 2021, Algorithm 1 (SERVEROPT = SGD); momentum as FedAvgM
    in Hsu et al., "Measuring the Effects of Non-Identical Data Distribution", 2019, section 2; Nesterov's as in
    Sutskever et al., "On the importance of initialization and momentum in deep learning", 2013.

    Args:
        settings: learning rate eta and momentum beta of the federation file.
        factor: of the learning rate in this round.
    """
    rate, momentum = settings.learning_rate * factor, settings.momentum

    def step(base: Floats, aggregate: Floats, state: State, _number: int = 1) -> tuple[Floats, State]:
        change = aggregate - base
        if not momentum:
            return base + rate * change, {}
        velocity = change + momentum * state["velocity"]
        return base + rate * (momentum * velocity + change if settings.nesterov else velocity), {"velocity": velocity}

    return ServerStep(slots=("velocity",) if momentum else (), replaces=rate == 1.0 and not momentum, step=step)


def adagrad(settings: Adagrad, factor: float = 1.0) -> ServerStep:
    r"""Make FedAdagrad.

    .. math:: s' = s + \Delta^2, \quad w' = w + \eta \frac{\Delta}{\sqrt{s'} + \epsilon}

    TFF divides by sqrt(s' + epsilon). The paper keeps a mean of changes too, which its experiments turn off for
    Adagrad, and so is it here.

    Source: Reddi et al. 2021, Algorithm 2.

    Args:
        settings: of the federation file.
        factor: of the learning rate in this round.
    """
    formulas = formulas_of(settings)
    numbers = filled(settings, formulas)
    rate, epsilon = numbers["learning_rate"] * factor, numbers["epsilon"]

    def step(base: Floats, aggregate: Floats, state: State, _number: int = 1) -> tuple[Floats, State]:
        change = aggregate - base
        squares = state["squares"] + np.square(change)
        below = np.sqrt(squares + epsilon) if formulas == "tff" else np.sqrt(squares) + epsilon
        return base + rate * _divided(change, below), {"squares": squares}

    return ServerStep(("squares",), replaces=False, step=step, starts={"squares": numbers["initial_preconditioner"]})


def adam(settings: Adam, factor: float = 1.0) -> ServerStep:
    r"""Make FedAdam.

    .. math:: m' = \beta_1 m + (1 - \beta_1) \Delta, \quad s' = \beta_2 s + (1 - \beta_2) \Delta^2, \quad
        w' = w + \eta \frac{m'}{\sqrt{s'} + \epsilon}

    The first s is epsilon squared. TFF begins with 0 and corrects the bias of step t: its rate is
    eta sqrt(1 - beta_2^t) / (1 - beta_1^t).

    Source: Reddi et al. 2021, Algorithm 2; Kingma and Ba, "Adam", 2015, section 2.

    Args:
        settings: of the federation file.
        factor: of the learning rate in this round.
    """

    def squared(squares: Floats, square: Floats, beta: float) -> Floats:
        return beta * squares + (1 - beta) * square

    return _with_mean(settings, squared, factor)


def yogi(settings: Yogi, factor: float = 1.0) -> ServerStep:
    r"""Make FedYogi.

    .. math:: m' = \beta_1 m + (1 - \beta_1) \Delta, \quad
        s' = s - (1 - \beta_2) \Delta^2 \, \mathrm{sign}(s - \Delta^2), \quad
        w' = w + \eta \frac{m'}{\sqrt{s'} + \epsilon}

    TFF corrects the bias as for Adam. Source: Reddi et al. 2021, Algorithm 2; Zaheer et al., "Adaptive Methods for
    Nonconvex Optimization", 2018.

    Args:
        settings: of the federation file.
        factor: of the learning rate in this round.
    """

    def squared(squares: Floats, square: Floats, beta: float) -> Floats:
        return squares - (1 - beta) * square * np.sign(squares - square)

    return _with_mean(settings, squared, factor)


def formulas_of(settings: Adagrad | Adam | Yogi) -> FormulasName:
    """Return the formulas of a server's optimizer: the paper's by default."""
    return settings.formulas or "paper"


def _with_mean(settings: Adam | Yogi, squared: Callable[[Floats, Floats, float], Floats], factor: float) -> ServerStep:
    """Return the step that Adam and Yogi share: a mean of changes over the root of their squares."""
    formulas = formulas_of(settings)
    numbers, corrects = filled(settings, formulas), formulas == "tff"
    rate, beta_1, beta_2 = numbers["learning_rate"] * factor, numbers["beta_1"], numbers["beta_2"]
    first = numbers.get("initial_preconditioner", 0.0 if corrects else numbers["epsilon"] ** 2)

    def step(base: Floats, aggregate: Floats, state: State, number: int = 1) -> tuple[Floats, State]:
        change = aggregate - base
        mean = beta_1 * state["mean"] + (1 - beta_1) * change
        squares = squared(state["squares"], np.square(change), beta_2)
        corrected = rate * np.sqrt(1 - beta_2**number) / (1 - beta_1**number) if corrects else rate
        moved = base + corrected * _divided(mean, np.sqrt(squares) + numbers["epsilon"])
        return moved, {"mean": mean, "squares": squares}

    return ServerStep(("mean", "squares"), replaces=False, step=step, starts={"squares": first}, counts=corrects)


def _divided(above: Floats, below: Floats) -> Floats:
    """Divide; 0 where both are 0, as where nothing has ever changed and epsilon is 0."""
    return np.divide(above, below, out=np.zeros(above.shape), where=(below != 0) | (above != 0))


SERVER_OPTIMIZERS: dict[str, Callable[..., ServerStep]] = {"sgd": sgd, "adagrad": adagrad, "adam": adam, "yogi": yogi}


def make_server_step(settings: OptimizerSettings, factor: float = 1.0) -> ServerStep:
    """Make the optimizer that the federation file names.

    Args:
        settings: of the federation file.
        factor: of the learning rate in this round.
    """
    return SERVER_OPTIMIZERS[tag_of(settings)](settings, factor)
