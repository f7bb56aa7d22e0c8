"""Cut networks in Keras: the parts that train, and the whole network, which is measured and exported."""

from __future__ import annotations

import functools
from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from fedpipe.data.examples import Examples
from fedpipe.data.schema import Schema
from fedpipe.federation.federation import Federation
from fedpipe.federation.training import Privacy, Training
from fedpipe.frameworks import frameworks
from fedpipe.learners.cut import TOP, Shape, bottom_name
from fedpipe.learners.framework import Arrays, Model, seed_of
from fedpipe.learners.keras.cut_mistakes import check_apart, check_fits, check_part, maker, order_of
from fedpipe.learners.keras.draws import takes_seed
from fedpipe.learners.keras.framework import KerasFramework
from fedpipe.learners.keras.model import KerasModel, built
from fedpipe.learners.keras.structure import Side, scalars, sides_of
from fedpipe.rounds.plan import Port
from fedpipe.weights import Array

PENALTY = "penalty"
"""The metric of a bottom with regularisers: what they add to the loss of the uncut network."""


class CutKeras(KerasFramework):
    """The adapter of a federation whose network is cut.

    Args:
        federation: with its parties.
    """

    def __init__(self, federation: Federation) -> None:
        self._parties, self._size = federation.feature_parties, federation.training.batch_size

    def build(
        self, code: bytes, digest: str, function: str, training: Training, privacy: Privacy | None = None,
        inputs: tuple[Port, ...] = (), schema: Schema | None = None,
    ) -> Model:  # fmt: skip
        """Return the whole network; see `Framework.build`."""
        return _cached_whole(code, digest, self._parties, training.seed)

    def bottom(self, code: bytes, digest: str, party: str, training: Training) -> KerasBottom:
        """Return the part of a party with features. Raises ModelError."""
        return _cached_bottom(code, digest, party, training.seed)

    def named_top(self, code: bytes, digest: str, training: Training) -> NamedTop:
        """Return the top for the export. Raises ModelError."""
        return NamedTop(code, digest, self._parties, training.seed)

    def top(self, code: bytes, digest: str, training: Training) -> KerasTop:
        """Return the part of the label party. Raises ModelError."""
        return _cached_top(code, digest, self._parties, training.seed, self._size)


def _part_seed(seed: int, part: str) -> int:
    return seed_of(seed, part)


class KerasPart(KerasModel):
    """A part of a network as `build` of model.py would be a whole one.

    Args:
        code: the user's file.
        digest: the required digest of its bytes.
        part: the name of the part.
        seed: of the run.
    """

    def __init__(self, code: bytes, digest: str, part: str, seed: int) -> None:
        super().__init__(code, digest, part, seed=_part_seed(seed, part))
        self.part = part
        check_part(part, self.keras, self.inputs, self.outputs)
        self._traced = self._trace()

    @abstractmethod
    def _trace(self) -> tuple[Any, ...]:
        """Make and return the functions that TensorFlow traces when they are first called."""

    def _builder(self, function: str) -> Callable[..., Any]:
        return maker(self.module, function)

    def _function(self, function: Callable[..., Any]) -> Any:
        """Return a function that TensorFlow traces: `keras.random` then draws from the generator of this part."""

        def traced(*given: Any) -> Any:
            if self._generator is not None:
                self._generator.use()
            return function(*given)

        return frameworks()[0].function(traced, reduce_retracing=True)

    def begin(self, start: Arrays, optimizer: Arrays | None, *, seed: int, rate: float) -> None:
        """See `Part.begin`."""
        self.reset(seed)
        if self._generator is not None and any(map(takes_seed, self._traced)):  # a graph keeps the seed of its trace
            self._traced = self._trace()
        self.set_weights(start)
        if optimizer is not None:
            self.set_optimizer_state(optimizer)
        if rate:
            self.set_learning_rate(rate)

    def _apply(self, gradients: Sequence[Any]) -> None:
        known = [(g, v) for g, v in zip(gradients, self.keras.trainable_variables, strict=True) if g is not None]
        if known:
            self.keras.optimizer.apply_gradients(known)


