"""Find out what each output of a compiled Keras model is for, by its loss and its activation."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from fedpipe.rounds.tallies import Head, Task

_REGRESSIONS = {
    "mse", "mae", "mape", "msle", "mean_squared_error", "mean_absolute_error", "mean_absolute_percentage_error",
    "mean_squared_logarithmic_error", "huber", "huber_loss", "log_cosh", "logcosh", "poisson", "cosine_similarity",
}  # fmt: skip
_CLASSES = {
    "categorical_crossentropy", "sparse_categorical_crossentropy", "categorical_focal_crossentropy",
    "categorical_generalized_cross_entropy", "categorical_hinge",
}  # fmt: skip
_LABELS = {"binary_crossentropy", "bce", "binary_focal_crossentropy"}
_MARGINS = {"hinge", "squared_hinge", "categorical_hinge"}


def heads_of(model: Any, outputs: Sequence[tuple[str, Any]] = ()) -> tuple[Head, ...]:
    """Return the outputs of a compiled Keras model of either version, in order.

    Args:
        model: the Keras model.
        outputs: name and shape of each output, for a model that does not say what it returns.
    """
    tensors = list(getattr(model, "outputs", None) or [])
    given = list(outputs) or [
        (name, tensor.shape) for name, tensor in zip(_names(model, len(tensors)), tensors, strict=True)
    ]
    names = [name for name, _ in given]
    activations = [_activation(tensor) for tensor in tensors] or [""] * len(given)
    losses = _by_output(model.loss, names)
    if len(given) == 1:  # a single output has no name, as its labels have none
        names = [""]
    return tuple(
        _head(name, loss, activation, _width(shape))
        for name, loss, activation, (_, shape) in zip(names, losses, activations, given, strict=True)
    )


def _names(model: Any, count: int) -> list[str]:
    """Return the names of the outputs: the keys of a dict of outputs, which Keras sorts, or the outputs' own."""
    struct = getattr(model, "_outputs_struct", None)
    names = sorted(struct) if isinstance(struct, Mapping) else list(getattr(model, "output_names", None) or [])
    return names if len(names) == count else [str(position) for position in range(count)]


def _by_output(losses: Any, names: list[str]) -> list[Any]:
    """Return the loss of each output; losses are given by name, in order, or as one for all."""
    if isinstance(losses, Mapping):
        if len(names) == 1 and len(losses) == 1:
            return list(losses.values())
        return [losses.get(name) for name in names]
    if isinstance(losses, list | tuple):
        return [losses[k] if k < len(losses) else None for k in range(len(names))]
    return [losses] * len(names)


def _width(shape: Any) -> int:
    """Return the columns of an output (examples, columns), or of (examples,); 0 for another shape."""
    sizes = tuple(shape)
    return 1 if len(sizes) == 1 else sizes[1] or 0 if len(sizes) == 2 else 0


def _name_of(loss: Any) -> str:
    """Return a loss's name in snake case, whatever it was given as."""
    loss = getattr(loss, "fn", None) or loss  # a Loss object around a function, whose own name a user may change
    name = loss if isinstance(loss, str) else getattr(loss, "__name__", None) or type(loss).__name__
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", str(name)).lower()


def _from_logits(loss: Any) -> bool:
    arguments = getattr(loss, "_fn_kwargs", None)
    found = getattr(loss, "from_logits", None)
    return bool(arguments.get("from_logits") if isinstance(arguments, dict) and found is None else found)


def _activation(output: Any) -> str:
    """Return the name of the activation that made an output; empty if it is not known."""
    history = getattr(output, "_keras_history", None)
    layer = getattr(history, "operation", None) or getattr(history, "layer", None)
    while (inner := getattr(layer, "layers", None)) and not hasattr(layer, "activation"):
        layer = inner[-1]
    activation = getattr(layer, "activation", None)
    name = getattr(activation, "__name__", "") if activation is not None else type(layer).__name__
    return str(name).lower()


def _head(name: str, loss: Any, activation: str, width: int) -> Head:
    known, logits = _name_of(loss), _from_logits(loss)
    task = _task(known, activation, width)
    if task == "multiclass" and width == 2:
        task = "binary"
    form = "margins" if known in _MARGINS else "logits" if logits and task != "regression" else "probabilities"
    return Head(name, task, form, width)  # type: ignore[arg-type]


def _task(loss: str, activation: str, width: int) -> Task:
    if width and activation == "softmax" and width > 1:
        return "multiclass"
    if width and loss in _LABELS | {"hinge", "squared_hinge"}:
        return "binary" if width == 1 else "multilabel" if loss in _LABELS else ""
    if width > 1 and loss in _CLASSES:
        return "multiclass"
    if loss in _REGRESSIONS:
        return "regression"
    if width and activation == "sigmoid":
        return "binary" if width == 1 else "multilabel"
    return ""
