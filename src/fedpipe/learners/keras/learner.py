"""A learner that trains with Keras."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from fedpipe.data.examples import Examples, check_examples, read_examples
from fedpipe.data.parts import get_parts, get_shard
from fedpipe.data.shards import split
from fedpipe.errors import DataError, DroppedError
from fedpipe.federation.federation import Federation
from fedpipe.federation.preprocessing import applied, parse
from fedpipe.federation.training import Privacy
from fedpipe.frameworks import frameworks
from fedpipe.learners.keras.arguments import check_criterion, make_callbacks
from fedpipe.learners.keras.events import event_file
from fedpipe.learners.keras.model import KerasModel, cached_model
from fedpipe.learners.learner import Arrays, Trained, Verdict, seed_of
from fedpipe.rounds.accounting import TrainingEvent
from fedpipe.rounds.budget import training_event
from fedpipe.rounds.manifests import Scores, Tested
from fedpipe.rounds.plan import Plan, RunPlace, read_plan
from fedpipe.rounds.voting import approves
from fedpipe.store import Store
from fedpipe.store.objects import get_bytes

Array = npt.NDArray[Any]
log = logging.getLogger("fedpipe")

_LARGE = 64 * 2**20
"""Bytes of a train part from which it is not copied any more."""

WIDER = 4
"""Batches of the training that make one of an evaluation, which keeps no activations and so needs less memory."""

Part = Any
"""Examples, or a batched tf.data.Dataset."""


class KerasLearner:
    """Trains, scores and votes with the plan's model on this learner's parts.

    Args:
        model: the built model; its state is set anew by every act.
        federation: the settings: training, criterion of the vote, deadline.
        parts: train, vote and test part, each Examples or a tf.data.Dataset of unbatched (x, y).
        label: what log lines begin with.
        on_epochs: takes the metrics of every epoch when the training is done.
        privacy: of a model that trains with DP-SGD. What such a training measures on its examples is exact, so it is
            neither logged nor given away.
    """

    def __init__(
        self, model: Any, federation: Federation, parts: Mapping[str, Part], *, label: str = "",
        on_epochs: Callable[[list[dict[str, float]]], None] | None = None, privacy: Privacy | None = None,
    ) -> None:  # fmt: skip
        self._model, self._federation, self._parts = model, federation, parts
        self._label, self._on_epochs, self._privacy = label, on_epochs, privacy
        self._current: Arrays = {}
        self._scores = Scores()

    @property
    def planned(self) -> TrainingEvent | None:
        """See `Learner.planned`."""
        return self._event()

    def accept_weights(self, weights: Arrays, scores: Scores | None = None) -> Scores:
        """See `Learner.accept_weights`."""
        self._scores = self._score(weights) if scores is None else scores
        self._current = weights
        return self._scores

    def propose_weights(self, *, seed: int, seconds: float, optimizer: Arrays | None) -> Trained:
        """See `Learner.propose_weights`."""
        training = self._federation.training
        examples = self._size("train")
        if examples < training.batch_size:
            raise DroppedError(f"the train part has {examples} examples, fewer than a batch of {training.batch_size}")
        self._model.reset(seed)
        self._model.set_weights(self._current)
        if optimizer is not None:
            self._model.set_optimizer_state(optimizer)
        if training.learning_rate:
            self._model.set_learning_rate(training.learning_rate)
        epochs, steps = self._fit(seed, seconds)
        kept = self._model.optimizer_state() if training.optimizer == "keep" else None
        if self._privacy:
            return Trained(self._model.weights(), examples, {}, kept, self._event(steps))
        for number, metrics in enumerate(epochs, 1):
            log.info("%s epoch %d: %s", self._label, number, " ".join(f"{k} {v:.4g}" for k, v in metrics.items()))
        if self._on_epochs:
            self._on_epochs(epochs)
        return Trained(self._model.weights(), examples, _finite(epochs[-1]), kept)

    def test_weights(self, weights: Arrays) -> Verdict:
        """See `Learner.test_weights`."""
        assert self._federation.vote is not None
        scores = self._score(weights)
        return Verdict(scores, approves(self._federation.vote, self._scores, scores))

    def current_model(self, form: Literal["weights", "onnx"] = "weights") -> Arrays | bytes:
        """See `Learner.current_model`."""
        if form == "weights":
            return self._current
        from fedpipe.learners.keras.onnx import convert

        self._model.set_weights(self._current)
        return convert(self._model, self._federation.export.opset)

    def _event(self, steps: int = 0) -> TrainingEvent | None:
        if self._privacy is None:
            return None
        return training_event(self._federation.training, self._privacy, self._size("train"), steps)

    def _fit(self, seed: int, seconds: float) -> tuple[list[dict[str, float]], int]:
        """Metrics of each epoch, and the steps that were taken."""
        training = self._federation.training
        arguments = dict(training.fit)
        if "class_weight" in arguments:  # JSON knows no whole numbers as keys
            arguments["class_weight"] = {int(k): v for k, v in arguments["class_weight"].items()}
        deadline = _deadline(seconds, told=not self._privacy)
        callbacks = [deadline, *make_callbacks(training)]
        try:
            history = self._model.keras.fit(**{**arguments, **self._feed(seed)}, callbacks=callbacks, verbose=0).history
        except DroppedError:
            raise
        except Exception as error:
            # TensorFlow's messages quote examples and labels, which a private learner keeps to itself.
            detail = "" if self._privacy else f": {' '.join(str(error).split())[:300]}"
            raise DroppedError(f"training failed: {type(error).__name__}{detail}") from error
        epochs = [dict(zip(history, values, strict=True)) for values in zip(*history.values(), strict=True)]
        return epochs, deadline.steps

    def _feed(self, seed: int) -> dict[str, Any]:
        """The train part and its length as arguments of fit."""
        training, part = self._federation.training, self._parts["train"]
        size, epochs = training.batch_size, training.local_epochs
        if self._privacy:
            return {"x": self._private_batches(singles_of(part)), "epochs": 1, "shuffle": False}
        if training.preprocessing:
            calls, module = parse(training.preprocessing), self._model.module
            made = applied(calls, singles_of(part), module, batch_size=size, seed=seed)
            return {"x": made, "epochs": 1, "shuffle": False}
        if isinstance(part, Examples) and not training.local_steps and _needs_arrays(part, training.fit):
            frameworks()[0].random.set_seed(seed)  # Keras shuffles arrays by TensorFlow's own seed
            return {"x": part.x, "y": part.y, "batch_size": size, "epochs": epochs}
        dataset = singles_of(part)
        if isinstance(part, Examples) and training.fit.get("shuffle", True):
            dataset = dataset.shuffle(len(part.y), seed=seed)
        if training.local_steps:
            return {"x": dataset.repeat().batch(size).take(training.local_steps), "epochs": 1, "shuffle": False}
        # One pass over all epochs: with one for each, Keras decides their order, and a simulation has another.
        steps = -(-self._size("train") // size)
        return {"x": dataset.batch(size).repeat(epochs), "epochs": epochs, "steps_per_epoch": steps, "shuffle": False}

    def _private_batches(self, dataset: Any) -> Any:
        """Whole batches, shuffled anew in each pass by a seed that nobody knows, an example at most once in a pass."""
        size = self._federation.training.batch_size
        shuffled = dataset.shuffle(self._size("train"), reshuffle_each_iteration=True)
        assert self.planned is not None
        return shuffled.batch(size, drop_remainder=True).repeat().take(self.planned.steps)

    def _size(self, part: str) -> int:
        held = self._parts.get(part)
        return 0 if held is None else size_of(held)

    def _score(self, weights: Arrays) -> Scores:
        """Means on the vote part, when learners vote, and on the test part."""
        size, vote, test = self._federation.training.batch_size, self._federation.vote, self._size("test")
        voted = None
        if vote is not None:
            count = self._size("vote")
            if count < size:
                raise DroppedError(f"the vote part has {count} examples, fewer than a batch of {size}")
            count = min(count, vote.batches * size or count)
            measured = self.evaluate(weights, "vote", vote.batches)
            check_criterion(vote.criterion, set(measured))
            voted = Tested(examples=count, metrics=_finite(measured))
        tested = Tested(examples=test, metrics=_finite(self.evaluate(weights, "test"))) if test else None
        return Scores(vote=voted, test=tested)

    def evaluate(self, weights: Arrays, part: str, batches: int = 0) -> dict[str, float]:
        """Loss and every compiled metric of these weights on a part; the metrics' states stay in the model.

        Args:
            weights: to evaluate.
            part: its name.
            batches: only so many of its first batches; 0: all.
        """
        self._model.reset_draws(seed_of(self._federation.training.seed, "evaluate"))
        self._model.set_weights(weights)
        size, data = self._federation.training.batch_size, singles_of(self._parts[part])
        data = data.take(batches * size or -1).batch(size * WIDER)
        return dict(self._model.keras.evaluate(data, **self._federation.training.evaluate, verbose=0, return_dict=True))


def _finite(metrics: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in metrics.items() if np.isfinite(value)}


def _needs_arrays(part: Examples, fit: Mapping[str, Any]) -> bool:
    """Whether Keras gets the arrays as they are.

    A tf.data.Dataset of slices starts an epoch ten times faster than Keras's adapter for arrays, which counts for
    small shards; but its shuffling holds a copy of the data.
    """
    return "validation_split" in fit or part.x.nbytes + part.y.nbytes > _LARGE


def size_of(part: Part) -> int:
    """Examples of a part."""
    return len(part.y) if isinstance(part, Examples) else int(part.cardinality().numpy())


def singles_of(part: Part) -> Any:
    """A part as a tf.data.Dataset of single (x, y)."""
    tensorflow, _ = frameworks()
    return tensorflow.data.Dataset.from_tensor_slices(tuple(part)) if isinstance(part, Examples) else part


def _deadline(seconds: float, *, told: bool) -> Any:
    """A callback that counts steps and drops a learner that is late, or whose loss is not finite if that is told."""
    _, keras = frameworks()
    end = time.monotonic() + seconds

    class Deadline(keras.callbacks.Callback):  # type: ignore[misc,name-defined]
        steps = 0

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            self.steps += 1
            if time.monotonic() > end:
                raise DroppedError(f"late: training took longer than the deadline of {seconds:g} s")

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            if told and not np.isfinite((logs or {}).get("loss", 0.0)):
                raise DroppedError(f"the loss is {logs['loss']} in epoch {epoch + 1}: lower the learning rate")

    return Deadline()


def plan_model(store: Store, plan: Plan) -> KerasModel:
    """The plan's model, built once per process. Raises ModelError."""
    training = plan.federation.training
    return cached_model(get_bytes(store, plan.code), plan.code, plan.function, training.precision, training.seed)