class KerasBottom(KerasPart):
    """See `Bottom`."""

    def __init__(self, code: bytes, digest: str, part: str, seed: int) -> None:
        super().__init__(code, digest, part, seed)
        self._open = deque[tuple[Any, Any, Any]]()
        self._is_penalised = False
        self._penalties, self._rows = 0.0, 0

    def _trace(self) -> tuple[Any, ...]:
        tensorflow, _ = frameworks()

        def forward(x: Any) -> Any:
            found = self.keras(x, training=True)
            losses = self.keras.losses
            self._is_penalised = bool(losses)
            return found, tensorflow.add_n(losses) if losses else tensorflow.constant(0.0)

        self._forward, self._update = self._function(forward), self._function(self._apply)
        self._infer = self._function(lambda x: self.keras(x, training=False))
        return self._forward, self._update, self._infer

    def begin(self, start: Arrays, optimizer: Arrays | None, *, seed: int, rate: float) -> None:
        """See `Part.begin`; batches that were open in an attempt that failed are forgotten."""
        super().begin(start, optimizer, seed=seed, rate=rate)
        self._open.clear()
        self._penalties, self._rows = 0.0, 0
        self.keras.reset_metrics()

    @property
    def output(self) -> Shape:
        """See `Bottom.output`."""
        return _shape_of(self.outputs.ports[0])

    def forward(self, x: Array) -> Array:
        """See `Bottom.forward`."""
        tensorflow, _ = frameworks()
        with tensorflow.GradientTape() as tape:
            found, penalty = self._forward(tensorflow.constant(self.inputs.arranged(x)))
        self._open.append((tape, found, penalty))
        if self._is_penalised:
            self._penalties, self._rows = self._penalties + len(x) * float(penalty), self._rows + len(x)
        return np.asarray(found)

    def backward(self, gradient: Array) -> None:
        """See `Bottom.backward`."""
        tensorflow, _ = frameworks()
        tape, found, penalty = self._open.popleft()
        one = tensorflow.ones_like(penalty)
        given = [tensorflow.constant(gradient, found.dtype), one]
        self._update(tape.gradient([found, penalty], self.keras.trainable_variables, output_gradients=given))

    def infer(self, x: Array) -> Array:
        """See `Bottom.infer`."""
        return np.asarray(self._infer(frameworks()[0].constant(self.inputs.arranged(x))))

    def metrics(self) -> dict[str, float]:
        """See `Bottom.metrics`."""
        found = {name: value for name, value in self.keras.get_metrics_result().items() if name != "loss"}
        return scalars({**found, PENALTY: self._penalties / self._rows} if self._rows else found)


class KerasTop(KerasPart):
    """See `Top`; its inputs have the names of parties, or are in their order.

    Args:
        code: the user's file.
        digest: the required digest of its bytes.
        parties: those with features, in order.
        seed: of the run.
        size: rows of a training batch; a test has wider ones.
    """

    def __init__(self, code: bytes, digest: str, parties: tuple[str, ...], seed: int, size: int) -> None:
        super().__init__(code, digest, TOP, seed)
        self._order, self._size = order_of(self.inputs, parties), size

    def _trace(self) -> tuple[Any, ...]:
        tensorflow, _ = frameworks()

        def step(activations: Any, y: Any) -> Any:
            model = self.keras
            with tensorflow.GradientTape() as tape:
                tape.watch(activations)
                x = self._packed(activations)
                predicted = model(x, training=True)
                loss = model.compute_loss(x=x, y=y, y_pred=predicted, training=True)
            down, own = tape.gradient(loss, [activations, model.trainable_variables])
            self._apply(own)
            model._loss_tracker.update_state(loss, sample_weight=tensorflow.shape(activations[0])[0])
            model.compute_metrics(x, y, predicted)
            return [tensorflow.zeros_like(a) if g is None else g for g, a in zip(down, activations, strict=True)]

        self._step = self._function(step)
        return (self._step,)

    def _packed(self, activations: Sequence[Any]) -> Any:
        """Return the activations, in the order of the parties, as the model takes them."""
        names = self.inputs.names
        return self.inputs.packed({names[place]: a for place, a in zip(self._order, activations, strict=True)})

    @property
    def inputs_in_order(self) -> tuple[Shape, ...]:
        """See `Top.inputs_in_order`."""
        return tuple(_shape_of(self.inputs.ports[place]) for place in self._order)

    def begin(self, start: Arrays, optimizer: Arrays | None, *, seed: int, rate: float) -> None:
        """See `Part.begin`."""
        super().begin(start, optimizer, seed=seed, rate=rate)
        self.keras.reset_metrics()

    def step(self, activations: Sequence[Array], y: Array) -> list[Array]:
        """See `Top.step`."""
        tensorflow, _ = frameworks()
        given = [tensorflow.constant(a) for a in activations]
        return [np.asarray(g) for g in self._step(given, tensorflow.constant(self.outputs.labelled(y)))]

    def metrics(self) -> dict[str, float]:
        """See `Top.metrics`."""
        return scalars(self.keras.get_metrics_result())

    def examples(self, activations: Sequence[Array], y: Array) -> Examples:
        """Return activations and labels as examples of this model."""
        names = self.inputs.names
        named = {names[place]: a for place, a in zip(self._order, activations, strict=True)}
        return Examples(named if len(named) > 1 else activations[0], y)

    def test(self, start: Arrays, activations: Sequence[Array], y: Array) -> dict[str, float]:
        """See `Top.test`."""
        training = Training(rounds=1, batch_size=self._size)
        return self.evaluate(start, self.examples(activations, y), training).metrics


