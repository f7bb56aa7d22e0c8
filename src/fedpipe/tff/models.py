"""Builds the model that TFF trains: the user's Keras model, or one made for TFF, with the weight names of Keras 3."""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fedpipe.data.examples import Examples
from fedpipe.data.schema import Schema
from fedpipe.data.trees import Tree
from fedpipe.errors import ModelError
from fedpipe.frameworks import frameworks
from fedpipe.learners.keras.model import built
from fedpipe.learners.keras.private import match_names
from fedpipe.learners.parts import Part
from fedpipe.learners.user_code import described, failed, find_function, load_code
from fedpipe.store.objects import digest_of
from fedpipe.tff.inputs import Entry, spec_of
from fedpipe.tff.runtime import federated

Array = npt.NDArray[Any]


class Code(NamedTuple):
    """Holds the name and the text of a user's file, and the name of the function in it."""

    file: str
    text: str
    function: str

    def load(self) -> Any:
        """Imports the module. Raises ModelError."""
        data = self.text.encode()
        return load_code(data, digest_of(data), self.file)


class FederatedModel:
    """Prepares the user's Keras model for TFF.

    Args:
        code: model.py.
        x: features of a few examples, as the user's model takes them.
        y: labels of these examples, (examples, ...).
        other: a file with a model made for TFF, to train instead; the Keras model still defines the names of weights.
        schema: of the federation's table, if it has one.

    Attributes:
        entry: leads examples into the model.
        keras: the compiled Keras 2 model, for central evaluation.
        build: builds a new TFF model at each call, as TFF requires.

    Raises:
        ModelError: the file is wrong; the error names the file and the line.
    """

    def __init__(self, code: Code, x: Tree, y: Array, other: Code | None = None, schema: Schema | None = None) -> None:
        _, keras = frameworks()
        tff = federated()
        self._function, self._schema = find_function(code.load(), code.function), schema
        self._rebuild()
        self._names = {v.name.removesuffix(":0"): tuple(v.shape) for v in self.keras.weights}
        self._trainable = [v.name.removesuffix(":0") for v in self.keras.trainable_variables]
        self._other = [v.name.removesuffix(":0") for v in self.keras.non_trainable_variables]
        spec = OrderedDict(x=spec_of(self.entry.arrays(x)), y=spec_of(y))
        self._loss, self._metrics = _loss_of(self.keras, keras), _metrics_of(self.keras, self.entry.packed(x), y)
        metrics = [functools.partial(_copy_metric, metric, keras) for metric in self._metrics]

        def build() -> Any:
            if self.entry.body is None:
                model = built(self._function, keras, schema)
                bare = keras.Model(model.inputs, model.outputs)  # TFF does not accept compiled models
            else:
                bare = keras.models.clone_model(self.entry.body)  # the user's function makes lookups, which fail here
            return tff.learning.models.from_keras_model(bare, self._loss, spec, metrics=metrics)

        self.build: Any = build if other is None else _load_tff_model(other, tff)
        if other is not None:
            self._check_forms(self.build, spec)

    def _check_forms(self, model: Any, spec: Mapping[str, Any]) -> None:
        tensorflow, _ = frameworks()
        tff = federated()
        if isinstance(model, tff.learning.models.FunctionalModel):
            (trainable, fixed), input_spec = model.initial_weights, model.input_spec
        else:
            with tensorflow.Graph().as_default():
                built_model = model()
                trainable, fixed = built_model.trainable_variables, built_model.non_trainable_variables
                input_spec = built_model.input_spec
        declared, actual = _format_spec(input_spec), _format_spec(spec)
        if declared != actual:
            raise ModelError(
                f"its input_spec is {declared}, but the batches are {actual}",
                where="simulation.model",
                remedy="Make input_spec an OrderedDict(x=..., y=...) of the batches' dtypes and shapes.",
            )
        for what, variables, names in (("trainable", trainable, self._trainable), ("other", fixed, self._other)):
            theirs, ours = [tuple(v.shape) for v in variables], [self._names[name] for name in names]
            if theirs != ours:
                raise ModelError(
                    f"its {what} variables have shapes {theirs}, but those of the Keras model have {ours}",
                    where="simulation.model",
                    remedy="Use the same shapes in the same order: the Keras model is evaluated and exported.",
                )

    @property
    def specs(self) -> list[tuple[str, tuple[int, ...]]]:
        """Returns dtypes and shapes of the trainable weights."""
        return [("float32", self._names[name]) for name in self._trainable]

    def arrays(self, weights: Mapping[str, Array]) -> tuple[list[Array], list[Array]]:
        """Converts named weights for TFF, to trainable and other weights in order. Raises ModelError."""
        by_name = {ours: weights[theirs] for theirs, ours in self._match(weights).items()}
        return [by_name[name] for name in self._trainable], [by_name[name] for name in self._other]

    def named(self, arrays: tuple[Sequence[Array], Sequence[Array]], like: Mapping[str, Array]) -> dict[str, Array]:
        """Converts weights from TFF to the names and dtypes of `like`. Raises ModelError."""
        by_name = dict(zip((*self._trainable, *self._other), (*arrays[0], *arrays[1]), strict=True))
        return {
            theirs: np.asarray(by_name[ours], like[theirs].dtype).reshape(like[theirs].shape)
            for theirs, ours in self._match(like).items()
        }

    def _match(self, weights: Mapping[str, Array]) -> dict[str, str]:
        return match_names({name: value.shape for name, value in weights.items()}, self._names)

    def _rebuild(self) -> None:
        _, keras = frameworks()
        keras.backend.clear_session()
        self.keras = built(self._function, keras, self._schema)
        self.entry = Entry(self.keras)
        self._bases = type(self.keras).__mro__

    def _repair(self) -> None:
        """Rebuilds the Keras model if Keras 2 has swapped the bases of its class in one of TFF's graphs."""
        if type(self.keras).__mro__ != self._bases:
            self._rebuild()

    def entered(self, part: Part) -> Part:
        """Returns a part with the features that TFF gets. Raises ModelError."""
        self._repair()
        return self.entry.entered(part)

    def evaluate(self, weights: Mapping[str, Array], x: Tree, y: Array, batch: int = 1024) -> dict[str, float]:
        """Returns loss and metrics of these weights on examples, computed in batches."""
        tensorflow, _ = frameworks()
        self._repair()
        model, matched = self.keras, self._match(weights)
        variables = {v.name.removesuffix(":0"): v for v in model.weights}
        for theirs, ours in matched.items():
            variables[ours].assign(weights[theirs])
        for metric in self._metrics:
            metric.reset_state()
        total = 0.0
        for start in range(0, len(y), batch):
            labels = tensorflow.constant(y[start : start + batch])  # losses give tensors the shape of predictions
            rows = Examples(x, y).rows(slice(start, start + batch))
            predicted = model(self.entry.packed(rows.x), training=False)
            total += float(self._loss(labels, predicted)) * len(labels)
            for metric in self._metrics:
                metric.update_state(labels, predicted)
        regularization = sum(float(value) for value in model.losses)
        return {"loss": total / len(y) + regularization, **{m.name: float(m.result()) for m in self._metrics}}


