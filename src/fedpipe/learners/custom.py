"""Learners of any framework: a user's own functions on named arrays, for `framework: custom`.

fedpipe trains nothing here. It gives the functions their arguments, and checks what they return.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np

from fedpipe import weights as files
from fedpipe.data.examples import Examples
from fedpipe.data.ports import TEXT, cast, fed, made_up
from fedpipe.data.schema import Schema, columns_by_input
from fedpipe.data.trees import Tree, leaves, mapped
from fedpipe.errors import ExportError, MissingExtraError, ModelError, WeightsError, one_line
from fedpipe.federation.training import Privacy, Training
from fedpipe.learners.declared import metric_names, ports_of, tasks_of
from fedpipe.learners.framework import (
    Arrays,
    Correction,
    Fitted,
    Measurement,
    Outline,
    Predict,
    TrainingLimits,
    check_fitting,
)  # fmt: skip
from fedpipe.learners.functions import Function, checked_metrics, named_arrays
from fedpipe.learners.parts import LabelShape, Part, arrays_of, as_examples
from fedpipe.learners.user_code import called, find_function, load_code
from fedpipe.rounds.plan import Port
from fedpipe.rounds.tallies import Head
from fedpipe.weights import Array

_FILE = "model.py"
_TRIED = 3
"""Made-up examples that show the outputs."""


class CustomFramework:
    """See `Framework`. A user's function or class returns an object with the functions of a learner."""

    def check(self, training: Training) -> None:
        """Do nothing: the arguments are checked against the functions, once there are some."""

    def build(
        self, code: bytes, digest: str, function: str, training: Training, privacy: Privacy | None = None,
        inputs: tuple[Port, ...] = (), schema: Schema | None = None,
    ) -> CustomModel:  # fmt: skip
        """See `Framework.build`."""
        if privacy:
            raise ModelError("a custom learner cannot train privately", remedy="Set framework to keras.")
        return cached_model(code, digest, function, inputs, schema)

    def read_part(self, value: Any, name: str) -> Part:
        """Return (x, y) or (x, y, weights) as a part. Raises DataError."""
        return arrays_of(value, name)


@functools.lru_cache(maxsize=16)
def cached_model(
    code: bytes, digest: str, function: str, inputs: tuple[Port, ...] = (), schema: Schema | None = None
) -> CustomModel:
    """Return the user's learner; the file is imported once in a process. Raises ModelError."""
    module = load_code(code, digest)
    found = called(find_function(module, function), (lambda: schema) if schema else None)
    return CustomModel(found, function, module, inputs, schema)


