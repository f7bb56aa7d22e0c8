"""Builds TFF's optimizers from the federation file, or from the optimizer that model.py compiles."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from msgspec import Struct

from fedpipe.errors import ModelError
from fedpipe.federation.optimizers import Adagrad, Adam, OptimizerSettings, Sgd, Yogi, filled
from fedpipe.frameworks import frameworks
from fedpipe.tff.runtime import federated

_BUILDERS: dict[type[Struct], str] = {
    Sgd: "build_sgdm",
    Adagrad: "build_adagrad",
    Adam: "build_adam",
    Yogi: "build_yogi",
}

_NAMES = {"initial_preconditioner": "initial_preconditioner_value"}


def make_optimizer(settings: OptimizerSettings) -> Any:
    """Returns the `tff.learning.optimizers.Optimizer` for these settings."""
    arguments = {_NAMES.get(name, name): value for name, value in filled(settings, "tff").items()}
    if isinstance(settings, Sgd) and not settings.momentum:
        del arguments["momentum"]  # with it, TFF would keep a velocity
    return getattr(federated().learning.optimizers, _BUILDERS[type(settings)])(**arguments)


def _sgd(config: dict[str, Any], rate: float) -> OptimizerSettings | None:
    return None if config.get("nesterov") else Sgd(learning_rate=rate, momentum=config.get("momentum", 0.0))


def _adam(config: dict[str, Any], rate: float) -> OptimizerSettings | None:
    names = ("beta_1", "beta_2", "epsilon")
    return None if config.get("amsgrad") else Adam(learning_rate=rate, **{name: config[name] for name in names})


def _adagrad(config: dict[str, Any], rate: float) -> OptimizerSettings:
    start = config["initial_accumulator_value"]
    return Adagrad(learning_rate=rate, initial_preconditioner=start, epsilon=config["epsilon"])


_COMPILED: dict[str, Callable[[dict[str, Any], float], OptimizerSettings | None]] = {
    "SGD": _sgd, "Adam": _adam, "Adagrad": _adagrad,
}  # fmt: skip


def compiled_optimizer(compiled: Any, learning_rate: float) -> OptimizerSettings:
    """Returns the settings of a Keras optimizer.

    Args:
        compiled: the optimizer of the compiled model.
        learning_rate: replaces the optimizer's learning rate unless it is 0.

    Raises:
        ModelError: TFF has no such optimizer.
    """
    config, name = compiled.get_config(), type(compiled).__name__
    rate = learning_rate or config["learning_rate"]
    extra = [k for k in ("clipnorm", "clipvalue", "global_clipnorm", "weight_decay") if config.get(k)]
    scheduled = isinstance(rate, dict)
    plain = not scheduled and not extra and not config.get("use_ema")
    settings = _COMPILED[name](config, float(rate)) if name in _COMPILED and plain else None
    if settings is None:
        detail = f" with {', '.join(extra)}" if extra else " with a schedule" if scheduled else ""
        raise ModelError(
            f"TensorFlow Federated has no counterpart of the compiled optimizer, {name}{detail}",
            where="simulation.client_optimizer",
            remedy=f"Name one: {', '.join(str(k.__struct_config__.tag) for k in _BUILDERS)}.",
        )
    return settings


def make_proximal(inner: Any, strength: float) -> Any:
    """Returns a client's optimizer for FedProx, which also pulls weights towards their values at its start.

    .. math:: g' = g + \\mu (w - w_0)

    TFF 0.87's `build_weighted_fed_prox` adds the term with the opposite sign, which pushes clients away from the
    global weights, so it is not used.

    Args:
        inner: the optimizer for the changed gradients.
        strength: the factor mu.

    Source: Li et al., "Federated Optimization in Heterogeneous Networks", 2020, section 3, equation 2.
    """
    tensorflow, _ = frameworks()
    nest = tensorflow.nest.map_structure

    class Proximal(federated().learning.optimizers.Optimizer):  # type: ignore[misc]
        """Keeps as its state that of the inner optimizer, the first weights, and whether there was a step."""

        def initialize(self, specs: Any) -> Any:
            zeros = nest(lambda spec: tensorflow.zeros(spec.shape, spec.dtype), specs)
            return OrderedDict(inner=inner.initialize(specs), start=zeros, has_started=tensorflow.constant(False))

        def next(self, state: Any, weights: Any, gradients: Any) -> Any:
            start = nest(lambda w0, w: tensorflow.where(state["has_started"], w0, w), state["start"], weights)
            pulled = nest(lambda g, w, w0: g + strength * (w - w0), gradients, weights, start)
            after, updated = inner.next(state["inner"], weights, pulled)
            return OrderedDict(inner=after, start=start, has_started=tensorflow.constant(True)), updated

    return Proximal()
