"""Settings of optimizers: of the server's step, and of simulated clients."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from fedpipe.federation.names import Amount, PositiveAmount, Section, Share, tag_of

Rate = Annotated[PositiveAmount, Meta(description="learning rate")]
FormulasName = Literal["paper", "tff"]
Formulas = Annotated[
    FormulasName | None,
    Meta(
        description="`paper`: Reddi et al. 2021; `tff`: TensorFlow Federated's; none: those of the engine, so the "
        "paper's for `fedpipe`"
    ),
]


class Sgd(Section, frozen=True, kw_only=True, tag_field="name", tag="sgd"):
    """Runs gradient descent: v = momentum * v + g, w - learning_rate * v."""

    learning_rate: Rate
    momentum: Annotated[Share, Meta(description="0: none")] = 0.0
    nesterov: Annotated[
        bool, Meta(description="takes the step of the next momentum: w - learning_rate * (momentum * v + g)")
    ] = False


class Adagrad(Section, frozen=True, kw_only=True, tag_field="name", tag="adagrad"):
    """Runs Adagrad (Duchi et al. 2011), as FedAdagrad without a mean of gradients."""

    learning_rate: Rate
    initial_preconditioner: Annotated[
        Amount | None,
        Meta(description="first value of the sum of squared gradients; none: epsilon squared, with TFF's formulas 0.1"),
    ] = None
    epsilon: Annotated[
        Amount | None, Meta(description="keeps the division stable; none: 1e-3, with TFF's formulas 1e-7")
    ] = None
    formulas: Formulas = None


class Adam(Section, frozen=True, kw_only=True, tag_field="name", tag="adam"):
    """Runs Adam (Kingma and Ba 2015), as FedAdam without a correction of the bias, or with TFF's by the step."""

    learning_rate: Rate
    beta_1: Annotated[Share, Meta(description="decay of the mean of gradients")] = 0.9
    beta_2: Annotated[
        Share | None, Meta(description="decay of the mean of their squares; none: 0.99, with TFF's formulas 0.999")
    ] = None
    epsilon: Annotated[
        Amount | None, Meta(description="keeps the division stable; none: 1e-3, with TFF's formulas 1e-7")
    ] = None
    formulas: Formulas = None


class Yogi(Section, frozen=True, kw_only=True, tag_field="name", tag="yogi"):
    """Runs Yogi (Zaheer et al. 2018), as FedYogi without a correction of the bias, or with TFF's by the step."""

    learning_rate: Rate
    beta_1: Annotated[Share, Meta(description="decay of the mean of gradients")] = 0.9
    beta_2: Annotated[
        Share | None, Meta(description="decay of the estimate of their squares; none: 0.99, with TFF's formulas 0.999")
    ] = None
    epsilon: Annotated[Amount, Meta(description="keeps the division stable")] = 1e-3
    initial_preconditioner: Annotated[
        Amount | None,
        Meta(description="first estimate of the squares; none: epsilon squared, with TFF's formulas 1e-6"),
    ] = None
    formulas: Formulas = None


Adaptive = Adagrad | Adam | Yogi
OptimizerSettings = Sgd | Adaptive
_TFF = {
    "adagrad": {"initial_preconditioner": 0.1, "epsilon": 1e-7},
    "adam": {"beta_2": 0.999, "epsilon": 1e-7},
    "yogi": {"beta_2": 0.999, "initial_preconditioner": 1e-6},
}
_PAPER = {"beta_2": 0.99, "epsilon": 1e-3}


def filled(settings: OptimizerSettings, formulas: FormulasName) -> dict[str, float]:
    """Return the numbers of an optimizer, with the defaults of its formulas.

    >>> filled(Adam(learning_rate=0.1), "paper")
    {'learning_rate': 0.1, 'beta_1': 0.9, 'beta_2': 0.99, 'epsilon': 0.001}
    >>> filled(Adagrad(learning_rate=0.1, epsilon=0.5), "paper")["initial_preconditioner"]
    0.25
    """
    defaults = _TFF.get(tag_of(settings), {}) if formulas == "tff" else _PAPER
    given = {field.name: getattr(settings, field.name) for field in msgspec.structs.fields(settings)}
    numbers = {name: value for name, value in given.items() if name not in ("formulas", "nesterov")}
    found = {name: defaults.get(name, 0.0) if value is None else float(value) for name, value in numbers.items()}
    if formulas == "paper" and numbers.get("initial_preconditioner", 0.0) is None:
        found["initial_preconditioner"] = found["epsilon"] ** 2
    return found
