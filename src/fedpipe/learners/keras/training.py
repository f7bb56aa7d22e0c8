"""Train and measure a compiled Keras model of either version, with the same numbers every time."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np

from fedpipe.data.examples import Examples
from fedpipe.data.trees import Tree
from fedpipe.errors import DroppedError, ModelError
from fedpipe.federation.preprocessing import applied, parse
from fedpipe.federation.training import Training
from fedpipe.federation.values import as_arguments
from fedpipe.frameworks import frameworks
from fedpipe.learners.framework import (
    Arrays,
    Correction,
    Fitted,
    Measurement,
    Outline,
    Predict,
    TrainingLimits,
    seed_of,
)
from fedpipe.learners.keras.arguments import check_preprocessing, make_callbacks
from fedpipe.learners.keras.datasets import singles_of
from fedpipe.learners.keras.gradients import check_plain
from fedpipe.learners.keras.heads import heads_of
from fedpipe.learners.keras.loop import is_large
from fedpipe.learners.keras.structure import Side, label_zeros, scalars, tensors
from fedpipe.learners.parts import LabelShape, Part, size_of
from fedpipe.learners.user_code import described
from fedpipe.rounds.tallies import Head
from fedpipe.weights import Array

WIDER = 4
"""Training batches in a batch of an evaluation, which keeps no activations and so needs less memory."""


class CompiledModel(ABC):
    """A compiled Keras model that works on named arrays; see `Model`.

    Attributes:
        keras: the Keras model, whose whole state every method sets.
        inputs: of the model.
        outputs: of the model.
        module: the user's file.
        private: whether it trains with differential privacy. Then its errors quote no examples, and its loss is not
            used, because it is exact.
    """

    keras: Any
    inputs: Side
    outputs: Side
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

    @property
    @abstractmethod
    def trainable(self) -> tuple[str, ...]:
        """See `Model.trainable`."""

    @abstractmethod
    def correct(self, correction: Correction | None) -> None:
        """Set the correction of the next training's gradients. Raises ModelError."""

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
        model = self.keras
        shapes = [port.shape for port in self.inputs.ports]
        taken = f"input {shapes[0]}" if len(shapes) == 1 else f"inputs {', '.join(self.inputs.names)}"
        text = f"{model.count_params():,} parameters, {taken}, loss {_loss_text(model.loss)}"
        return Outline(self.inputs.ports, self.outputs.ports, text, _precision_of(model), _words_of(model))

    @property
    def heads(self) -> tuple[Head, ...]:
        """See `Model.heads`."""
        return heads_of(self.keras, [(port.name, port.shape) for port in self.outputs.ports])

    def check_training(self, training: Training, *, private: bool) -> None:
        """See `Model.check_training`."""
        check_preprocessing(training, self.module)
        if private:
            check_private(self.keras)
        if training.learning_rate:
            self.set_learning_rate(training.learning_rate)
        check_plain(self.keras.optimizer, training)

    def check_examples(self, x: Tree, y: Tree, weight: Array | None = None) -> set[str]:
        """See `Model.check_examples`."""
        from fedpipe.learners.keras.trial import tried

        self.reset_draws(0)
        return tried(self.keras, self.inputs, self.outputs, Examples(x, y, weight))

    def initial_weights(self, seed: int) -> Arrays:
        """See `Model.initial_weights`."""
        self.reset(seed)
        return self.weights()

    def train(
        self, weights: Arrays, part: Part, training: Training, *, seed: int, seconds: float, optimizer: Arrays | None,
        correction: Correction | None = None,
    ) -> Fitted:  # fmt: skip
        """See `Model.train`."""
        self.reset(seed)
        self.correct(correction)
        self.set_weights(weights)
        if optimizer is not None:
            self.set_optimizer_state(optimizer)
        if training.learning_rate:
            self.set_learning_rate(training.learning_rate)
        limits = TrainingLimits(seconds)
        epochs = self._epochs(part, training, seed, limits)
        kept = self.optimizer_state() if training.optimizer == "keep" else None
        return Fitted(self.weights(), limits.steps, [] if self.private else epochs, kept)

    def _epochs(self, part: Part, training: Training, seed: int, limits: TrainingLimits) -> list[dict[str, float]]:
        """Train, and return the metrics of each epoch."""
        return self._fit(self.feed(part, training, seed), training, limits)

    def _fit(self, feed: Mapping[str, Any], training: Training, limits: TrainingLimits) -> list[dict[str, float]]:
        arguments = as_arguments(training.fit)
        if given := arguments.get("class_weight"):  # Keras fails at a label without a weight, but not for arrays
            shape = self.keras.output_shape
            outputs = shape[-1] if isinstance(shape, tuple) and isinstance(shape[-1], int) else 0
            labels = range(max(2, outputs, *(label + 1 for label in given)))
            arguments["class_weight"] = {label: given.get(label, 1.0) for label in labels}
        callbacks = [_limited(limits, check_loss=not self.private), *make_callbacks(training)]
        with self._reported():
            history = self.keras.fit(**{**arguments, **feed}, callbacks=callbacks, verbose=0).history
        return [scalars(dict(zip(history, values, strict=True))) for values in zip(*history.values(), strict=True)]

    @contextlib.contextmanager
    def _reported(self) -> Iterator[None]:
        """Drop the learner for any error of a training."""
        try:
            yield
        except DroppedError:
            raise
        except Exception as error:
            # TensorFlow's messages quote examples and labels, which must stay with a private learner.
            detail = type(error).__name__ if self.private else described(error)
            raise DroppedError(f"training failed: {detail}", lasting=not isinstance(error, OSError)) from error

    def evaluate(self, weights: Arrays, part: Part, training: Training, batches: int = 0) -> Measurement:
        """See `Model.evaluate`."""
        self.reset_draws(seed_of(training.seed, "evaluate"))
        self.set_weights(weights)
        metrics = self._evaluated(part, training, batches)
        states = tuple(tuple(np.asarray(v, np.float64).reshape(-1).tolist()) for v in self._states())
        return Measurement(scalars(metrics), states)

    def _evaluated(self, part: Part, training: Training, batches: int) -> Mapping[str, Any]:
        """Measure the current weights."""
        size = training.batch_size
        data = singles_of(part, self.inputs, self.outputs).take(batches * size or -1).batch(size * WIDER)
        found = self.keras.evaluate(data, **training.evaluate, verbose=0, return_dict=True)
        return dict(found)

    def _states(self) -> list[Any]:
        """Return all variables of metrics (a mean's total and count, a curve's bins), which add up over learners."""
        return [variable for metric in self.keras.metrics for variable in metric.variables]

    def metrics_of(self, states: Sequence[Array], label_shape: LabelShape) -> dict[str, float]:
        """See `Model.metrics_of`."""
        if len(self._states()) != len(states):
            self._make_metrics(label_shape)
        for variable, total in zip(self._states(), states, strict=True):
            variable.assign(total.reshape(variable.shape).astype(variable.dtype))
        return scalars(self.keras.get_metrics_result())

    def _make_metrics(self, label_shape: LabelShape) -> None:
        """Measure made-up examples, because Keras creates metric variables at their first use."""
        self.reset_draws(0)
        for free in (1, 8, 64, 512):  # a model may need several values along a free dimension
            made = Examples(self.inputs.zeros(1, free), label_zeros(label_shape, 1))
            try:
                self.keras.evaluate(singles_of(made, self.inputs, self.outputs).batch(1), verbose=0)
            except Exception as error:
                if free < 512:
                    continue
                raise ModelError(f"the metrics cannot be computed, because {described(error)}") from error
            return

    def predictor(self, weights: Arrays) -> Predict:
        """See `Model.predictor`."""
        self.set_weights(weights)

        def predict(x: Tree) -> list[Array]:
            found = self.keras.predict_on_batch(tensors(self.inputs.arranged(x), frameworks()[0]))
            return [np.asarray(value) for value in self.outputs.flat(found)]

        return predict

    def convert(self, weights: Arrays, opset: int, metadata: Mapping[str, str] | None = None) -> bytes:
        """See `Model.convert`."""
        from fedpipe.learners.keras.onnx import convert

        self.set_weights(weights)

        def call(named: Mapping[str, Any]) -> list[Any]:
            return self.outputs.flat(self.keras(self.inputs.packed(named), training=False))

        return convert(self.keras, self.inputs.ports, self.outputs.ports, call, opset, metadata)