def make_keras_learner(
    store: Store, plan: Plan, name: str, label: str, events: str = "", *, place: RunPlace | None = None
) -> KerasLearner:
    """The learner with its model and its data.

    Args:
        store: the federation's store.
        plan: the run's plan.
        name: the learner.
        label: what its log lines begin with.
        events: key of the TensorBoard event file; none when empty.
        place: of a session, whose learners keep their data from round to round.

    Raises:
        DataError, ModelError, CorruptError: why this learner cannot take part.
    """
    model = plan_model(store, plan)

    def put_events(epochs: list[dict[str, float]]) -> None:
        points = [(step, {f"epoch_{k}": v for k, v in metrics.items()}) for step, metrics in enumerate(epochs)]
        store.replace(events, event_file(points))

    on_epochs = put_events if events and plan.federation.training.tensorboard else None
    parts = kept_parts(place, name, model.module) if place else learner_parts(store, plan, name, model.module)
    return KerasLearner(model, plan.federation, parts, label=label, on_epochs=on_epochs)


@functools.lru_cache(maxsize=16)
def kept_parts(place: RunPlace, name: str, module: ModuleType) -> dict[str, Part]:
    """A learner's parts, read once in a process."""
    store = place.open()
    return learner_parts(store, read_plan(store, place.plan), name, module)


