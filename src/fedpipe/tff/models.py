"""Make the model that TFF trains: the user's Keras model, or one for TFF, with the weights' names from Keras 3."""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fedpipe.errors import ModelError
from fedpipe.frameworks import frameworks
from fedpipe.learners.keras.model import built
from fedpipe.learners.keras.private import match_names
from fedpipe.learners.user_code import described, find_function, load_code
from fedpipe.store.objects import digest_of
from fedpipe.tff.runtime import federated

Array = npt.NDArray[Any]


class Code(NamedTuple):
    """A user's file, its text, and the function in it."""

    file: str
    text: str
    function: str

    def load(self) -> Any:
        """Import the module. Raises ModelError."""
        data = self.text.encode()
        return load_code(data, digest_of(data), self.file)


class FederatedModel:
    """The user's Keras model, for TFF.

    Args:
        code: model.py.
        x: features of a few examples, (examples, ...).
        y: their labels, (examples, ...).
        other: a file with a model for TFF, which is trained instead; the Keras model gives the names of weights.

    Attributes:
        keras: the compiled Keras 2 model, for central evaluation.
        build: makes the TFF model, a new one at each call, as TFF requires.

    Raises:
        ModelError: the mistake in the file, with its line.
    """

    def __init__(self, code: Code, x: Array, y: Array, other: Code | None = None) -> None:
        tensorflow, keras = frameworks()
        tff = federated()
        function = find_function(code.load(), code.function)
        keras.backend.clear_session()
        self.keras, self._function = built(function, keras), function
        self._bases = type(self.keras).__mro__
        self._names = {v.name.removesuffix(":0"): tuple(v.shape) for v in self.keras.weights}
        self._trainable = [v.name.removesuffix(":0") for v in self.keras.trainable_variables]
        self._other = [v.name.removesuffix(":0") for v in self.keras.non_trainable_variables]
        spec = OrderedDict(
            x=tensorflow.TensorSpec((None, *x.shape[1:]), x.dtype),
            y=tensorflow.TensorSpec((None, *y.shape[1:]), y.dtype),
        )
        self._loss, self._metrics = _loss_of(self.keras, keras), _metrics_of(self.keras, x, y)
        metrics = [functools.partial(_another, metric, keras) for metric in self._metrics]

        def build() -> Any:
            model = built(function, keras)
            bare = keras.Model(model.inputs, model.outputs)  # TFF does not take compiled models
            return tff.learning.models.from_keras_model(bare, self._loss, spec, metrics=metrics)

        self.build: Any = build if other is None else _made_for_tff(other, tff)
        if other is not None:
            self._check_forms(self.build, spec)

    def _check_forms(self, model: Any, spec: Mapping[str, Any]) -> None:
        tensorflow, _ = frameworks()
        tff = federated()
        if isinstance(model, tff.learning.models.FunctionalModel):
            (trainable, fixed), wants = model.initial_weights, model.input_spec
        else:
            with tensorflow.Graph().as_default():
                made = model()
                trainable, fixed, wants = made.trainable_variables, made.non_trainable_variables, made.input_spec
        wanted, given = _described(wants), _described(spec)
        if wanted != given:
            raise ModelError(
                f"its input_spec is {wanted}, but the batches are {given}",
                where="simulation.model",
                remedy="Make input_spec an OrderedDict(x=..., y=...) of the batches' dtypes and shapes.",
            )
        for what, found, names in (("trainable", trainable, self._trainable), ("other", fixed, self._other)):
            theirs, ours = [tuple(v.shape) for v in found], [self._names[name] for name in names]
            if theirs != ours:
                raise ModelError(
                    f"its {what} variables have the shapes {theirs}, but those of the Keras model {ours}",
                    where="simulation.model",
                    remedy="Make them equal, in the same order: the Keras model is evaluated and exported.",
                )

    @property
    def specs(self) -> list[tuple[str, tuple[int, ...]]]:
        """The dtypes and shapes of the trainable weights."""
        return [("float32", self._names[name]) for name in self._trainable]

    def arrays(self, weights: Mapping[str, Array]) -> tuple[list[Array], list[Array]]:
        """Return named weights as TFF takes them: trainable and other ones, in order. Raises ModelError."""
        found = {ours: weights[theirs] for theirs, ours in self._matched(weights).items()}
        return [found[name] for name in self._trainable], [found[name] for name in self._other]

    def named(self, arrays: tuple[Sequence[Array], Sequence[Array]], like: Mapping[str, Array]) -> dict[str, Array]:
        """Return TFF's weights by name again, with the names and dtypes of `like`. Raises ModelError."""
        found = dict(zip((*self._trainable, *self._other), (*arrays[0], *arrays[1]), strict=True))
        return {
            theirs: np.asarray(found[ours], like[theirs].dtype).reshape(like[theirs].shape)
            for theirs, ours in self._matched(like).items()
        }

    def _matched(self, weights: Mapping[str, Array]) -> dict[str, str]:
        return match_names({name: value.shape for name, value in weights.items()}, self._names)

    def _usable(self) -> Any:
        """Return the Keras model, rebuilt if its bases have changed: Keras 2 swaps them in TFF's graphs."""
        if type(self.keras).__mro__ != self._bases:
            _, keras = frameworks()
            keras.backend.clear_session()
            self.keras = built(self._function, keras)
            self._bases = type(self.keras).__mro__
        return self.keras

    def evaluate(self, weights: Mapping[str, Array], x: Array, y: Array, batch: int = 1024) -> dict[str, float]:
        """Return loss and metrics of these weights on some examples, `batch` at a time."""
        model, matched = self._usable(), self._matched(weights)
        variables = {v.name.removesuffix(":0"): v for v in model.weights}
        for theirs, ours in matched.items():
            variables[ours].assign(weights[theirs])
        for metric in self._metrics:
            metric.reset_state()
        total = 0.0
        for start in range(0, len(y), batch):
            labels = y[start : start + batch]
            predicted = model(x[start : start + batch], training=False)
            total += float(self._loss(labels, predicted)) * len(labels)
            for metric in self._metrics:
                metric.update_state(labels, predicted)
        regularization = sum(float(value) for value in model.losses)
        return {"loss": total / len(y) + regularization, **{m.name: float(m.result()) for m in self._metrics}}