class CustomModel:
    """See `Model`. It calls the user's functions with copies, so they may change what they get.

    Args:
        learner: the object with the functions; a mapping of functions counts too.
        function: the name of what made it, for messages.
        module: the user's file.
        inputs: arrays of the features, for a learner that does not name its inputs.
        schema: of the federation's table, if it has one.

    Raises:
        ModelError: a function or a constant is missing, or is something else.
    """

    def __init__(
        self, learner: Any, function: str, module: ModuleType, inputs: tuple[Port, ...] = (),
        schema: Schema | None = None,
    ) -> None:  # fmt: skip
        self.module = module
        given = learner.get if isinstance(learner, Mapping) else functools.partial(_attribute, learner)
        take = functools.partial(Function.of, given, f"{function}()")
        self._initial = take("initial_weights", ("seed",))
        self._train = take("train", ("weights", "x", "y"), _OFFERED)
        self._evaluate = take("evaluate", ("weights", "x", "y"), ("batch_size", "sample_weight"))
        self._predict = take("predict", ("weights", "x"))
        self._convert = None if given("convert") is None else take("convert", ("weights", "opset"))
        self._metrics = metric_names(given("metrics"))
        self._tasks = tasks_of(given("task"))
        self._ports = ports_of(given("inputs")) or (_table_ports(schema) if schema else inputs)
        self._layout: dict[str, tuple[int, ...]] = {}

    @functools.cached_property
    def outline(self) -> Outline:
        """See `Model.outline`. The outputs are those of `predict` for a few made-up examples."""
        if not self._ports:
            raise ModelError(
                "it is unknown which features the learner takes: the learners read data of their own", where=_FILE,
                remedy='Name them in the learner: inputs = [("features", "float32", (None, 64))].',
            )  # fmt: skip
        outputs = self.predictor(self.initial_weights(0))(made_up(self._ports, _TRIED, 0))
        given = tuple(
            Port(f"output_{position}" if position else "output", value.dtype.name, (None, *value.shape[1:]))
            for position, value in enumerate(outputs)
        )
        count = sum(math.prod(shape) for shape in self._shapes().values())
        shapes = ", ".join(str(port.shape) for port in self._ports)
        return Outline(self._ports, given, f"{count:,} parameters, input {shapes}, learner of model.py")

    @property
    def heads(self) -> tuple[Head, ...]:
        """See `Model.heads`. An output without a task has no measures of its own."""
        outputs = self.outline.outputs
        if self._tasks and len(self._tasks) != len(outputs):
            raise ModelError(
                f"there are {len(self._tasks)} tasks for {len(outputs)} outputs of predict()", where=_FILE,
                remedy="Give each output one task, in order.",
            )  # fmt: skip
        names = [port.name if len(outputs) > 1 else "" for port in outputs]
        widths = [int(math.prod(size or 1 for size in port.shape[1:])) for port in outputs]
        tasks = self._tasks or [""] * len(outputs)
        return tuple(Head(name, task, width=width) for name, task, width in zip(names, tasks, widths, strict=True))

    @property
    def trainable(self) -> tuple[str, ...]:
        """All weights: which of them its gradients change, only the learner knows."""
        return tuple(self._shapes())

    def check_training(self, training: Training, *, private: bool) -> None:
        """Check that `train` and `evaluate` take all that the federation file sets. Raises ModelError."""
        wanted = {
            "epochs": ("training.local_epochs", training.local_epochs > 1),
            "steps": ("training.local_steps", training.local_steps > 0),
            "learning_rate": ("training.learning_rate", training.learning_rate > 0),
            "optimizer": ("training.optimizer", training.optimizer == "keep"),
        }
        for name, (path, is_set) in wanted.items():
            if is_set and not self._train.takes(name):
                raise ModelError(
                    f"train() has no parameter {name!r}, so the setting would have no effect", where=path,
                    remedy=f"Remove the setting, or add the keyword {name} to train() of model.py.",
                )  # fmt: skip
        self._train.check_more(training.fit, "training.fit")
        self._evaluate.check_more(training.evaluate, "training.evaluate")

    def check_examples(self, x: Tree, y: Tree, weight: Array | None = None) -> set[str]:
        """See `Model.check_examples`."""
        start = self.initial_weights(0)
        if self._ports:
            fed(self._ports, x)
        for function in (self._train, self._evaluate):
            if weight is not None and not function.takes("sample_weight"):
                raise ModelError(
                    f"the examples have weights, but {function.name}() has no parameter 'sample_weight'", where=_FILE,
                    remedy="Add it, or leave the weights out.",
                )  # fmt: skip
        self._measured(start, Examples(x, y, weight), Training(rounds=1, batch_size=1))
        self.predictor(start)(x)
        _ = self.heads  # the tasks fit the outputs
        return set(self._metrics)

    def initial_weights(self, seed: int) -> Arrays:
        """See `Model.initial_weights`."""
        found = named_arrays(self._initial(seed), "initial_weights()")
        again = named_arrays(self._initial(seed), "initial_weights()")
        try:
            same = files.digest_of(found) == files.digest_of(again)
        except WeightsError as error:
            raise ModelError(f"initial_weights() returns weights that cannot be exchanged, because {error.what}",
                             where=_FILE, remedy="Use arrays of numbers, with short names.") from error  # fmt: skip
        if not same:
            raise ModelError(
                f"initial_weights({seed}) returns other weights when it is called again", where=_FILE,
                remedy="Draw them from a generator that is seeded by its argument.",
            )  # fmt: skip
        return found

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        if not self._layout:
            self._layout = {name: value.shape for name, value in self.initial_weights(0).items()}
        return self._layout

    def train(
        self, weights: Arrays, part: Part, training: Training, *, seed: int, seconds: float, optimizer: Arrays | None,
        correction: Correction | None = None,
    ) -> Fitted:  # fmt: skip
        """See `Model.train`. Metrics that the function does not return are those of `evaluate` on the same part."""
        if correction is not None:  # reading the federation file refuses it
            raise ModelError("a custom learner computes its own gradients", where="training.method")
        check_fitting(weights, self._shapes(), "weights")
        examples, limits = as_examples(part), TrainingLimits(seconds)
        offered = {
            "epochs": training.local_epochs, "steps": training.local_steps, "batch_size": training.batch_size,
            "learning_rate": training.learning_rate or None, "seed": seed,
            "seconds": max(0.0, seconds),
            "optimizer": None if optimizer is None else _copied(optimizer),
            "sample_weight": examples.weight,
        }  # fmt: skip
        found = self._train(_copied(weights), *_copies(examples), **offered, **training.fit)
        limits.step()
        trained, metrics, state = _parts_of(found)
        fitted = _like(weights, named_arrays(trained, "train()"), "train()")
        epochs = [checked_metrics(each, "train()") for each in metrics]
        epochs = epochs or [self._measured(fitted, examples, training)]
        for number, each in enumerate(epochs, 1):
            limits.epoch(number, each.get("loss", 0.0))
        kept = None
        if training.optimizer == "keep":
            if state is None:
                raise ModelError(
                    "train() returns no optimizer state, which `training.optimizer: keep` carries over", where=_FILE,
                    remedy="Return (weights, metrics, state), or remove the setting.",
                )  # fmt: skip
            kept = named_arrays(state, "train()")
        batches = -(-examples.count // training.batch_size)
        return Fitted(fitted, training.local_steps or training.local_epochs * batches, epochs, kept)

    def _measured(self, weights: Arrays, examples: Examples, training: Training) -> dict[str, float]:
        offered = {"batch_size": training.batch_size, "sample_weight": examples.weight}
        found = self._evaluate(_copied(weights), *_copies(examples), **offered, **training.evaluate)
        return checked_metrics(found, "evaluate()", self._metrics)

    def evaluate(self, weights: Arrays, part: Part, training: Training, batches: int = 0) -> Measurement:
        """See `Model.evaluate`. The function's metrics are means over examples, so their sums add up."""
        check_fitting(weights, self._shapes(), "weights")
        examples = as_examples(part)
        if batches:
            examples = examples.rows(slice(batches * training.batch_size))
        metrics, count = self._measured(weights, examples, training), examples.count
        return Measurement(metrics, tuple((metrics[name] * count, float(count)) for name in self._metrics))

    def metrics_of(self, states: Sequence[Array], label_shape: LabelShape) -> dict[str, float]:
        """See `Model.metrics_of`."""
        return {name: float(total) / float(count) for name, (total, count) in zip(self._metrics, states, strict=True)}

    def predictor(self, weights: Arrays) -> Predict:
        """See `Model.predictor`."""
        if self._layout:
            check_fitting(weights, self._layout, "weights")

        def predict(x: Tree) -> list[Array]:
            taken = x
            if self._ports:
                arrays = cast(self._ports, fed(self._ports, x))
                taken = arrays if isinstance(x, dict) and len(arrays) > 1 else next(iter(arrays.values()))
            found = self._predict(_copied(weights), mapped(np.copy, taken))
            outputs = list(found) if isinstance(found, tuple | list) else [found]
            return [_output(value, len(next(leaves(x))[1])) for value in outputs]

        return predict

    def convert(self, weights: Arrays, opset: int, metadata: Mapping[str, str] | None = None) -> bytes:
        """See `Model.convert`. The function returns an ONNX model, or its bytes."""
        if self._convert is None:
            raise ExportError(
                "the learner has no function convert(weights, opset), so it cannot be exported to ONNX", where=_FILE,
                remedy="Add the function, or set `export: none`.",
            )  # fmt: skip
        try:
            import onnx
        except ImportError as error:
            raise MissingExtraError("onnx", "onnx") from error
        check_fitting(weights, self._shapes(), "weights")
        data, again = (_bytes_of(self._convert(_copied(weights), opset)) for _ in range(2))
        try:
            model = onnx.load_from_string(data)
        except Exception as error:  # of protobuf, by which ONNX is read
            raise ModelError(
                f"convert() does not return a valid ONNX model, because {one_line(error, 200)}", where=_FILE
            ) from error
        newest = max((each.version for each in model.opset_import if each.domain in ("", "ai.onnx")), default=0)
        if newest > opset:
            raise ModelError(
                f"convert() returns a model of opset {newest}, but export.opset is {opset}", where=_FILE,
                remedy="Give the converter the opset that convert() gets.",
            )  # fmt: skip
        if data != again:
            raise ModelError(
                "convert() returns other bytes when it is called again", where=_FILE,
                remedy="Give the converter fixed names, such as that of the graph.",
            )  # fmt: skip
        kept = [entry for entry in model.metadata_props if entry.key not in (metadata or {})]
        del model.metadata_props[:]
        model.metadata_props.extend(kept)
        for name, value in sorted((metadata or {}).items()):
            model.metadata_props.add(key=name, value=value)
        return bytes(model.SerializeToString(deterministic=True))


_OFFERED = ("epochs", "steps", "batch_size", "learning_rate", "seed", "seconds", "optimizer", "sample_weight")


def _bytes_of(found: Any) -> bytes:
    """Return the bytes of an ONNX model. Raises ModelError."""
    data = found.SerializeToString(deterministic=True) if hasattr(found, "SerializeToString") else found
    if not isinstance(data, bytes):
        raise ModelError(f"convert() returns {type(data).__name__}, not an ONNX model or its bytes", where=_FILE)
    return data


def _attribute(learner: Any, name: str) -> Any:
    return getattr(learner, name, None)


def _copied(arrays: Mapping[str, Array]) -> Arrays:
    return {name: np.array(value) for name, value in arrays.items()}


def _copies(examples: Examples) -> tuple[Any, Any]:
    return mapped(np.copy, examples.x), mapped(np.copy, examples.y)


def _parts_of(found: Any) -> tuple[Any, list[Any], Any]:
    """Return the weights, the metrics of each epoch and the optimizer's state in the result of `train`."""
    if not isinstance(found, tuple):
        return found, [], None
    if len(found) not in (2, 3):
        raise ModelError(
            f"train() returns {len(found)} values", where=_FILE,
            remedy="Return weights, (weights, metrics) or (weights, metrics, optimizer state).",
        )  # fmt: skip
    metrics = found[1]
    if metrics is None:
        metrics = []
    return found[0], list(metrics) if isinstance(metrics, list | tuple) else [metrics], found[2] if found[2:] else None


def _like(base: Arrays, found: Arrays, where: str) -> Arrays:
    """Return weights with the dtypes of those they began with. Raises ModelError if names or shapes differ."""
    check_fitting(found, {name: value.shape for name, value in base.items()}, f"weights of {where}", _FILE)
    for name, value in base.items():
        if not np.can_cast(found[name].dtype, value.dtype, "same_kind"):
            raise ModelError(
                f"{where} returns the weights {name!r} as {found[name].dtype}, but they began as {value.dtype}",
                where=_FILE, remedy="Return each array in the dtype of initial_weights().",
            )  # fmt: skip
    return {name: found[name].astype(value.dtype) for name, value in base.items()}


def _output(value: Any, count: int) -> Array:
    """Return an output of `predict` for so many examples as an array. Raises ModelError."""
    found = named_arrays({"output": value}, "predict()")["output"]
    if found.ndim < 1 or len(found) != count:
        raise ModelError(
            f"predict() returns an array of shape {found.shape} for {count} examples", where=_FILE,
            remedy="Return one row for each example.",
        )  # fmt: skip
    return found


def _table_ports(schema: Schema) -> tuple[Port, ...]:
    found = columns_by_input(schema.columns).items()
    return tuple(Port(name, "float32" if name == "numbers" else TEXT, (None, len(own))) for name, own in found)