def learner_parts(store: Store, plan: Plan, name: str, module: ModuleType) -> dict[str, Part]:
    """A learner's parts: its shard, its own file, or what `load` of model.py returns for its own data."""
    if not plan.federation.learner(name).data:
        return dict(get_parts(store, get_shard(store, name, plan.shards[name]).data, name))
    return own_parts(plan.federation, name, module)


def own_parts(federation: Federation, name: str, module: ModuleType) -> dict[str, Part]:
    """What a learner brought: its own file, or what `load` of model.py returns for it. Raises DataError."""
    own, settings = federation.learner(name).data, federation.data
    load = getattr(module, "load", None)
    if load is None:
        examples, _ = read_examples(own, **settings.columns)
        loaded: Any = examples
    else:
        try:
            loaded = load(own)
        except Exception as error:
            raise DataError(f"load({own!r}) fails: {type(error).__name__}: {error}", where="model.py") from error
    return parts_of(loaded, federation, name)


def as_examples(part: Part) -> Examples:
    """A part as arrays."""
    if isinstance(part, Examples):
        return part
    pairs = list(part.as_numpy_iterator())
    return Examples(np.stack([x for x, _ in pairs]), np.stack([y for _, y in pairs]))


def parts_of(loaded: Any, federation: Federation, name: str) -> dict[str, Part]:
    """Splits what a learner brought; a mapping of parts is taken as it is.

    Raises:
        DataError: it is neither (x, y), a tf.data.Dataset of known length, nor a mapping of these.
    """
    if isinstance(loaded, Mapping):
        return {part: _as_part(value, name) for part, value in loaded.items()}
    whole, seed = _as_part(loaded, name), [federation.training.seed, seed_of(name)]
    if isinstance(whole, Examples):
        indices = split(len(whole.y), federation.data.parts, seed)
        return {part: Examples(whole.x[i], whole.y[i]) for part, i in indices.items()}
    count = int(whole.cardinality().numpy())
    train = round(count * federation.data.parts.train)
    test = round(count * federation.data.parts.test)
    rest = whole.skip(train)
    return {"train": whole.take(train), "test": rest.take(test), "vote": rest.skip(test)}


def _as_part(value: Any, name: str) -> Part:
    tensorflow, _ = frameworks()
    if isinstance(value, tensorflow.data.Dataset):
        if int(value.cardinality().numpy()) < 0:
            raise DataError(
                f"the dataset of {name} has no known length",
                remedy="Return arrays, apply tf.data.experimental.assert_cardinality, or return a table of parts.",
            )
        return value
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise DataError(f"the data of {name} is {type(value).__name__}, not (x, y) or a tf.data.Dataset")
    x, y = np.asarray(value[0]), np.asarray(value[1])
    check_examples(x, y, name)
    return Examples(x, y)