def _shape_of(port: Port) -> Shape:
    return Shape(port.dtype, tuple(size or 0 for size in port.shape[1:]))


class WholeModel(KerasModel):
    """The whole network: bottoms and top joined, for measurements, the export and a rehearsal.

    Args:
        code: the user's file.
        digest: the required digest of its bytes.
        parties: those with features, in order.
        seed: of the run.

    Raises:
        ModelError: a part is missing, or the parts do not fit together.
    """

    def __init__(self, code: bytes, digest: str, parties: tuple[str, ...], seed: int) -> None:
        self._parties, self._run_seed, self._parts = parties, seed, {}  # type: ignore[var-annotated]
        super().__init__(code, digest, TOP, seed=seed)
        self.outputs = self._top_outputs

    def _builder(self, function: str) -> Callable[..., Any]:
        return self._joined

    def _joined(self) -> Any:
        _, keras = frameworks()
        bottoms = [self._made(bottom_name(party)) for party in self._parties]
        taken, order = self._taken(self._made(TOP))
        check_apart(self._parts)
        inputs, given = {}, {}
        for place, party, bottom in zip(order, self._parties, bottoms, strict=True):
            port = sides_of(bottom)[0].ports[0]
            inputs[party] = keras.Input(port.shape[1:], dtype=port.dtype, name=party)
            found = bottom(inputs[party])
            check_fits(party, found, taken.ports[place])
            given[taken.names[place]] = found
        return self._whole(inputs, taken.packed(given))

    def _made(self, part: str) -> Any:
        """Return a part, with the names and the numbers that it has alone."""
        _, keras = frameworks()
        keras.backend.clear_session()
        keras.utils.set_random_seed(_part_seed(self._run_seed, part))
        self._parts[part] = model = built(maker(self.module, part), keras)
        check_part(part, model, *sides_of(model))
        model.name = f"part_{part}"  # no party, after which an input is named, can have this name
        return model

    def _taken(self, top: Any) -> tuple[Side, tuple[int, ...]]:
        """Return what the top takes, and the place of each party's activations in it."""
        taken, self._top_outputs = sides_of(top)
        return taken, order_of(taken, self._parties)

    def _whole(self, inputs: dict[str, Any], activations: Any) -> Any:
        """Return the compiled network from inputs, which are named after the parties, to the output of the top."""
        _, keras = frameworks()
        top = self._parts[TOP]
        whole = keras.Model(list(inputs.values()) if len(inputs) > 1 else inputs[self._parties[0]], top(activations))
        metrics = getattr(top._compile_metrics, "_user_metrics", None)
        optimizer = type(top.optimizer).from_config(top.optimizer.get_config())
        whole.compile(optimizer=optimizer, loss=top.loss, metrics=metrics)
        return whole

    def _named(self, variables: Any) -> Iterator[tuple[str, Any]]:
        own = {id(v): f"{part}/{name}" for part, model in self._parts.items()
               for name, v in KerasModel._named(self, model.weights)}  # fmt: skip
        for name, variable in super()._named(variables):
            yield own.get(id(variable), name), variable


class NamedTop(WholeModel):
    """The top alone, whose inputs are activations and have the names of the parties: it is exported and served."""

    def _joined(self) -> Any:
        _, keras = frameworks()
        taken, order = self._taken(self._made(TOP))
        inputs, given = {}, {}
        for place, party in zip(order, self._parties, strict=True):
            port = taken.ports[place]
            inputs[party] = given[taken.names[place]] = keras.Input(port.shape[1:], dtype=port.dtype, name=party)
        return self._whole(inputs, taken.packed(given))


@functools.lru_cache(maxsize=1)
def _cached_whole(code: bytes, digest: str, parties: tuple[str, ...], seed: int) -> WholeModel:
    return WholeModel(code, digest, parties, seed)


@functools.lru_cache(maxsize=4)
def _cached_bottom(code: bytes, digest: str, party: str, seed: int) -> KerasBottom:
    return KerasBottom(code, digest, bottom_name(party), seed)


@functools.lru_cache(maxsize=2)
def _cached_top(code: bytes, digest: str, parties: tuple[str, ...], seed: int, size: int) -> KerasTop:
    return KerasTop(code, digest, parties, seed, size)
