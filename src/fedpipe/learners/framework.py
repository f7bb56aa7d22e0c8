"""The interface of a framework: one object that builds the user's model, which trains and measures named arrays."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType, ModuleType
from typing import Any, NamedTuple, Protocol, runtime_checkable

from fedpipe.data.schema import Schema
from fedpipe.data.trees import Tree
from fedpipe.errors import DroppedError, ModelError
from fedpipe.federation.training import Privacy, Training
from fedpipe.learners.parts import LabelShape, Part
from fedpipe.rounds.plan import Port
from fedpipe.rounds.tallies import Head
from fedpipe.weights import Array

Arrays = dict[str, Array]
NONE: Mapping[str, Array] = MappingProxyType({})
"""No arrays."""


class Outline(NamedTuple):
    """The inputs and outputs of a model.

    Args:
        inputs: its inputs, in order.
        outputs: its outputs, in order.
        text: a short description of the model for users.
        precision: the coarsest dtype that it computes with.
        words: text that its lookup tables contain, to make up examples.
    """

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    text: str
    precision: str = "float32"
    words: tuple[str, ...] = ()


class Fitted(NamedTuple):
    """The result of a training: new weights, the number of steps, the metrics of each epoch, the optimizer's state.

    A private training reports no metrics of its epochs. `local` are weights that are not shared.
    """

    weights: Arrays
    steps: int
    epochs: list[dict[str, float]]
    optimizer: Arrays | None = None
    local: Mapping[str, Array] = NONE


class Correction(NamedTuple):
    r"""A change of every gradient before it is clipped and the optimizer uses it.

    .. math:: g \leftarrow g + s (w - a) + o

    Args:
        strength: s, which pulls weights towards the anchors.
        anchors: a, by name; weights without one are not pulled.
        offsets: o, by name; none for the weights that are not named.
    """

    strength: float = 0.0
    anchors: Mapping[str, Array] = NONE
    offsets: Mapping[str, Array] = NONE


class Measurement(NamedTuple):
    """Loss and metrics of a model, and the sums behind them, which add up over learners."""

    metrics: dict[str, float]
    states: tuple[tuple[float, ...], ...]


Predict = Callable[[Tree], list[Array]]
"""Returns all outputs, each (examples, ...), for a batch of features (examples, ...)."""


class Model(Protocol):
    """A user's model. It may keep state, but every method begins from its arguments and does not change them."""

    @property
    def module(self) -> ModuleType:
        """The user's file, in which `load` may read a learner's own data."""

    @property
    def outline(self) -> Outline:
        """The inputs and outputs of the model."""

    @property
    def heads(self) -> tuple[Head, ...]:
        """The purpose of each output, in the order in which `predictor` returns them."""

    @property
    def trainable(self) -> tuple[str, ...]:
        """The names of the weights that gradients change."""

    def check_training(self, training: Training, *, private: bool) -> None:
        """Check that the model can be trained as the federation file says. Raises ModelError."""

    def check_examples(self, x: Tree, y: Tree, weight: Array | None = None) -> set[str]:
        """Try the model on a few examples that hold the smallest and the largest label.

        Args:
            x: features, (examples, ...), or several by name.
            y: labels, (examples, ...), or several by name.
            weight: of the examples, (examples,).

        Returns:
            Names of the measured metrics, `loss` among them.

        Raises:
            ModelError: shapes or labels do not fit.
        """

    def initial_weights(self, seed: int) -> Arrays:
        """Return fresh weights; equal seeds give equal bytes."""

    def train(
        self, weights: Arrays, part: Part, training: Training, *, seed: int, seconds: float, optimizer: Arrays | None,
        correction: Correction | None = None,
    ) -> Fitted:  # fmt: skip
        """Train on a part for the epochs or steps of a round.

        Args:
            weights: to begin with.
            part: at least a batch of examples.
            training: epochs or steps, size of a batch, learning rate.
            seed: of shuffling and dropout; equal seeds give equal bytes.
            seconds: the time after which the training is too late.
            optimizer: the state after an earlier training; None for a fresh one.
            correction: of the gradients; None for plain training.

        Raises:
            DroppedError: the training is late, or its loss is not finite.
            ModelError: weights, optimizer state or examples do not fit the model.
        """

    def evaluate(self, weights: Arrays, part: Part, training: Training, batches: int = 0) -> Measurement:
        """Measure weights on a part, or on its first batches when a number of them is given."""

    def metrics_of(self, states: Sequence[Array], label_shape: LabelShape) -> dict[str, float]:
        """Return the metrics from sums, such as the added states of several learners' measurements.

        Args:
            states: sums, as `Measurement.states` has them.
            label_shape: the shape of one label, or of each of several by name.
        """

    def predictor(self, weights: Arrays) -> Predict:
        """Return the model's function with these weights. It may be used until the next call of another method."""

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


