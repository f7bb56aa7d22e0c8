"""The user's Keras model: loaded by digest, checked, and driven with the same numbers every time."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fedpipe.errors import ModelError
from fedpipe.frameworks import frameworks
from fedpipe.learners.user_code import described, find_function, load_code

Array = npt.NDArray[Any]


def built(build: Callable[[], Any], keras: Any) -> Any:
    """Calls the user's function. Raises ModelError when it fails, or returns no compiled Keras model."""
    try:
        model = build()
    except Exception as error:
        raise ModelError(f"{build.__name__}() fails: {described(error)}", where="model.py") from error
    if not isinstance(model, keras.Model):
        raise ModelError(
            f"{build.__name__}() returns {type(model).__name__}, not a Keras model",
            where="model.py",
            remedy="Return the model.",
        )
    if not (model.compiled if hasattr(model, "compiled") else model._is_compiled):  # Keras 3, Keras 2
        raise ModelError(
            "the model is not compiled",
            where="model.py",
            remedy="Call model.compile(optimizer, loss, metrics) in it.",
        )
    if not model.built:
        raise ModelError("the model has no input shape", where="model.py", remedy="Begin it with keras.Input(shape).")
    return model


def is_stock(model: Any, keras: Any) -> bool:
    """Whether a model is made of Keras's own parts alone, which keep their random states in variables."""
    parts = [*model._flatten_layers(), *(p for p in (model.loss, *_compiled_metrics(model)) if not isinstance(p, str))]
    return all(
        type(part).__module__.startswith("keras.") and not isinstance(part, keras.layers.Lambda) for part in parts
    )


def _compiled_metrics(model: Any) -> list[Any]:
    given = getattr(model._compile_metrics, "_user_metrics", None) if model._compile_metrics else None
    return list(given) if isinstance(given, list | tuple) else [given] if given is not None else []


def check_private(model: Any) -> None:
    """Checks that per-example clipping means something for this Keras model. Raises ModelError."""
    for layer in model._flatten_layers():
        if "BatchNormalization" in type(layer).__name__:
            raise ModelError(
                f"the layer {layer.name!r} mixes the examples of a batch, so that no epsilon holds",
                where="model.py",
                remedy="With privacy, use GroupNormalization or LayerNormalization instead.",
            )


def check_classes(model: Any, classes: Sequence[str]) -> None:
    """Checks that there are as many names of classes as the first output has columns. Raises ModelError."""
    shape = model.outputs[0].shape
    if classes and (len(shape) != 2 or shape[1] != len(classes)):
        raise ModelError(
            f"{len(classes)} names of classes for outputs of shape {tuple(shape)}",
            where="export.classes",
            remedy="Name each column of the first output once, in order.",
        )


@functools.lru_cache(maxsize=2)
def cached_model(code: bytes, digest: str, function: str, precision: str, seed: int) -> KerasModel:
    """The built model; a worker that runs several steps builds and traces it once."""
    return KerasModel(code, digest, function, precision, seed)


