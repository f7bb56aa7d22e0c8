"""Check training arguments and callbacks against Keras's own signatures."""

from __future__ import annotations

import inspect
import types
from collections.abc import Mapping
from typing import Any

from fedpipe.errors import ModelError
from fedpipe.federation.preprocessing import check_functions, parse
from fedpipe.federation.training import Training
from fedpipe.frameworks import frameworks
from fedpipe.learners.user_code import suggestion

_OWNED = {
    "x": "the shard", "y": "the shard", "batch_size": "training.batch_size", "epochs": "training.local_epochs",
    "steps_per_epoch": "training.local_steps", "initial_epoch": "fedpipe", "callbacks": "training.callbacks",
    "verbose": "fedpipe", "return_dict": "fedpipe", "steps": "fedpipe", "sample_weight": "`load` of model.py",
    "validation_data": "`load` of model.py",
}  # fmt: skip


def check_arguments(training: Training) -> None:
    """Check fit and evaluate arguments and callbacks against Keras's own signatures.

    Raises:
        ModelError: an argument is unknown or set elsewhere; with the valid ones.
    """
    _, keras = frameworks()
    for section, method in (("fit", keras.Model.fit), ("evaluate", keras.Model.evaluate)):
        valid = set(inspect.signature(method).parameters) - {"self", "kwargs"}
        _check_names(getattr(training, section), valid, f"training.{section}")
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
        return [getattr(keras.callbacks, name)(**arguments) for name, arguments in training.callbacks.items()]
    except (TypeError, ValueError) as error:
        raise ModelError(f"a callback refuses its arguments: {error}", where="training.callbacks") from error


def _check_names(arguments: Mapping[str, Any], valid: set[str], where: str) -> None:
    for name in arguments:
        if name in valid and name in _OWNED:
            raise ModelError(f"{name!r} cannot be set here", where=where, remedy=f"It is given by {_OWNED[name]}.")
        if name not in valid:
            raise ModelError(f"unknown argument {name!r}", where=where, remedy=suggestion(name, valid - _OWNED.keys()))
