"""Builds the algorithm of a simulation: one of TFF's by name, or the user's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fedpipe.errors import ModelError
from fedpipe.federation.algorithms import UNWEIGHTED, Averaging
from fedpipe.federation.federation import Federation
from fedpipe.federation.names import split_code
from fedpipe.federation.optimizers import OptimizerSettings
from fedpipe.learners.user_code import described, failed, find_function
from fedpipe.rounds.selection import trainers
from fedpipe.tff.aggregators import make_factory
from fedpipe.tff.models import Code, FederatedModel
from fedpipe.tff.optimizers import compiled_optimizer, make_optimizer, make_proximal
from fedpipe.tff.runtime import federated

Array = npt.NDArray[Any]
Weights = tuple[Sequence[Array], Sequence[Array]]
"""Holds trainable and other weights, in the model's order."""


class Process(NamedTuple):
    """Represents an algorithm: rounds that change a state at the server.

    `initialize()` returns the first state, and `next(state, clients)` the next state with the round's metrics.
    `weights(state)` returns the model in a state, and `start(state, weights)` the same state with another model.
    """

    initialize: Callable[[], Any]
    next: Callable[[Any, list[Any]], tuple[Any, dict[str, float]]]
    weights: Callable[[Any], Weights]
    start: Callable[[Any, Weights], Any]


class ProcessParts(NamedTuple):
    """Holds the parts of an algorithm of TFF: optimizers, the aggregator (None: the mean), and the weighting."""

    client: Any
    server: Any
    aggregator: Any
    weighted: bool
    proximal_strength: float


def _fed_avg(tff: Any, model: Any, parts: ProcessParts) -> Any:
    algorithms = tff.learning.algorithms
    if isinstance(parts.aggregator, tff.aggregators.UnweightedAggregationFactory):
        return algorithms.build_unweighted_fed_avg(model, parts.client, parts.server, model_aggregator=parts.aggregator)
    return algorithms.build_weighted_fed_avg(
        model, parts.client, parts.server, client_weighting=_weighting(tff, parts), model_aggregator=parts.aggregator
    )


def _fed_prox(tff: Any, model: Any, parts: ProcessParts) -> Any:
    return _fed_avg(tff, model, parts._replace(client=make_proximal(parts.client, parts.proximal_strength)))


def _fed_sgd(tff: Any, model: Any, parts: ProcessParts) -> Any:
    return tff.learning.algorithms.build_fed_sgd(model, parts.server, model_aggregator=parts.aggregator)


def _mime_lite(tff: Any, model: Any, parts: ProcessParts) -> Any:
    algorithms = tff.learning.algorithms
    if isinstance(parts.aggregator, tff.aggregators.UnweightedAggregationFactory):
        return algorithms.build_unweighted_mime_lite(
            model, parts.client, parts.server, model_aggregator=parts.aggregator
        )
    return algorithms.build_weighted_mime_lite(
        model, parts.client, parts.server, client_weighting=_weighting(tff, parts), model_aggregator=parts.aggregator
    )


ALGORITHMS: dict[str, Callable[[Any, Any, ProcessParts], Any]] = {
    "fedavg": _fed_avg, "fedprox": _fed_prox, "fedsgd": _fed_sgd, "mimelite": _mime_lite,
}  # fmt: skip
"""Maps names to TFF's builders of learning processes."""


def _weighting(tff: Any, parts: ProcessParts) -> Any:
    return tff.learning.ClientWeighting.NUM_EXAMPLES if parts.weighted else tff.learning.ClientWeighting.UNIFORM


def make_process(model: FederatedModel, federation: Federation) -> Process:
    """Builds the algorithm of the federation file, with its aggregator if that is one of TFF's.

    Args:
        model: the model to train.
        federation: the federation; a learning rate of 0 keeps that of the compiled optimizer.

    Raises:
        ModelError: TFF has no counterpart of the compiled optimizer, or cannot train the model.
    """
    tff = federated()
    settings, algorithm = federation.simulation, federation.algorithm
    assert isinstance(algorithm, Averaging)
    client: OptimizerSettings | None = settings.client_optimizer
    if client is None and settings.algorithm != "fedsgd":  # fedsgd does not train at the clients
        client = compiled_optimizer(model.keras.optimizer, federation.training.learning_rate)
    aggregator = None
    if algorithm.engine == "tff":
        takes_weights = not isinstance(algorithm.rule, UNWEIGHTED)  # with `uniform` weighting, they are all 1
        aggregator = make_factory(algorithm.rule, takes_weights, trainers(federation).learners_asked, model.specs)
    parts = ProcessParts(
        client=client and make_optimizer(client),
        server=make_optimizer(settings.server_optimizer or algorithm.server_optimizer),
        aggregator=aggregator,
        weighted=algorithm.weighting == "examples",
        proximal_strength=settings.proximal_strength,
    )
    try:
        return _learning_process(ALGORITHMS[settings.algorithm](tff, model.build, parts))
    except Exception as error:
        raise ModelError(
            f"TensorFlow Federated cannot train the model: {described(error)}",
            where=split_code(settings.model or federation.model)[0],
        ) from error


