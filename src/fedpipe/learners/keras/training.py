"""Train and measure a compiled Keras model of either version, with the same numbers every time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np

from fedpipe.data.examples import Examples
from fedpipe.data.trees import Tree, only_array, size_in_bytes
from fedpipe.errors import DroppedError, ModelError
from fedpipe.federation.preprocessing import applied, parse
from fedpipe.federation.training import Training
from fedpipe.federation.values import as_arguments
from fedpipe.frameworks import frameworks
from fedpipe.learners.framework import Arrays, Fitted, Measurement, Outline, Predict, TrainingLimits, seed_of
from fedpipe.learners.keras.arguments import check_preprocessing, make_callbacks
from fedpipe.learners.keras.datasets import singles_of
from fedpipe.learners.parts import Part, size_of
from fedpipe.learners.user_code import described
from fedpipe.weights import Array

_LARGE = 64 * 2**20
"""Train parts of more bytes are not copied."""

WIDER = 4
"""Training batches in a batch of an evaluation, which keeps no activations and so needs less memory."""


class CompiledModel(ABC):
    """A compiled Keras model that works on named arrays; see `Model`.

    Attributes:
        keras: the Keras model, whose whole state every method sets.
        module: the user's file.
        private: whether it trains with differential privacy. Then its errors quote no examples, and its loss is not
            used, because it is exact.
    """

    keras: Any
    module: ModuleType
    private = False

    @abstractmethod
    def reset(self, seed: int) -> None:
        """Reset every variable (weights, optimizer, metrics, random states) to its value in the fresh model."""

    @abstractmethod
    def reset_draws(self, seed: int) -> None:
        """Set only the random states of the layers."""

    @abstractmethod
    def weights(self) -> Arrays:
        """Return the weights by name."""

    @abstractmethod
    def set_weights(self, weights: Mapping[str, Array]) -> None:
        """Set weights of the same names and shapes. Raises ModelError."""

    @abstractmethod
    def optimizer_state(self) -> Arrays:
        """Return the optimizer's variables by name."""

    @abstractmethod
    def set_optimizer_state(self, state: Mapping[str, Array]) -> None:
        """Set an optimizer state of the same names and shapes. Raises ModelError."""

    @abstractmethod
    def set_learning_rate(self, rate: float) -> None:
        """Set the optimizer's learning rate. Raises ModelError when it has a schedule."""

    @abstractmethod
    def feed(self, part: Part, training: Training, seed: int) -> dict[str, Any]:
        """Return a train part and its length as arguments of fit."""

    @property
    def outline(self) -> Outline:
        """See `Model.outline`."""
        model, first = self.keras, self.keras.inputs[0]
        text = f"{model.count_params():,} parameters, input {model.input_shape}, loss {model.loss}"
        return Outline(str(first.dtype), tuple(first.shape), tuple(model.outputs[0].shape), text)

    def check_training(self, training: Training, *, private: bool) -> None:
        """See `Model.check_training`."""
        check_preprocessing(training, self.module)
        if private:
            check_private(self.keras)
        if training.learning_rate:
            self.set_learning_rate(training.learning_rate)

    def check_examples(self, x: Tree, y: Tree, weight: Array | None = None) -> set[str]:
        """See `Model.check_examples`."""
        x, y = only_array(x, "features"), only_array(y, "labels")
        expected = tuple(self.keras.input_shape)[1:] if isinstance(self.keras.input_shape, tuple) else None
        if expected is not None and (len(expected) != x.ndim - 1 or any(
            e is not None and e != f for e, f in zip(expected, x.shape[1:], strict=True)
        )):  # fmt: skip
            raise ModelError(
                f"the features have shape {x.shape[1:]}, but the model takes {expected}",
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
                f"the labels range from {y.min():g} to {y.max():g}, but the model has {shape[-1]} outputs",
                remedy="Count labels from 0, and give the last layer one output per label.",
            )

    def initial_weights(self, seed: int) -> Arrays:
        """See `Model.initial_weights`."""
        self.reset(seed)
        return self.weights()

    def train(
        self, weights: Arrays, part: Part, training: Training, *, seed: int, seconds: float, optimizer: Arrays | None
    ) -> Fitted:
        """See `Model.train`."""
        self.reset(seed)
        self.set_weights(weights)
        if optimizer is not None:
            self.set_optimizer_state(optimizer)
        if training.learning_rate:
            self.set_learning_rate(training.learning_rate)
        limits = TrainingLimits(seconds)
        epochs = self._fit(self.feed(part, training, seed), training, limits)
        kept = self.optimizer_state() if training.optimizer == "keep" else None
        return Fitted(self.weights(), limits.steps, [] if self.private else epochs, kept)

    def _fit(self, feed: Mapping[str, Any], training: Training, limits: TrainingLimits) -> list[dict[str, float]]:
        arguments = as_arguments(training.fit)
        if given := arguments.get("class_weight"):  # Keras fails at a label without a weight, but not for arrays
            shape = self.keras.output_shape
            outputs = shape[-1] if isinstance(shape, tuple) and isinstance(shape[-1], int) else 0
            labels = range(max(2, outputs, *(label + 1 for label in given)))
            arguments["class_weight"] = {label: given.get(label, 1.0) for label in labels}
        callbacks = [_limited(limits, check_loss=not self.private), *make_callbacks(training)]
        try:
            history = self.keras.fit(**{**arguments, **feed}, callbacks=callbacks, verbose=0).history
        except DroppedError:
            raise
        except Exception as error:
            # TensorFlow's messages quote examples and labels, which must stay with a private learner.
            detail = type(error).__name__ if self.private else described(error)
            raise DroppedError(f"training failed: {detail}", lasting=not isinstance(error, OSError)) from error
        return [dict(zip(history, values, strict=True)) for values in zip(*history.values(), strict=True)]

    def evaluate(self, weights: Arrays, part: Part, training: Training, batches: int = 0) -> Measurement:
        """See `Model.evaluate`."""
        self.reset_draws(seed_of(training.seed, "evaluate"))
        self.set_weights(weights)
        size = training.batch_size
        data = singles_of(part).take(batches * size or -1).batch(size * WIDER)
        metrics = self.keras.evaluate(data, **training.evaluate, verbose=0, return_dict=True)
        states = tuple(tuple(np.asarray(v, np.float64).reshape(-1).tolist()) for v in self._states())
        return Measurement({name: float(value) for name, value in metrics.items()}, states)

    def _states(self) -> list[Any]:
        """Return all variables of metrics (a mean's total and count, a curve's bins), which add up over learners."""
        return [variable for metric in self.keras.metrics for variable in metric.variables]

    def metrics_of(self, states: Sequence[Array], label_shape: tuple[int, ...]) -> dict[str, float]:
        """See `Model.metrics_of`."""
        if len(self._states()) != len(states):  # Keras creates metric variables at their first use
            shape = [size or 1 for size in self.keras.input_shape[1:]]
            self.keras.evaluate(np.zeros((1, *shape)), np.zeros((1, *label_shape)), verbose=0)
        for variable, total in zip(self._states(), states, strict=True):
            variable.assign(total.reshape(variable.shape).astype(variable.dtype))
        return {name: float(value) for name, value in self.keras.get_metrics_result().items()}

    def predictor(self, weights: Arrays) -> Predict:
        """See `Model.predictor`."""
        self.set_weights(weights)

        def predict(x: Tree) -> list[Array]:
            found = self.keras.predict_on_batch(x)
            return [np.asarray(value) for value in (found if isinstance(found, list | tuple) else [found])]

        return predict

    def convert(self, weights: Arrays, opset: int, metadata: Mapping[str, str] | None = None) -> bytes:
        """See `Model.convert`."""
        from fedpipe.learners.keras.onnx import convert

        self.set_weights(weights)
        return convert(self.keras, opset, metadata)


