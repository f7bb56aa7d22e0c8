"""Linear models in NumPy, trained by stochastic gradient descent: the small framework.

`softmax` is multinomial logistic regression, `squared` linear regression. With features x of n examples, weights W
(features, outputs) and b (outputs,), and labels as rows t (one-hot for `softmax`):

.. math::
    z = x W + b, \\quad p = \\mathrm{softmax}(z), \\quad
    L_{softmax} = -\\tfrac1n \\sum t \\log p, \\quad L_{squared} = \\tfrac{1}{nk} \\sum (z - t)^2
.. math::
    g_W = x^T e + \\lambda W, \\; g_b = 1^T e, \\quad
    e_{softmax} = \\tfrac1n (p - t), \\; e_{squared} = \\tfrac{2}{nk} (z - t)

`learners/descent.py` has the step that these gradients take.

Sums are in float64 and weights in float32: the order in which a BLAS adds almost never changes a byte.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from fedpipe.data.examples import Examples
from fedpipe.data.ports import fed
from fedpipe.data.schema import NUMERIC, Schema
from fedpipe.data.trees import Tree, only_array
from fedpipe.errors import MissingExtraError, ModelError
from fedpipe.federation.methods import COUNTS_STEPS
from fedpipe.federation.names import tag_of
from fedpipe.federation.training import Privacy, Training
from fedpipe.learners.descent import Descent
from fedpipe.learners.framework import (
    Arrays,
    Correction,
    Fitted,
    Measurement,
    Outline,
    Predict,
    TrainingLimits,
    check_fitting,
)
from fedpipe.learners.linear import Linear as Linear
from fedpipe.learners.parts import LabelShape, Part, arrays_of, as_examples
from fedpipe.learners.user_code import called, find_function, load_code
from fedpipe.rounds.plan import Port
from fedpipe.rounds.tallies import Head
from fedpipe.weights import Array

_FILE = "model.py"
_ROWS = 1024
"""The number of examples that are measured at a time."""


class Table(NamedTuple):
    """A table of number-like columns, as `build(table)` gets it.

    A missing number counts as the mean. Columns are normalised before W, by the constants of the table's schema.

    Args:
        width: the number of columns, which are the features of `Linear`.
        classes: names of the classes, in order; empty for a regression, or if the classes have no names.
        mean: of each column.
        deviation: of each column.
    """

    width: int
    classes: tuple[str, ...]
    mean: Array
    deviation: Array

    @classmethod
    def of(cls, schema: Schema) -> Table:
        """Return the table of a schema. Raises ModelError for categories and texts."""
        if odd := next((column for column in schema.columns if column.kind not in NUMERIC), None):
            raise ModelError(
                f"the framework numpy takes columns of numbers, but {odd.name!r} is of the kind {odd.kind}",
                where="data.features",
                remedy="Leave the column out, or set framework to keras.",
            )
        mean, deviation = ([getattr(c, name) for c in schema.columns] for name in ("mean", "deviation"))
        return cls(len(schema.columns), schema.classes, np.array(mean), np.array(deviation))

    def normalised(self, x: Array) -> Array:
        """Return rows of numbers, normalised, and 0 where a number is missing."""
        return np.nan_to_num((x.astype(np.float64) - self.mean) / self.deviation, nan=0.0)


class NumpyFramework:
    """See `Framework`. A user's function returns a `Linear`."""

    def check(self, training: Training) -> None:
        """Do nothing: reading the federation file has checked it for all that NumPy cannot do."""

    def build(
        self, code: bytes, digest: str, function: str, training: Training, privacy: Privacy | None = None,
        inputs: tuple[Port, ...] = (), schema: Schema | None = None,
    ) -> NumpyModel:  # fmt: skip
        """See `Framework.build`."""
        if privacy:
            raise ModelError("the framework numpy cannot train privately", remedy="Set framework to keras.")
        return cached_model(code, digest, function, schema)

    def read_part(self, value: Any, name: str) -> Part:
        """Return (x, y) as a part. Raises DataError."""
        return arrays_of(value, name)


