"""Check training arguments and callbacks against Keras's own signatures."""

from __future__ import annotations

import inspect
import types
from collections.abc import Mapping
from typing import Any

from fedpipe.errors import ModelError
from fedpipe.federation.preprocessing import check_functions, parse
from fedpipe.federation.training import Training
from fedpipe.federation.values import as_arguments
from fedpipe.frameworks import frameworks
from fedpipe.suggestion import suggestion

_OWNED = {
    "x": "the shard", "y": "the shard", "batch_size": "training.batch_size", "epochs": "training.local_epochs",
    "steps_per_epoch": "training.local_steps", "initial_epoch": "fedpipe", "callbacks": "training.callbacks",
    "verbose": "fedpipe", "return_dict": "fedpipe", "steps": "fedpipe", "sample_weight": "`load` of model.py",
    "validation_data": "`load` of model.py",
}  # fmt: skip
_MOST_LABELS = 100_000
_OWNED_BY_EVALUATE = {
    **_OWNED, "steps": "algorithm.vote.batches for a vote; a test uses all examples",
    "callbacks": "fedpipe; training.callbacks are for `Model.fit`",
}  # fmt: skip


def check_arguments(training: Training) -> None:
    """Check fit and evaluate arguments and callbacks against Keras's own signatures.

    Raises:
        ModelError: an argument is unknown or set elsewhere; with the valid ones.
    """
    _, keras = frameworks()
    for section, owned in (("fit", _OWNED), ("evaluate", _OWNED_BY_EVALUATE)):
        valid = set(inspect.signature(getattr(keras.Model, section)).parameters) - {"self", "kwargs"}
        _check_names(getattr(training, section), valid, f"training.{section}", owned)
    _check_class_weight(training.fit.get("class_weight"))
    for name, arguments in training.callbacks.items():
        callback = getattr(keras.callbacks, name, None)
        if not (inspect.isclass(callback) and issubclass(callback, keras.callbacks.Callback)):
            names = [n for n in vars(keras.callbacks) if n[0].isupper() and n != "Callback"]
            raise ModelError(f"unknown callback {name!r}", where="training.callbacks", remedy=suggestion(name, names))
        valid = set(inspect.signature(callback.__init__).parameters) - {"self", "kwargs"}
        _check_names(arguments, valid, f"training.callbacks.{name}")
    make_callbacks(training)


def check_preprocessing(training: Training, module: types.ModuleType) -> None:
    """Check that model.py has the functions that `training.preprocessing` names. Raises ModelError."""
    if training.preprocessing:
        check_functions(parse(training.preprocessing), module)


def make_callbacks(training: Training) -> list[Any]:
    """Return the callbacks that the federation file names. Raises ModelError when an argument's value is refused."""
    _, keras = frameworks()
    try:
        return [getattr(keras.callbacks, name)(**as_arguments(given)) for name, given in training.callbacks.items()]
    except (TypeError, ValueError) as error:
        raise ModelError(f"a callback refuses its arguments: {error}", where="training.callbacks") from error


def _check_names(arguments: Mapping[str, Any], valid: set[str], where: str, owned: Mapping[str, str] = _OWNED) -> None:
    for name in arguments:
        if name in valid and name in owned:
            raise ModelError(f"{name!r} cannot be set here", where=where, remedy=f"It is given by {owned[name]}.")
        if name not in valid:
            free = valid - owned.keys()
            remedy = suggestion(name, free) if free else "Remove it: fedpipe gives all arguments itself."
            raise ModelError(f"unknown argument {name!r}", where=where, remedy=remedy)


def _check_class_weight(given: Any) -> None:
    """Check the weights of classes. Raises ModelError."""
    where = "training.fit.class_weight"
    if given is None:
        return
    if not isinstance(given, Mapping):
        raise ModelError("is not a table", where=where, remedy="Write a weight for each label: {0: 1.0, 1: 2.0}.")
    for label, weight in as_arguments(given).items():
        if not isinstance(label, int) or not 0 <= label < _MOST_LABELS:
            raise ModelError(f"{label!r} is not a label", where=where, remedy="Count labels from 0: {0: 1.0, 1: 2.0}.")
        if isinstance(weight, bool) or not isinstance(weight, int | float) or weight < 0:
            raise ModelError(f"{weight!r} is not a weight", where=f"{where}.{label}", remedy="Write a number >= 0.")
