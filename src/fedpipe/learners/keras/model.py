"""The user's Keras 3 model: loaded by digest, built, and reset to the same numbers every time."""

from __future__ import annotations

import functools
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np

from fedpipe.data.examples import Examples
from fedpipe.data.schema import Schema
from fedpipe.errors import ModelError
from fedpipe.federation.training import Training
from fedpipe.frameworks import frameworks
from fedpipe.learners.framework import Arrays, Correction, TrainingLimits
from fedpipe.learners.keras.draws import Generator, forget_draws, is_stock
from fedpipe.learners.keras.gradients import PLAIN, Gradients, prepare
from fedpipe.learners.keras.loop import Loop
from fedpipe.learners.keras.structure import scalars, sides_of, tensors
from fedpipe.learners.keras.table import Table
from fedpipe.learners.keras.training import WIDER, CompiledModel, feed_of
from fedpipe.learners.parts import Part
from fedpipe.learners.user_code import called, find_function, load_code
from fedpipe.rounds.plan import Port
from fedpipe.weights import Array


def built(build: Callable[..., Any], keras: Any, schema: Schema | None = None) -> Any:
    """Call the user's function, with the table if it takes one.

    Raises:
        ModelError: it fails, or does not return a compiled Keras model.
    """
    table = partial(Table, schema, keras, frameworks()[0]) if schema is not None else None
    model = called(build, table)
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
    if isinstance(model, keras.Sequential) and not model.built:
        raise ModelError("the model has no input shape", where="model.py", remedy="Begin it with keras.Input(shape).")
    return model


@functools.lru_cache(maxsize=2)
def cached_model(
    code: bytes,
    digest: str,
    function: str,
    precision: str,
    seed: int,
    inputs: tuple[Port, ...] = (),
    schema: Schema | None = None,
    gradients: Gradients = PLAIN,
) -> KerasModel:
    """Return the built model; a worker that runs several steps builds and traces it once."""
    return KerasModel(code, digest, function, precision, seed, inputs, schema, gradients)


