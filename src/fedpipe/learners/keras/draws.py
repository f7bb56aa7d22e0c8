"""Random numbers of a Keras model whose parts do not all keep their states in variables of the model."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from types import FunctionType, MethodType
from typing import Any
from weakref import WeakKeyDictionary

from fedpipe.learners.keras.gradients import inner


def is_stock(model: Any, keras: Any) -> bool:
    """Return whether a model is made of Keras's own parts alone, which keep their random states in variables.

    A part of Keras may call a user's function, such as an activation. Functions of TensorFlow itself draw nothing.
    """
    given = [*_flat(model.loss), *_flat(getattr(model._compile_metrics, "_user_metrics", None))]
    optimizers = [model.optimizer, inner(model.optimizer)]
    parts = [*model._flatten_layers(), *optimizers, *(part for part in given if not isinstance(part, str))]
    called = [value for part in parts if hasattr(part, "__dict__") for value in vars(part).values() if callable(value)]
    return all(_is_kerases(part) and not isinstance(part, keras.layers.Lambda) for part in parts) and all(
        _is_kerases(value) or _origin(value).startswith("tensorflow.") for value in called
    )


def _is_kerases(part: Any) -> bool:
    return _origin(part).startswith(("keras.", "fedpipe.learners.keras."))


def _origin(part: Any) -> str:
    """Return the module of a function, or of the class of any other object."""
    return str((part if isinstance(part, FunctionType | MethodType) else type(part)).__module__)


def _flat(given: Any) -> list[Any]:
    """Return the losses or metrics in nested lists and dicts."""
    if isinstance(given, Mapping):
        given = list(given.values())
    if isinstance(given, list | tuple):
        return [part for value in given for part in _flat(value)]
    return [] if given is None else [given]


class Generator:
    """The generator behind `keras.random` without a seed, which belongs to no layer.

    A session of Keras makes one when it first draws. The functions of a model keep that of their trace.
    """

    def __init__(self, keras: Any) -> None:
        self._keras, self._made = keras, keras.random.SeedGenerator(0)

    @property
    def state(self) -> Any:
        """Return the variable."""
        return self._made.state

    def use(self) -> None:
        """Let functions that are traced from now on draw from it; a model that was built since has its own."""
        self._keras.src.backend.common.global_state.set_global_attribute("global_seed_generator", self._made)


def forget_draws(model: Any, name: str) -> bool:
    """Return whether a function of a model draws by TensorFlow's own seed, or has no trace; then it gets a new one.

    A graph keeps the seed of its trace. So another training would repeat the numbers of the first in its process. A
    model that runs eagerly has no traces.

    Args:
        model: the Keras model.
        name: `train_function` or `test_function`.
    """
    function = getattr(model, name, None)
    if function is None or model.run_eagerly:
        return True
    parts = [function]  # Keras's own calls traced ones; a user's may be one
    if isinstance(function, FunctionType | MethodType):
        parts += inspect.getclosurevars(function).nonlocals.values()
    found = any(map(takes_seed, parts))
    if found:
        setattr(model, name, None)
    return found


_KNOWN = WeakKeyDictionary[Any, bool]()
"""Whether a graph draws; it may have many operations."""


def takes_seed(function: Any) -> bool:
    """Return whether a traced function has operations that take TensorFlow's own seed."""
    for traced in getattr(function, "_list_all_concrete_functions", list)():
        if traced.graph not in _KNOWN:
            graph = traced.graph.as_graph_def()
            nodes = [*graph.node, *(node for part in graph.library.function for node in part.node_def)]
            _KNOWN[traced.graph] = any("seed2" in node.attr for node in nodes)
        if _KNOWN[traced.graph]:
            return True
    return False