def check_private(model: Any) -> None:
    """Check that this Keras model can be clipped per example. Raises ModelError."""
    for layer in model._flatten_layers():
        if "BatchNormalization" in type(layer).__name__:
            raise ModelError(
                f"the layer {layer.name!r} mixes the examples of a batch, so that no epsilon holds",
                where="model.py",
                remedy="With privacy, use GroupNormalization or LayerNormalization instead.",
            )


def feed_of(part: Part, training: Training, module: ModuleType, seed: int) -> dict[str, Any]:
    """Return a train part and its length as arguments of fit: the same order of examples for equal seeds.

    Args:
        part: at least a batch of examples.
        training: epochs or steps, size of a batch, preprocessing.
        module: the user's file, whose functions the preprocessing may name.
        seed: of shuffling.
    """
    size, epochs = training.batch_size, training.local_epochs
    if training.preprocessing:
        made = applied(parse(training.preprocessing), singles_of(part), module, batch_size=size, seed=seed)
        return {"x": made, "epochs": 1, "shuffle": False}
    if isinstance(part, Examples) and not training.local_steps and _needs_arrays(part, training.fit):
        frameworks()[0].random.set_seed(seed)  # Keras shuffles arrays by TensorFlow's own seed
        return {"x": part.x, "y": part.y, "batch_size": size, "epochs": epochs}
    dataset = singles_of(part)
    if isinstance(part, Examples) and training.fit.get("shuffle", True):
        dataset = dataset.shuffle(part.count, seed=seed)
    if training.local_steps:
        return {"x": dataset.repeat().batch(size).take(training.local_steps), "epochs": 1, "shuffle": False}
    # One pass over all epochs: with one for each, Keras decides their order, which differs from a simulation's.
    steps = -(-size_of(part) // size)
    return {"x": dataset.batch(size).repeat(epochs), "epochs": epochs, "steps_per_epoch": steps, "shuffle": False}


def _needs_arrays(part: Examples, fit: Mapping[str, Any]) -> bool:
    """Return whether Keras gets the arrays as they are.

    A tf.data.Dataset of slices starts an epoch ten times faster than Keras's adapter for arrays, which matters for
    small shards. But its shuffling holds a copy of the data.
    """
    return "validation_split" in fit or size_in_bytes(part.x) + size_in_bytes(part.y) > _LARGE


def _limited(limits: TrainingLimits, *, check_loss: bool) -> Any:
    """Return a callback that counts steps and drops a late learner, or one whose loss is checked and not finite."""
    _, keras = frameworks()

    class Limited(keras.callbacks.Callback):  # type: ignore[misc,name-defined]
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            limits.step()

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            if check_loss:
                limits.epoch(epoch + 1, (logs or {}).get("loss", 0.0))

    return Limited()