class KerasModel(CompiledModel):
    """A compiled Keras 3 model whose whole state can be set, so that every act starts from the same numbers.

    Args:
        code: the user's file.
        digest: the required digest of its bytes.
        function: its function that makes the model.
        precision: Keras's dtype policy.
        seed: of the initial weights.
        inputs: arrays of the features, for a model that does not say what it takes.
        schema: of the federation's table, if it has one.
        gradients: what the optimizer does with them.

    Raises:
        ModelError: there is no such function, it fails, or it does not return a compiled Keras model.
    """

    def __init__(
        self, code: bytes, digest: str, function: str, precision: str = "float32", seed: int = 0,
        inputs: tuple[Port, ...] = (), schema: Schema | None = None, gradients: Gradients = PLAIN,
    ) -> None:  # fmt: skip
        tensorflow, keras = frameworks()
        tensorflow.config.experimental.enable_op_determinism()
        _begin(keras, seed)  # the file may make a model while it is loaded
        self.module = load_code(code, digest)
        build = self._builder(function)
        _begin(keras, seed)
        keras.config.set_dtype_policy(precision)
        with _scope(tensorflow):
            self.keras = built(build, keras, schema)
            self.inputs, self.outputs = sides_of(self.keras, inputs)
            self._corrections = prepare(self.keras, keras, gradients)
            self.keras.optimizer.build(self.keras.trainable_variables)
            self._generator = None if is_stock(self.keras, keras) else Generator(keras)
        self._seed = seed
        self._loop = Loop(self.keras, seed) if self._generator is None else None
        variables = [*self.keras.variables, *self.keras.optimizer.variables]
        if self._generator is not None:
            variables.append(self._generator.state)
        self._fresh = [(v, np.array(v.numpy())) for v in variables]

    def _builder(self, function: str) -> Callable[..., Any]:
        """Return what makes the model, from the name of the user's function. Raises ModelError."""
        return find_function(self.module, function)

    def reset(self, seed: int) -> None:
        """See `CompiledModel.reset`.

        TensorFlow's own seed is set only for a model that may draw by it. Setting it drops all compiled kernels, which
        often costs more than the training.
        """
        random.seed(seed)
        np.random.seed(seed)
        if self._generator is not None:
            frameworks()[0].random.set_seed(seed)
            self._generator.use()
            forget_draws(self.keras, "train_function")
        for variable, value in self._fresh:
            _set(variable, value)
        self._reset_generators(seed)

    def reset_draws(self, seed: int) -> None:
        """See `CompiledModel.reset_draws`."""
        if self._generator is not None:
            self._generator.use()
            if forget_draws(self.keras, "test_function"):
                frameworks()[0].random.set_seed(seed)
        self._reset_generators(seed)

    def _reset_generators(self, seed: int) -> None:
        for position, (variable, _) in enumerate(self._fresh):
            if variable.path.endswith("seed_generator_state"):
                _set(variable, np.array([(seed + position) % 2**32, 0], variable.dtype))

    def weights(self) -> Arrays:
        """Return the weights by name: trainable ones, BatchNorm statistics and counters; no random or metric state."""
        return {name: np.array(v.numpy()) for name, v in self._named(self.keras.weights)}

    def set_weights(self, weights: Mapping[str, Array]) -> None:
        """See `CompiledModel.set_weights`."""
        self._assign(self.keras.weights, weights, "weights")

    @property
    def trainable(self) -> tuple[str, ...]:
        """See `Model.trainable`."""
        return tuple(self._places())

    def _places(self) -> dict[str, int]:
        """Return the place of each trainable variable among them, by the name of its weights."""
        places = {id(variable): place for place, variable in enumerate(self.keras.trainable_variables)}
        return {name: places[id(v)] for name, v in self._named(self.keras.weights) if id(v) in places}

    def correct(self, correction: Correction | None) -> None:
        """See `CompiledModel.correct`."""
        if self._corrections is not None:
            self._corrections.set(correction, self._places())
        elif correction is not None:
            raise ModelError("the model was built without corrections of its gradients", where="training.method")

    def optimizer_state(self) -> Arrays:
        """See `CompiledModel.optimizer_state`."""
        return {name: np.array(v.numpy()) for name, v in self._named(self.keras.optimizer.variables)}

    def set_optimizer_state(self, state: Mapping[str, Array]) -> None:
        """See `CompiledModel.set_optimizer_state`."""
        self._assign(self.keras.optimizer.variables, state, "optimizer state")

    def _assign(self, variables: Any, values: Mapping[str, Array], what: str) -> None:
        named = dict(self._named(variables))
        if named.keys() != values.keys():
            missing = sorted(named.keys() ^ values.keys())[0]
            raise ModelError(f"the {what} do not fit the model: only one of them has {missing!r}")
        for name, variable in named.items():
            if tuple(variable.shape) != values[name].shape:
                raise ModelError(
                    f"the {what} do not fit the model: {name!r} is {values[name].shape}, not {tuple(variable.shape)}"
                )
            _set(variable, values[name])

    def _named(self, variables: Any) -> Iterator[tuple[str, Any]]:
        """Yield variables with their path; a path that two variables share gets the position too."""
        paths = [v.path for v in variables]
        counts = Counter(paths)
        for position, (path, variable) in enumerate(zip(paths, variables, strict=True)):
            yield (path if counts[path] == 1 else f"{path}#{position}"), variable

    def set_learning_rate(self, rate: float) -> None:
        """See `CompiledModel.set_learning_rate`."""
        try:
            self.keras.optimizer.learning_rate = rate
        except TypeError as error:
            raise ModelError(
                "the optimizer has a learning rate schedule",
                where="training.learning_rate",
                remedy="Set it to 0.",
            ) from error

    def feed(self, part: Part, training: Training, seed: int) -> dict[str, Any]:
        """See `CompiledModel.feed`."""
        return feed_of(self, part, training, seed)

    def _epochs(self, part: Part, training: Training, seed: int, limits: TrainingLimits) -> list[dict[str, float]]:
        """See `CompiledModel._epochs`."""
        if self._loop is None or not isinstance(part, Examples) or not self._loop.trains(part, training):
            return super()._epochs(part, training, seed, limits)
        data, epochs = self._data(part), list[dict[str, float]]()
        with self._reported():
            for metrics in self._loop.train(data, part.count, training, seed, limits):
                epochs.append(scalars(metrics))
                limits.epoch(len(epochs), epochs[-1].get("loss", 0.0))
        return epochs

    def prepare(self, parts: Mapping[str, Part], training: Training) -> None:
        """See `fedpipe.learners.framework.Preparing`."""
        for name, part in parts.items():
            if self._loop is None or not isinstance(part, Examples):
                continue
            trains = name == "train"
            if self._loop.trains(part, training) if trains else self._loop.takes(part) and not training.evaluate:
                self._loop.trace(self._data(part), trains=trains)

    def _evaluated(self, part: Part, training: Training, batches: int) -> Mapping[str, Any]:
        """See `CompiledModel._evaluated`."""
        if self._loop is None or not isinstance(part, Examples) or training.evaluate or not self._loop.takes(part):
            return super()._evaluated(part, training, batches)
        size = training.batch_size
        count = min(batches * size or part.count, part.count)
        return self._loop.test(self._data(part), count, size * WIDER)

    def _data(self, part: Examples) -> tuple[Any, ...]:
        """Return features and labels, and weights if there are some, as the model takes them."""
        x, y = tensors(self.inputs.arranged(part.x), frameworks()[0]), self.outputs.labelled(part.y)
        return (x, y) if part.weight is None else (x, y, part.weight)

    def convert(self, weights: Arrays, opset: int, metadata: Mapping[str, str] | None = None) -> bytes:
        """See `Model.convert`."""
        self.reset(self._seed)
        return super().convert(weights, opset, metadata)


def _begin(keras: Any, seed: int) -> None:
    """Let models have the names and the numbers that they have in a new process."""
    keras.backend.clear_session()  # automatic names begin at their first number again
    keras.utils.set_random_seed(seed)
    keras.config.set_floatx("float32")  # an earlier model.py may have changed it


def _set(variable: Any, value: Array) -> None:
    """Set a variable to a value of its shape and dtype; Keras's own `assign` takes three times as long."""
    variable.value.assign(value, read_value=False)


def _scope(tensorflow: Any) -> Any:
    """Return a strategy over all GPUs when there are several; otherwise the default one."""
    if len(tensorflow.config.list_physical_devices("GPU")) > 1:
        return tensorflow.distribute.MirroredStrategy().scope()
    return tensorflow.device(None)