@functools.lru_cache(maxsize=16)
def cached_model(code: bytes, digest: str, function: str, schema: Schema | None = None) -> NumpyModel:
    """Return the built model; the user's file is imported once in a process. Raises ModelError."""
    module = load_code(code, digest)
    table = Table.of(schema) if schema is not None else None
    linear = called(find_function(module, function), (lambda: table) if table else None)
    if not isinstance(linear, Linear):
        raise ModelError(
            f"{function}() returns {type(linear).__name__}, not a Linear",
            where="model.py",
            remedy="Return fedpipe.learners.numpy.Linear(features, outputs), or set framework to keras.",
        )
    linear.check()
    return NumpyModel(linear, module, table)


class NumpyModel:
    """See `Model`. It keeps no state: several threads may use it at once.

    Args:
        linear: the model.
        module: the user's file.
        table: whose columns are normalised; None for arrays.
    """

    def __init__(self, linear: Linear, module: ModuleType, table: Table | None = None) -> None:
        self._linear, self.module, self._table = linear, module, table
        self._shapes = {"kernel": (int(np.prod(linear.shape)), linear.outputs), "bias": (linear.outputs,)}

    @property
    def outline(self) -> Outline:
        """See `Model.outline`."""
        taken = Port("features", "float32", (None, *self._linear.shape))
        given = Port(
            "probabilities" if self._linear.loss == "softmax" else "values", "float32", (None, self._linear.outputs)
        )
        count = sum(int(np.prod(shape)) for shape in self._shapes.values())
        text = f"{count:,} parameters, input {taken.shape}, loss {self._linear.loss}"
        return Outline((taken,), (given,), text)

    @property
    def heads(self) -> tuple[Head, ...]:
        """See `Model.heads`."""
        width = self._linear.outputs
        if self._linear.loss == "squared":
            return (Head("", "regression", width=width),)
        return (Head("", "binary" if width == 2 else "multiclass", width=width),)

    @property
    def trainable(self) -> tuple[str, ...]:
        """See `Model.trainable`."""
        return tuple(self._shapes)

    def check_training(self, training: Training, *, private: bool) -> None:
        """See `Model.check_training`."""
        if isinstance(training.method, COUNTS_STEPS) and self._linear.momentum:
            raise ModelError(
                f"{tag_of(training.method)} is not defined for SGD with momentum", where="training.method",
                remedy="Set momentum to 0 in model.py, or choose fedprox.",
            )  # fmt: skip

    def check_examples(self, x: Tree, y: Tree, weight: Array | None = None) -> set[str]:
        """See `Model.check_examples`."""
        self._rows(Examples(x, y, weight))
        return set(self.metrics_of([np.ones(3)], ()))

    def _rows(self, part: Part) -> tuple[Array, Array]:
        """Return the features as rows, and the labels as the loss takes them. Raises ModelError."""
        examples = as_examples(part)
        x, y = only_array(examples.x, "features"), only_array(examples.y, "labels")
        if examples.weight is not None:
            raise ModelError(
                "a linear model takes no sample weights", where=_FILE, remedy="Leave them out, or use Keras."
            )
        if x.shape[1:] != self._linear.shape:
            raise ModelError(
                f"the features have shape {x.shape[1:]}, but the model takes {self._linear.shape}",
                where=_FILE,
                remedy="Change the input or reshape the data.",
            )
        if x.dtype == object:
            raise ModelError(
                "the features are text, but a linear model takes numbers", where=_FILE,
                remedy="Leave out columns of text, or use Keras with data.features: auto.",
            )  # fmt: skip
        outputs, rows = self._linear.outputs, y.reshape(len(y), -1)
        if rows.shape[1] != (1 if self._linear.loss == "softmax" else outputs):
            raise ModelError(
                f"the labels have shape {y.shape[1:]}, but the model has {outputs} outputs",
                where=_FILE,
                remedy="Give the number of the class instead of a one-hot row, or outputs that fit the labels.",
            )
        if self._linear.loss == "softmax":
            if not np.array_equal(rows, np.floor(rows)):
                raise ModelError("the labels are not whole numbers", where=_FILE, remedy="Use whole numbers from 0.")
            if len(rows) and (rows.min() < 0 or rows.max() >= outputs):
                raise ModelError(
                    f"the labels range from {y.min():g} to {y.max():g}, but the model has {outputs} outputs",
                    where=_FILE,
                    remedy="Count labels from 0, and give the model one output per label.",
                )
            rows = rows[:, 0].astype(np.int64)
        return self._flat(x), rows

    def _flat(self, x: Array) -> Array:
        """Return the features of each example as a row of numbers."""
        flat = x.reshape(len(x), -1)
        return flat if self._table is None else self._table.normalised(flat)

    def initial_weights(self, seed: int) -> Arrays:
        """See `Model.initial_weights`. W is drawn as Glorot and Bengio (2010) do, uniformly; b is 0."""
        shape = self._shapes["kernel"]
        bound = np.sqrt(6 / sum(shape))
        kernel = np.random.default_rng(seed).uniform(-bound, bound, shape).astype(np.float32)
        return {"kernel": kernel, "bias": np.zeros(self._shapes["bias"], np.float32)}

    def train(
        self, weights: Arrays, part: Part, training: Training, *, seed: int, seconds: float, optimizer: Arrays | None,
        correction: Correction | None = None,
    ) -> Fitted:  # fmt: skip
        """See `Model.train`."""
        x, y = self._rows(part)
        state = self._fitting(optimizer, "optimizer state", Descent.shapes(self._shapes, training)) if optimizer else {}
        rate, size = training.learning_rate or self._linear.learning_rate, training.batch_size
        descent = Descent(
            self._fitting(weights, "weights"), state, training, rate=rate, momentum=self._linear.momentum,
            correction=correction,
        )  # fmt: skip
        limits, epochs = TrainingLimits(seconds), []
        with np.errstate(all="ignore"):  # `Limits` checks the loss
            for number, order in enumerate(_orders(len(y), training, seed), 1):
                total = np.zeros(3)
                for start in range(0, len(order), size):
                    batch = order[start : start + size]
                    sums, gradient = self._step(descent.weights, x[batch].astype(np.float64), y[batch])
                    total += sums
                    descent.step(gradient)
                    limits.step()
                epochs.append(self.metrics_of([total], ()))
                limits.epoch(number, epochs[-1]["loss"])
            kept = _rounded(descent.state()) if training.optimizer == "keep" else None
            return Fitted(_rounded(descent.weights), limits.steps, epochs, kept)

    def _fitting(
        self, arrays: Mapping[str, Array], what: str, shapes: Mapping[str, tuple[int, ...]] | None = None
    ) -> dict[str, Array]:
        check_fitting(arrays, shapes or self._shapes, what)
        return {name: value.astype(np.float64) for name, value in arrays.items()}

    def _step(self, w: Mapping[str, Array], x: Array, y: Array) -> tuple[Array, dict[str, Array]]:
        """Return the sums of a batch (see `_sums`), and the gradient of its mean loss."""
        z = x @ w["kernel"] + w["bias"]
        sums = self._sums(z, y)
        if self._linear.loss == "softmax":
            error = _softmax(z)
            error[np.arange(len(y)), y] -= 1
            error /= len(y)
        else:
            error = 2 * (z - y) / y.size
        return sums, {"kernel": x.T @ error + self._linear.l2 * w["kernel"], "bias": error.sum(axis=0)}

    def _sums(self, z: Array, y: Array) -> Array:
        """Return the sums of a batch: its loss, its correctly classified examples, all its examples; (3,)."""
        if self._linear.loss == "squared":
            return np.array([np.mean((z - y) ** 2, axis=1).sum(), 0.0, len(y)])
        top = z.max(axis=1)
        losses = top + np.log(np.exp(z - top[:, None]).sum(axis=1)) - z[np.arange(len(y)), y]
        return np.array([losses.sum(), np.count_nonzero(z.argmax(axis=1) == y), len(y)])

    def evaluate(self, weights: Arrays, part: Part, training: Training, batches: int = 0) -> Measurement:
        """See `Model.evaluate`."""
        x, y = self._rows(part)
        w, count = self._fitting(weights, "weights"), min(len(y), batches * training.batch_size or len(y))
        total = np.zeros(3)
        with np.errstate(all="ignore"):
            for start in range(0, count, _ROWS):
                rows = slice(start, min(start + _ROWS, count))
                total += self._sums(x[rows].astype(np.float64) @ w["kernel"] + w["bias"], y[rows])
        return Measurement(self.metrics_of([total], ()), (tuple(total.tolist()),))

    def metrics_of(self, states: Sequence[Array], label_shape: LabelShape) -> dict[str, float]:
        """See `Model.metrics_of`."""
        (state,) = states
        loss, right, count = (float(value) for value in state)
        return {"loss": loss / count} | ({"accuracy": right / count} if self._linear.loss == "softmax" else {})

    def predictor(self, weights: Arrays) -> Predict:
        """See `Model.predictor`."""
        w = self._fitting(weights, "weights")

        def predict(x: Tree) -> list[Array]:
            rows = fed(self.outline.inputs, x)["features"]
            z = self._flat(rows).astype(np.float64) @ w["kernel"] + w["bias"]
            return [(_softmax(z) if self._linear.loss == "softmax" else z).astype(np.float32)]

        return predict

    def convert(self, weights: Arrays, opset: int, metadata: Mapping[str, str] | None = None) -> bytes:
        """See `Model.convert`."""
        try:
            from onnx import TensorProto, helper, numpy_helper
        except ImportError as error:
            raise MissingExtraError("onnx", "keras") from error
        self._fitting(weights, "weights")
        outputs = ["scores", "probabilities"] if self._linear.loss == "softmax" else ["values"]
        initial = [numpy_helper.from_array(weights[name], name) for name in sorted(weights)]
        nodes = [helper.make_node("Flatten", ["features"], ["rows" if self._table is None else "raw"], axis=1)]
        if self._table is not None:
            initial += [numpy_helper.from_array(self._table.mean, "mean")]
            initial += [numpy_helper.from_array(self._table.deviation, "deviation")]
            nodes += [
                helper.make_node("IsNaN", ["raw"], ["missing"]),
                helper.make_node("Cast", ["raw"], ["wide"], to=TensorProto.DOUBLE),
                helper.make_node("Where", ["missing", "mean", "wide"], ["filled"]),
                helper.make_node("Sub", ["filled", "mean"], ["centred"]),
                helper.make_node("Div", ["centred", "deviation"], ["normalised"]),
                helper.make_node("Cast", ["normalised"], ["rows"], to=TensorProto.FLOAT),
            ]
        nodes += [
            helper.make_node("Gemm", ["rows", "kernel", "bias"], outputs[:1]),
        ]
        nodes += [helper.make_node("Softmax", outputs[:1], outputs[1:], axis=-1)] if outputs[1:] else []
        graph = helper.make_graph(
            nodes,
            "fedpipe",
            [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["batch", *self._linear.shape])],
            [helper.make_tensor_value_info(outputs[-1], TensorProto.FLOAT, ["batch", self._linear.outputs])],
            initial,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
        for name, value in sorted((metadata or {}).items()):
            model.metadata_props.add(key=name, value=value)
        return bytes(model.SerializeToString(deterministic=True))


def _rounded(values: Mapping[str, Array]) -> Arrays:
    return {name: value.astype(np.float32) for name, value in values.items()}


def _softmax(z: Array) -> Array:
    """Return the softmax of each row; (examples, outputs)."""
    shares: Array = np.exp(z - z.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    return shares


def _orders(count: int, training: Training, seed: int) -> Iterator[Array]:
    """Yield the shuffled order of the examples for each epoch; local steps make a single epoch."""
    generator = np.random.default_rng(seed)
    if not training.local_steps:
        yield from (generator.permutation(count) for _ in range(training.local_epochs))
        return
    wanted = training.local_steps * training.batch_size
    passes = [generator.permutation(count) for _ in range(-(-wanted // count))]
    yield np.concatenate(passes)[:wanted]
