"""What a framework is: one object that builds the user's model, which trains and measures named arrays."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any, NamedTuple, Protocol

from fedpipe.errors import DroppedError
from fedpipe.federation.training import Privacy, Training
from fedpipe.learners.parts import Part
from fedpipe.weights import Array

Arrays = dict[str, Array]
Shape = tuple[int | None, ...]


class Outline(NamedTuple):
    """What a model takes and gives.

    Args:
        dtype: of its first input.
        input: shape of its first input, with the batch in front; None where a size is free.
        output: the same of its first output.
        text: the model in a few words, for people.
    """

    dtype: str
    input: Shape
    output: Shape
    text: str


class Fitted(NamedTuple):
    """What a training made: new weights, the steps it took, the metrics of each epoch, the optimizer's state.

    A private training keeps the metrics of its epochs to itself: there are none.
    """

    weights: Arrays
    steps: int
    epochs: list[dict[str, float]]
    optimizer: Arrays | None = None


class Measurement(NamedTuple):
    """Loss and metrics of a model, and the sums they were divided from, which add up over learners."""

    metrics: dict[str, float]
    states: tuple[tuple[float, ...], ...]


Predict = Callable[[Array], list[Array]]
"""All outputs for a batch of features (examples, ...), each (examples, ...)."""


class Model(Protocol):
    """A user's model. It may keep state, but every act begins with the weights that it is given and changes none."""

    @property
    def module(self) -> ModuleType:
        """The user's file, in which `load` may read a learner's own data."""

    @property
    def outline(self) -> Outline:
        """What the model takes and gives."""

    def check_training(self, training: Training, *, private: bool) -> None:
        """Check that the model can be trained as the federation file says. Raises ModelError."""

    def check_examples(self, x: Array, y: Array) -> set[str]:
        """Try the model on a few examples that hold the smallest and the largest label.

        Args:
            x: features, (examples, ...).
            y: labels, (examples, ...).

        Returns:
            Names of the measured metrics, `loss` among them.

        Raises:
            ModelError: shapes or labels do not fit.
        """

    def initial_weights(self, seed: int) -> Arrays:
        """Return fresh weights; equal seeds give equal bytes."""

    def train(
        self, weights: Arrays, part: Part, training: Training, *, seed: int, seconds: float, optimizer: Arrays | None
    ) -> Fitted:
        """Train on a part for the epochs or steps of a round.

        Args:
            weights: to begin with.
            part: at least a batch of examples.
            training: epochs or steps, size of a batch, learning rate.
            seed: of shuffling and dropout; equal seeds give equal bytes.
            seconds: after which the training is too late.
            optimizer: the state that an earlier training left; None for a fresh one.

        Raises:
            DroppedError: the training is late, or its loss is not finite.
            ModelError: weights, optimizer state or examples do not fit the model.
        """

    def evaluate(self, weights: Arrays, part: Part, training: Training, batches: int = 0) -> Measurement:
        """Measure weights on a part, or on its first batches when a number of them is given."""

    def metrics_of(self, states: Sequence[Array], label_shape: tuple[int, ...]) -> dict[str, float]:
        """Return the metrics of sums, such as the states of several learners' measurements that were added.

        Args:
            states: sums, as `Measurement.states` has them.
            label_shape: the shape of one label.
        """

    def predictor(self, weights: Arrays) -> Predict:
        """Return the function that these weights make of the model. It may be used until the model's next act."""

    def convert(self, weights: Arrays, opset: int, metadata: Mapping[str, str] | None = None) -> bytes:
        """Return the model with these weights as ONNX: equal weights give equal bytes.

        Args:
            weights: of the model.
            opset: the ONNX operator set.
            metadata: written into the model.

        Raises:
            ExportError: this framework has no ONNX form.
            MissingExtraError: the converter is not installed.
        """


class Framework(Protocol):
    """An adapter: all that fedpipe needs of Keras, NumPy, or another framework."""

    def check(self, training: Training) -> None:
        """Check arguments that only the framework understands, before a model is built. Raises ModelError."""

    def build(
        self, code: bytes, digest: str, function: str, training: Training, privacy: Privacy | None = None
    ) -> Model:
        """Build the model of a user's file, once in a process.

        Args:
            code: the file.
            digest: what its bytes must have.
            function: its function that makes the model.
            training: settings that the model is built with, such as its precision.
            privacy: makes a model that trains with differential privacy.

        Raises:
            ModelError: the model cannot be built; the message says why.
            MissingExtraError: the framework is not installed.
        """

    def read_part(self, value: Any, name: str) -> Part:
        """Return what `load` of the user's file returned as a part: arrays, or a dataset of the framework's own kind.

        Args:
            value: it.
            name: the learner, for messages.

        Raises:
            DataError: it cannot be used.
        """


class Limits:
    """Counts the steps of a training, and drops a learner that is late or whose loss is not finite.

    Args:
        seconds: after which the training is too late.
    """

    def __init__(self, seconds: float) -> None:
        self.steps = 0
        self._seconds, self._end = seconds, time.monotonic() + seconds

    def step(self) -> None:
        """Count a step. Raises DroppedError when it came too late."""
        self.steps += 1
        if time.monotonic() > self._end:
            raise DroppedError(f"late: training took longer than the deadline of {self._seconds:g} s")

    def epoch(self, number: int, loss: float) -> None:
        """Check the loss of an epoch, from 1. Raises DroppedError when it is not finite."""
        if not math.isfinite(loss):
            raise DroppedError(f"the loss is {loss} in epoch {number}: lower the learning rate")


def seed_of(*parts: object) -> int:
    """Return a seed of 31 bits from a run's seed, a learner's name, a round: stable on every machine.

    >>> seed_of(0, "hospital-a", 1) == seed_of(0, "hospital-a", 1)
    True
    """
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:4], "little") >> 1