class KerasModel:
    """A compiled Keras model whose whole state can be set, so that every act starts from the same numbers.

    Raises:
        ModelError: there is no such function, it fails, or what it returns is no compiled Keras model.
    """

    def __init__(self, code: bytes, digest: str, function: str, precision: str = "float32", seed: int = 0) -> None:
        tensorflow, keras = frameworks()
        tensorflow.config.experimental.enable_op_determinism()
        self.module = load_code(code, digest)
        build = find_function(self.module, function)
        keras.backend.clear_session()  # automatic names begin at their first number again
        keras.utils.set_random_seed(seed)
        keras.config.set_dtype_policy(precision)
        with _scope(tensorflow):
            self.keras = built(build, keras)
            self.keras.optimizer.build(self.keras.trainable_variables)
        self._draws_by_itself = not is_stock(self.keras, keras)
        self._fresh = [(v, np.array(v.numpy())) for v in (*self.keras.variables, *self.keras.optimizer.variables)]

    def reset(self, seed: int) -> None:
        """Puts every variable (weights, optimizer, metrics, random states) where it was when the model was built.

        TensorFlow's own seed is set only for a model that may draw by it: that drops all compiled kernels, which cost
        more than many a training.
        """
        random.seed(seed)
        np.random.seed(seed)
        if self._draws_by_itself:
            frameworks()[0].random.set_seed(seed)
        for variable, value in self._fresh:
            variable.assign(value)
        self.reset_draws(seed)

    def reset_draws(self, seed: int) -> None:
        """Sets the random states of the layers alone."""
        for position, (variable, _) in enumerate(self._fresh):
            if variable.path.endswith("seed_generator_state"):
                variable.assign(np.array([(seed + position) % 2**32, 0], variable.dtype))

    def weights(self) -> dict[str, Array]:
        """The weights by name: trainable ones, BatchNorm statistics and counters; no random or metric state."""
        return {name: np.array(v.numpy()) for name, v in self._named(self.keras.weights)}

    def set_weights(self, weights: Mapping[str, Array]) -> None:
        """Takes weights of the same names and shapes. Raises ModelError."""
        self._assign(self.keras.weights, weights, "weights")

    def optimizer_state(self) -> dict[str, Array]:
        """The optimizer's variables by name."""
        return {name: np.array(v.numpy()) for name, v in self._named(self.keras.optimizer.variables)}

    def set_optimizer_state(self, state: Mapping[str, Array]) -> None:
        """Takes an optimizer state of the same names and shapes. Raises ModelError."""
        self._assign(self.keras.optimizer.variables, state, "optimizer state")

    def _assign(self, variables: Any, values: Mapping[str, Array], what: str) -> None:
        named = dict(self._named(variables))
        if named.keys() != values.keys():
            missing = sorted(named.keys() ^ values.keys())[0]
            raise ModelError(f"the {what} do not fit the model: {missing!r} is on one side only")
        for name, variable in named.items():
            if tuple(variable.shape) != values[name].shape:
                raise ModelError(
                    f"the {what} do not fit the model: {name!r} is {values[name].shape}, not {tuple(variable.shape)}"
                )
            variable.assign(values[name])

    @staticmethod
    def _named(variables: Any) -> Iterator[tuple[str, Any]]:
        """Variables by path; a path that two share gets the position too."""
        paths = [v.path for v in variables]
        for position, (path, variable) in enumerate(zip(paths, variables, strict=True)):
            yield (path if paths.count(path) == 1 else f"{path}#{position}"), variable

    def set_learning_rate(self, rate: float) -> None:
        """Sets the optimizer's learning rate. Raises ModelError when model.py gave it a schedule."""
        try:
            self.keras.optimizer.learning_rate = rate
        except TypeError as error:
            raise ModelError(
                "the optimizer has a learning rate schedule",
                where="training.learning_rate",
                remedy="Set it to 0.",
            ) from error

    def check_examples(self, x: Array, y: Array) -> set[str]:
        """Tries the model on a few examples that hold the smallest and the largest label.

        Returns:
            What was measured: `loss` and the names of the compiled metrics.

        Raises:
            ModelError: shapes or labels do not fit.
        """
        expected = tuple(self.keras.input_shape)[1:] if isinstance(self.keras.input_shape, tuple) else None
        if expected is not None and (len(expected) != x.ndim - 1 or any(
            e is not None and e != f for e, f in zip(expected, x.shape[1:], strict=True)
        )):  # fmt: skip
            raise ModelError(
                f"the features have shape {x.shape[1:]}, the model takes {expected}",
                remedy="Change the input or reshape the data.",
            )
        flat = y.reshape(len(y), -1)[:, 0]
        picked = sorted({0, int(np.argmin(flat)), int(np.argmax(flat))})
        self._check_classes(y)
        try:
            result = self.keras.evaluate(x[picked], y[picked], verbose=0, return_dict=True)
        except Exception as error:
            raise ModelError(f"the labels or shapes do not fit the model: {described(error)}") from error
        if not np.isfinite(result["loss"]):
            raise ModelError(f"the loss of the first examples is {result['loss']}: the labels do not fit the model")
        return set(result)

    def _check_classes(self, y: Array) -> None:
        loss = self.keras.loss if isinstance(self.keras.loss, str) else getattr(self.keras.loss, "name", "")
        shape = self.keras.output_shape
        if "sparse_categorical" not in str(loss) or not isinstance(shape, tuple):
            return
        if y.min() < 0 or y.max() >= shape[-1]:
            raise ModelError(
                f"the labels go from {y.min():g} to {y.max():g}, the model has {shape[-1]} outputs",
                remedy="Labels count from 0; give the last layer one output per label.",
            )


def _scope(tensorflow: Any) -> Any:
    """All GPUs of the machine when there are several; else the default."""
    if len(tensorflow.config.list_physical_devices("GPU")) > 1:
        return tensorflow.distribute.MirroredStrategy().scope()
    return tensorflow.device(None)