def _format_spec(spec: Any) -> str:
    """Formats dtypes and shapes of one example, such as `x float32[4], y int64[]`."""
    if not isinstance(spec, Mapping):
        return repr(spec)[:200]
    named = {name: part if isinstance(part, Mapping) else {"": part} for name, part in spec.items()}
    return ", ".join(
        f"{f'{name}.{key}' if key else name} {leaf.dtype.name}{leaf.shape.as_list()[1:]}"
        for name, part in named.items()
        for key, leaf in part.items()
    )


def _loss_of(model: Any, keras: Any) -> Any:
    """Returns the compiled loss as a Keras object. Raises ModelError for several outputs."""
    if len(model.outputs) != 1 or isinstance(model.loss, list | tuple | dict):
        remedy = "Use a model with one output and one loss."
        raise ModelError("a model with several outputs or losses cannot be simulated", where="model.py", remedy=remedy)
    loss = keras.losses.get(model.loss)
    if isinstance(loss, keras.losses.Loss):
        return loss

    class Loss(keras.losses.Loss):  # type: ignore[misc]
        """Wraps a loss function in an object; labels get the last dimension of 1 that predictions have, as in fit."""

        def call(self, y_true: Any, y_pred: Any) -> Any:
            if len(y_pred.shape) == len(y_true.shape) + 1 and y_pred.shape[-1] == 1:
                y_true = y_true[..., None]
            return loss(y_true, y_pred)

    return Loss()


def _metrics_of(model: Any, x: Any, y: Array) -> list[Any]:
    """Returns the compiled metrics as objects; Keras resolves `accuracy` once it has labels and predictions."""
    try:
        model.evaluate(x, y, verbose=0)
    except Exception as error:
        raise ModelError(f"the labels or shapes do not fit the model: {described(error)}", where="model.py") from error
    return list(model.compiled_metrics.metrics)


def _copy_metric(metric: Any, keras: Any) -> Any:
    """Copies a metric with new variables; the configuration of a wrapped function lacks the function itself."""
    if type(metric) is keras.metrics.MeanMetricWrapper:
        return type(metric)(fn=metric._fn, name=metric.name, dtype=metric.dtype, **metric._fn_kwargs)
    return type(metric).from_config(metric.get_config())


def _load_tff_model(code: Code, tff: Any) -> Any:
    """Returns the user's FunctionalModel, or the function that builds the user's VariableModel."""
    function: Callable[[], Any] = find_function(code.load(), code.function)
    try:
        returned = function()
    except Exception as error:
        raise failed(code.function, error, where="simulation.model") from error
    if isinstance(returned, tff.learning.models.FunctionalModel):
        return returned
    if isinstance(returned, tff.learning.models.VariableModel):
        return function
    raise ModelError(
        f"{code.function}() returns {type(returned).__name__}, not a TFF model",
        where="simulation.model",
        remedy="Return a tff.learning.models.VariableModel or FunctionalModel.",
    )
