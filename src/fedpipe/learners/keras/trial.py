"""Try a compiled Keras model on a few examples."""

from __future__ import annotations

from typing import Any

import numpy as np

from fedpipe.data.examples import Examples
from fedpipe.data.ports import fed
from fedpipe.data.trees import leaves
from fedpipe.errors import ModelError
from fedpipe.learners.keras.datasets import singles_of
from fedpipe.learners.keras.structure import Side, scalars
from fedpipe.learners.user_code import described


def tried(model: Any, inputs: Side, outputs: Side, examples: Examples) -> set[str]:
    """Evaluate a model on the examples with the smallest and the largest labels.

    Args:
        model: the Keras model.
        inputs: of the model.
        outputs: of the model.
        examples: a few.

    Returns:
        Names of the measured metrics.

    Raises:
        ModelError: names, shapes, dtypes or labels do not fit.
    """
    fed(inputs.ports, examples.x)
    outputs.labelled(examples.y)
    few = examples.rows(_extremes(examples))
    _check_classes(model, outputs, examples)
    try:
        data = singles_of(few, inputs, outputs).batch(few.count)
        result = model.evaluate(data, verbose=0, return_dict=True)
    except Exception as error:
        raise ModelError(
            f"the labels or shapes do not fit the model: {described(error)}", where="model.py",
            remedy="Make the last layer, the loss and the metrics fit the labels.",
        ) from error  # fmt: skip
    if not np.isfinite(result["loss"]):
        raise ModelError(
            f"the loss of the first examples is {result['loss']}: the labels do not fit the model", where="model.py",
            remedy="Make the last layer and the loss fit the labels, and check that the features are not too large.",
        )  # fmt: skip
    return set(scalars(result))


def _extremes(examples: Examples) -> list[int]:
    """Return the first row, and those with the smallest and the largest label of each output."""
    picked = {0}
    for _, y in leaves(examples.y):
        flat = y.reshape(len(y), -1)[:, 0]
        picked |= {int(np.argmin(flat)), int(np.argmax(flat))}
    return sorted(picked)


def _check_classes(model: Any, outputs: Side, examples: Examples) -> None:
    """Check that labels of sparse losses are classes of the model. Raises ModelError."""
    for port, loss, y in zip(
        outputs.ports, _losses(model.loss, outputs), outputs.flat(outputs.labelled(examples.y)), strict=True
    ):
        if "sparse_categorical" not in _name_of(loss):
            continue
        if y.min() < 0 or (port.shape[-1] is not None and y.max() >= port.shape[-1]):
            named = f" of {port.name!r}" if len(outputs.ports) > 1 else ""
            raise ModelError(
                f"the labels{named} range from {y.min():g} to {y.max():g}, but the model has {port.shape[-1]} outputs",
                where="model.py",
                remedy="Count labels from 0, and give the last layer one output per label.",
            )


def _losses(losses: Any, outputs: Side) -> list[Any]:
    """Return the compiled loss of each output."""
    if isinstance(losses, dict):
        return [losses.get(name) for name in outputs.names]
    if isinstance(losses, list | tuple) and len(losses) == len(outputs.ports):
        return list(losses)
    return [losses] * len(outputs.ports)


def _name_of(loss: Any) -> str:
    return loss if isinstance(loss, str) else str(getattr(loss, "name", None) or getattr(loss, "__name__", ""))