def _learning_process(process: Any) -> Process:
    tff = federated()

    def advance(state: Any, clients: list[Any]) -> tuple[Any, dict[str, float]]:
        output = process.next(state, clients)
        return output.state, flat_metrics(output.metrics)

    def weights(state: Any) -> Weights:
        model = getattr(state, "global_model_weights", None)  # in TFF's composed algorithms: saves a computation
        if not isinstance(model, tff.learning.models.ModelWeights):
            model = process.get_model_weights(state)
        return list(model.trainable), list(model.non_trainable)

    def start(state: Any, weights: Weights) -> Any:
        return process.set_model_weights(state, tff.learning.models.ModelWeights(list(weights[0]), list(weights[1])))

    return Process(process.initialize, advance, weights, start)


def make_own_process(model: FederatedModel, code: Code) -> Process:
    """Builds the user's own algorithm.

    Args:
        model: the model, whose `build` is the argument of the user's function.
        code: a file with a function that returns a LearningProcess, an IterativeProcess, or the pair of federated
            computations `initialize` and `next`.

    Raises:
        ModelError: the file is wrong; the error names the file and the line.
    """
    tff = federated()
    function: Callable[..., Any] = find_function(code.load(), code.function)
    try:
        returned = function(model.build)
    except Exception as error:
        raise failed(code.function, error, where=code.file) from error
    if isinstance(returned, tff.learning.templates.LearningProcess):
        return _learning_process(returned)
    if isinstance(returned, tuple) and len(returned) == 2:
        initialize, advance = returned
    else:
        initialize, advance = getattr(returned, "initialize", None), getattr(returned, "next", None)
    for name, computation in (("initialize", initialize), ("next", advance)):
        if not isinstance(computation, tff.Computation):
            raise ModelError(
                f"{code.function}() returns {type(returned).__name__} without a federated computation `{name}`",
                where=code.file,
                remedy="Return a LearningProcess, or `initialize` and `next` made by @tff.federated_computation.",
            )
    try:
        tff.templates.IterativeProcess(initialize, advance)
    except TypeError as error:
        raise ModelError(f"its `initialize` and `next` do not fit: {described(error)}", where=code.file) from error
    return _iterative_process(initialize, advance, code.file)


def _iterative_process(initialize: Any, advance: Any, file: str) -> Process:
    """Returns a process whose state is the model: its trainable weights, or trainable and other weights."""
    import tree

    def step(state: Any, clients: list[Any]) -> tuple[Any, dict[str, float]]:
        result = advance(state, clients)
        if advance.type_signature.result.is_equivalent_to(initialize.type_signature.result):
            return result, {}
        return result[0], flat_metrics(result[1])

    def weights(state: Any) -> Weights:
        tff = federated()
        if isinstance(state, tff.learning.models.ModelWeights):
            return list(state.trainable), list(state.non_trainable)
        return [np.asarray(leaf) for leaf in tree.flatten(state)], []

    def start(state: Any, given: Weights) -> Any:
        wanted = [*given[0], *given[1]]
        shapes = [np.shape(leaf) for leaf in tree.flatten(state)]
        if shapes != [value.shape for value in wanted]:
            raise ModelError(
                f"its state has arrays of shapes {shapes}, but the model has {[v.shape for v in wanted]}",
                where=file,
                remedy="Use the model's weights as the state, or return a LearningProcess.",
            )
        return tree.unflatten_as(state, wanted)

    return Process(initialize, step, weights, start)


def flat_metrics(metrics: Any) -> dict[str, float]:
    """Flattens the numbers in TFF's nested metrics by name: `loss` (of training), `aggregator/clipped_count`."""
    import tree

    flat: dict[str, float] = {}
    for path, value in tree.flatten_with_path(metrics):
        if np.ndim(value) == 0 and np.asarray(value).dtype.kind in "biuf" and np.isfinite(value):
            name = "/".join(str(part) for part in path)
            flat[name.removeprefix("client_work/train/").removeprefix("client_work/")] = float(value)
    return flat
