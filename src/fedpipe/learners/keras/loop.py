"""Train and test a Keras model in a loop inside TensorFlow: the same numbers as Keras's own, without Python in between.

`fit` and `evaluate` return to Python after each batch, and make a `tf.data.Dataset` and its iterators each time. For a
small model this takes several times as long as the arithmetic. The loop calls the same steps on the same batches.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from typing import Any

from fedpipe.data.examples import Examples
from fedpipe.data.trees import size_in_bytes
from fedpipe.federation.training import Training
from fedpipe.frameworks import frameworks
from fedpipe.learners.framework import TrainingLimits

LARGE = 64 * 2**20
"""Examples of more bytes are not copied."""
_SHORT = 0.25
"""Seconds of a call up to which later ones take twice as many steps: Python looks at the clock between calls."""
_MOST_ROWS = 2**20
"""Most examples of a training, over all its epochs, whose order is computed at once."""
_PRIME = 2**31 - 1
"""TensorFlow takes seeds modulo this number."""


class Loop:
    """The loops of one model, each traced once for all examples of the same kind.

    Args:
        model: a compiled Keras model of stock parts, which keep all their state in variables.
        seed: TensorFlow's global seed of the model.
    """

    def __init__(self, model: Any, seed: int) -> None:
        self._model, self._seed, self._steps_at_once = model, seed, 1
        self._traced: dict[str, Callable[..., Any]] = {}

    def takes(self, part: Any) -> bool:
        """Return whether the loop works with these examples and the compiled options as `fit` does."""
        model = self._model
        fast = not (model.run_eagerly or model.jit_compile or model.steps_per_execution > 1)
        return fast and model._distribute_strategy is None and isinstance(part, Examples) and not is_large(part)

    def trains(self, part: Any, training: Training) -> bool:
        """Return whether the loop trains as `fit` does with these settings."""
        plain = not (training.callbacks or training.preprocessing or training.fit)
        return plain and self.takes(part) and _rows(part.count, training) <= _MOST_ROWS

    def trace(self, data: tuple[Any, ...], *, trains: bool = True) -> None:
        """Trace the loop over such data, and the order of a training, and run them on no examples.

        TensorFlow optimises a graph, and makes its kernels, when it first runs. No variable changes.

        Args:
            data: features and labels, and perhaps weights, as the model takes them.
            trains: whether the model trains on them, or is tested.
        """
        tensorflow, _ = frameworks()
        step = self._traced_loop("train_step" if trains else "test_step", data)
        step(tensorflow.range(0, dtype=tensorflow.int64), *_whole(1, 0, 0), tensorflow.constant(False))
        if trains:
            shuffled(tensorflow)(*_whole(self._seed % _PRIME, 0, 1, 1))

    def train(
        self, data: tuple[Any, ...], count: int, training: Training, seed: int, limits: TrainingLimits
    ) -> Iterator[dict[str, Any]]:
        """Train, and yield the metrics of each epoch.

        Args:
            data: features and labels, and perhaps weights, as the model takes them.
            count: the number of examples.
            training: epochs or steps, size of a batch.
            seed: of shuffling.
            limits: counts the steps.
        """
        tensorflow, _ = frameworks()
        total = _rows(count, training)
        order = shuffled(tensorflow)(*_whole(self._seed % _PRIME, seed % _PRIME, count, total))
        length = total if training.local_steps else count
        step = self._traced_loop("train_step", data)
        for first in range(0, total, length):
            yield self._run(step, order, (first, first + length), training.batch_size, limits)
        # As at the end of `fit`: an optimizer with `use_ema` replaces the weights by their moving averages.
        self._model.optimizer.finalize_variable_values(self._model.trainable_weights)

    def test(self, data: tuple[Any, ...], count: int, size: int) -> dict[str, Any]:
        """Return the metrics of the first examples, in batches of a size."""
        tensorflow, _ = frameworks()
        step = self._traced_loop("test_step", data)
        return self._run(step, tensorflow.range(count, dtype=tensorflow.int64), (0, count), size, TrainingLimits(1e9))

    def _run(
        self, run: Callable[..., Any], order: Any, span: tuple[int, int], size: int, limits: TrainingLimits
    ) -> dict[str, Any]:
        """Take the steps of an epoch, some at once, and return its metrics."""
        at, last = span
        tensorflow, _ = frameworks()
        while True:
            first, at, started = at, min(at + self._steps_at_once * size, last), time.monotonic()
            metrics = run(order, *_whole(size, first, at), tensorflow.constant(first == span[0]))
            limits.step(-(-(at - first) // size))
            if at == last:
                return {name: value.numpy() for name, value in metrics.items()}
            if time.monotonic() - started < _SHORT:
                self._steps_at_once *= 2

    def _traced_loop(self, step: str, data: tuple[Any, ...]) -> Callable[..., Any]:
        """Return the loop over batches of data by a step of the model, traced when it is first needed."""
        tensorflow, keras = frameworks()
        data = keras.tree.map_structure(tensorflow.convert_to_tensor, data)
        specs = keras.tree.map_structure(lambda leaf: tensorflow.TensorSpec((None, *leaf.shape[1:]), leaf.dtype), data)
        kind = f"{step} {specs}"
        if kind not in self._traced:
            self._model._symbolic_build(data_batch=keras.tree.map_structure(lambda leaf: leaf[:1], data))
            self._traced[kind] = _loop(self._model, step, specs)
        return functools.partial(self._traced[kind], data)


def _loop(model: Any, name: str, specs: Any) -> Callable[..., Any]:
    """Return a function of data, an order, a batch's size, a span of the order, and whether an epoch begins.

    A concrete function takes tensors only, and half the time of one that looks for the trace of its arguments.
    """
    tensorflow, keras = frameworks()

    def run(data: Any, order: Any, size: Any, first: Any, last: Any, begins: Any) -> Any:
        def step(at: Any) -> Any:
            end = tensorflow.minimum(at + size, last)
            rows = order[at:end]
            batch = keras.tree.map_structure(lambda leaf: tensorflow.gather(leaf, rows), data)
            model.distribute_strategy.run(getattr(model, name), args=(batch,))
            return end

        def begin() -> Any:
            model.reset_metrics()
            return first

        start = tensorflow.cond(begins, begin, lambda: first)
        tensorflow.while_loop(lambda at: at < last, step, [start], parallel_iterations=1)
        return model.get_metrics_result()

    whole, rows = tensorflow.TensorSpec((), tensorflow.int64), tensorflow.TensorSpec((None,), tensorflow.int64)
    signature = [specs, rows, whole, whole, whole, tensorflow.TensorSpec((), tensorflow.bool)]
    traced = tensorflow.function(run, input_signature=signature, autograph=False)
    return traced.get_concrete_function()  # type: ignore[no-any-return]


def _whole(*numbers: int) -> list[Any]:
    """Return numbers as the functions take them."""
    tensorflow, _ = frameworks()
    return [tensorflow.constant(number, tensorflow.int64) for number in numbers]


@functools.cache
def shuffled(tensorflow: Any) -> Callable[..., Any]:
    """Return a function of the global seed, the seed, a count and a total that gives the order of examples.

    These are the operations of `Dataset.range(count).shuffle(count, seed).repeat().take(total)`, with the seeds as
    arguments, so that they are traced once for all trainings.
    """
    ops, whole = tensorflow.raw_ops, tensorflow.int64
    single = {"output_types": [whole], "output_shapes": [()]}
    several = {"output_types": [whole], "output_shapes": [(None,)]}

    def order(global_seed: Any, seed: Any, count: Any, total: Any) -> Any:
        zero, one, forever = (tensorflow.constant(number, whole) for number in (0, 1, -1))
        seed = tensorflow.where((global_seed == zero) & (seed == zero), tensorflow.constant(_PRIME, whole), seed)
        rows = ops.RangeDataset(start=zero, stop=count, step=one, **single)
        rows = ops.ShuffleDatasetV3(
            input_dataset=rows, buffer_size=count, seed=global_seed, seed2=seed,
            seed_generator=ops.DummySeedGenerator(), reshuffle_each_iteration=True, **single,
        )  # fmt: skip
        rows = ops.RepeatDataset(input_dataset=rows, count=forever, **single)
        rows = ops.TakeDataset(input_dataset=rows, count=total, **single)
        rows = ops.BatchDatasetV2(input_dataset=rows, batch_size=total, drop_remainder=False, **several)
        return ops.DatasetToSingleElement(dataset=rows, **several)[0]

    traced = tensorflow.function(order, input_signature=[tensorflow.TensorSpec((), whole)] * 4, autograph=False)
    return traced.get_concrete_function()  # type: ignore[no-any-return]


def is_large(part: Examples) -> bool:
    """Return whether Keras gets the arrays of a train part as they are."""
    return size_in_bytes(part.x) + size_in_bytes(part.y) > LARGE


def _rows(count: int, training: Training) -> int:
    """Return how many examples a training takes, over all its epochs."""
    return training.local_steps * training.batch_size or count * training.local_epochs