def check_private(model: Any) -> None:
    """Check that this Keras model can be clipped per example. Raises ModelError."""
    for layer in model._flatten_layers():
        if "BatchNormalization" in type(layer).__name__:
            raise ModelError(
                f"the layer {layer.name!r} mixes the examples of a batch, so that no epsilon holds",
                where="model.py",
                remedy="With privacy, use GroupNormalization or LayerNormalization instead.",
            )


def _loss_text(loss: Any) -> str:
    if isinstance(loss, Mapping):
        return ", ".join(f"{_loss_text(own)} for {name}" for name, own in loss.items())
    if isinstance(loss, list | tuple):
        return ", ".join(map(_loss_text, loss))
    return loss if isinstance(loss, str) else str(getattr(loss, "name", None) or getattr(loss, "__name__", loss))


_COARSE = ("bfloat16", "float16", "float32", "float64")


def _precision_of(model: Any) -> str:
    """Return the coarsest dtype in which a layer computes."""
    found = {getattr(layer, "compute_dtype", None) for layer in model._flatten_layers()}
    return next((dtype for dtype in _COARSE if dtype in found), "float32")


def _words_of(model: Any) -> tuple[str, ...]:
    """Return some of the words that the model looks up."""
    found: dict[str, None] = {}
    for layer in model._flatten_layers():
        if type(layer).__name__ in ("StringLookup", "TextVectorization"):
            found.update(dict.fromkeys(str(word) for word in layer.get_vocabulary()[:50]))
    return tuple(found)


def feed_of(model: CompiledModel, part: Part, training: Training, seed: int) -> dict[str, Any]:
    """Return a train part and its length as arguments of fit: the same order of examples for equal seeds.

    Args:
        model: the model, which settles how several features are arranged.
        part: at least a batch of examples.
        training: epochs or steps, size of a batch, preprocessing.
        seed: of shuffling.
    """
    size, epochs = training.batch_size, training.local_epochs
    if training.preprocessing:
        singles = singles_of(part, model.inputs, model.outputs)
        made = applied(parse(training.preprocessing), singles, model.module, batch_size=size, seed=seed)
        return {"x": made, "epochs": 1, "shuffle": False}
    if isinstance(part, Examples) and not training.local_steps and _needs_arrays(part, training.fit):
        frameworks()[0].random.set_seed(seed)  # Keras shuffles arrays by TensorFlow's own seed
        x, y = tensors(model.inputs.arranged(part.x), frameworks()[0]), model.outputs.labelled(part.y)
        return {"x": x, "y": y, "sample_weight": part.weight, "batch_size": size, "epochs": epochs}
    dataset = singles_of(part, model.inputs, model.outputs)
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
    return "validation_split" in fit or is_large(part)


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