def _described(spec: Any) -> str:
    """Describe one example, such as `x float32[4], y int64[]`."""
    if not isinstance(spec, Mapping):
        return repr(spec)[:200]
    return ", ".join(f"{name} {part.dtype.name}{part.shape.as_list()[1:]}" for name, part in spec.items())


def _loss_of(model: Any, keras: Any) -> Any:
    """Return the compiled loss as a Keras object. Raises ModelError for several outputs."""
    if len(model.outputs) != 1 or isinstance(model.loss, list | tuple | dict):
        raise ModelError("a model with several outputs or losses cannot be simulated", where="model.py")
    found = keras.losses.get(model.loss)
    if isinstance(found, keras.losses.Loss):
        return found

    class Loss(keras.losses.Loss):  # type: ignore[misc]
        """A loss function as an object."""

        def call(self, y_true: Any, y_pred: Any) -> Any:
            return found(y_true, y_pred)

    return Loss()


def _metrics_of(model: Any, x: Array, y: Array) -> list[Any]:
    """Return the compiled metrics as objects; Keras chooses the kind of `accuracy` from labels and predictions."""
    try:
        model.evaluate(x[:1], y[:1], verbose=0)
    except Exception as error:
        raise ModelError(f"the labels or shapes do not fit the model: {described(error)}", where="model.py") from error
    return list(model.compiled_metrics.metrics)


def _another(metric: Any, keras: Any) -> Any:
    """Copy a metric, with its own variables; the configuration of a wrapped function does not contain the function."""
    if type(metric) is keras.metrics.MeanMetricWrapper:
        return type(metric)(fn=metric._fn, name=metric.name, dtype=metric.dtype, **metric._fn_kwargs)
    return type(metric).from_config(metric.get_config())


def _made_for_tff(code: Code, tff: Any) -> Any:
    """Return the user's FunctionalModel, or the function that makes a VariableModel."""
    function: Callable[[], Any] = find_function(code.load(), code.function)
    try:
        made = function()
    except Exception as error:
        raise ModelError(f"{code.function}() fails: {described(error)}", where="simulation.model") from error
    if isinstance(made, tff.learning.models.FunctionalModel):
        return made
    if isinstance(made, tff.learning.models.VariableModel):
        return function
    raise ModelError(
        f"{code.function}() returns {type(made).__name__}, not a TFF model",
        where="simulation.model",
        remedy="Return a tff.learning.models.VariableModel or FunctionalModel.",
    )