@runtime_checkable
class Preparing(Protocol):
    """A model that can do before the first training what only the first one does, such as tracing."""

    def prepare(self, parts: Mapping[str, Part], training: Training) -> None:
        """Prepare trainings and tests with these parts; no later result depends on it.

        Args:
            parts: of a learner.
            training: the settings of the trainings.
        """


class Framework(Protocol):
    """An adapter with all that fedpipe needs of Keras, NumPy, or another framework."""

    def check(self, training: Training) -> None:
        """Check arguments that only the framework understands, before a model is built. Raises ModelError."""

    def build(
        self, code: bytes, digest: str, function: str, training: Training, privacy: Privacy | None = None,
        inputs: tuple[Port, ...] = (), schema: Schema | None = None,
    ) -> Model:  # fmt: skip
        """Build the model of a user's file, once in a process.

        Args:
            code: the file.
            digest: the required digest of its bytes.
            function: its function that makes the model.
            training: settings that the model is built with, such as its precision.
            privacy: makes a model that trains with differential privacy.
            inputs: arrays of the features, for a model that does not say what it takes.
            schema: of the federation's table, for a function with one parameter; None without a table.

        Raises:
            ModelError: the model cannot be built; with the reason.
            MissingExtraError: the framework is not installed.
        """

    def read_part(self, value: Any, name: str) -> Part:
        """Return the result of `load` in the user's file as a part: arrays, or a dataset of the framework.

        Args:
            value: the result.
            name: the learner, for messages.

        Raises:
            DataError: it cannot be used.
        """


def check_fitting(
    arrays: Mapping[str, Array], shapes: Mapping[str, tuple[int, ...]], what: str, where: str | None = None
) -> None:
    """Check that arrays have the names and shapes of a model.

    Args:
        arrays: by name.
        shapes: by name.
        what: the arrays, for messages, such as `weights`.
        where: their origin, for messages.

    Raises:
        ModelError: they have others.
    """
    different = sorted(arrays.keys() ^ shapes.keys())
    flaw = f"only one of them has {different[0]!r}" if different else ""
    for name in shapes if not different else ():
        if arrays[name].shape != shapes[name]:
            flaw = f"{name!r} is {arrays[name].shape}, not {shapes[name]}"
            break
    if flaw:
        raise ModelError(f"the {what} do not fit the model: {flaw}", where=where)


class TrainingLimits:
    """Drops a learner that is late or whose loss is not finite, and counts the steps of its training.

    Args:
        seconds: the time after which the training is too late.
    """

    def __init__(self, seconds: float) -> None:
        self.steps = 0
        self._seconds, self._end = seconds, time.monotonic() + seconds

    def step(self, count: int = 1) -> None:
        """Count steps. Raises DroppedError when the last one came too late."""
        self.steps += count
        if time.monotonic() > self._end:
            raise DroppedError(f"late: training took longer than the deadline of {self._seconds:g} s")

    def epoch(self, number: int, loss: float) -> None:
        """Check the loss of an epoch, from 1. Raises DroppedError when it is not finite."""
        if not math.isfinite(loss):
            raise DroppedError(f"the loss is {loss} in epoch {number}: lower the learning rate")


def seed_of(*parts: object) -> int:
    """Return a seed of 31 bits from such parts as a run's seed, a learner's name and a round: equal on every machine.

    >>> seed_of(0, "hospital-a", 1) == seed_of(0, "hospital-a", 1)
    True
    """
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:4], "little") >> 1
