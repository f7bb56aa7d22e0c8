"""Combine updates from the store by TFF's aggregation processes and server optimizers.

    g_k    <- w - w_k                          each learner's update, as a gradient in float32
    g, a'  <- aggregator.next(a, g_k, n_k)     the rule: zeroing, clipping, noise, compression, sums of integers
    w', s' <- optimizer.next(s, w, g)          the server's step

All floats are aggregated, BatchNorm's statistics too. Counters take the largest value, as everywhere. The states a and
s are an object in the store, so that any machine can work through a round.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fedpipe import weights
from fedpipe.aggregation import Combined
from fedpipe.aggregation.arithmetic import is_float, largest
from fedpipe.errors import CorruptError, NotFoundError, StepError, WeightsError
from fedpipe.federation.algorithms import AdaptiveNoise, Averaging, FixedNoise, Secure, SecureNoise, TreeNoise
from fedpipe.federation.federation import Federation
from fedpipe.federation.names import tag_of
from fedpipe.learners.user_code import described
from fedpipe.rounds.closing import source_of
from fedpipe.rounds.history import record_layout
from fedpipe.rounds.manifests import Record, Update
from fedpipe.rounds.plan import Plan
from fedpipe.rounds.updates import fetch_weights
from fedpipe.store import Store
from fedpipe.store.objects import decode, encode, fetch_file
from fedpipe.tff.aggregators import Specs, make_factory
from fedpipe.tff.algorithms import flat_metrics
from fedpipe.tff.optimizers import make_optimizer
from fedpipe.tff.runtime import federated
from fedpipe.tff.state import named_leaves, state_of
from fedpipe.weights import Layout

log = logging.getLogger("fedpipe")

Array = npt.NDArray[Any]
_SLOT = "tff"
"""The record's name for the state."""

CAUTIONS: dict[type, str] = {
    Secure: "the sums are made in the clear: this step sees every update (docs/aggregation.md)",
    SecureNoise: "noise and sums are made in this step, which sees every update before that (docs/aggregation.md)",
    FixedNoise: "the noise is added in this step, which sees every update before that (docs/aggregation.md)",
    AdaptiveNoise: "the noise is added in this step, which sees every update before that (docs/aggregation.md)",
    TreeNoise: "the noise is added in this step, which sees every update before that (docs/aggregation.md)",
}
"""Warnings for the step's log about the limits of TFF's runtime, by rule."""


class Aggregation(NamedTuple):
    """A rule and a server optimizer, compiled for a layout.

    `initialize()` returns both states. `next(state, start, updates, weights)` returns the next states, the next floats,
    and measurements.
    """

    initialize: Callable[[], Any]
    next: Callable[[Any, list[Array], list[list[Array]], list[float]], tuple[Any, list[Array], dict[str, float]]]


def combine(store: Store, plan: Plan, previous: Record, updates: list[Update], folder: Path) -> Combined:
    """Combine updates by TFF; an invalid update is refused, and nothing of it remains in the result.

    Args:
        store: the federation's store.
        plan: the run's plan, with a rule of `engine: tff`.
        previous: the record before, with the state to continue from.
        updates: the updates of the round, sorted by learner.
        folder: for the result's files. All updates are held in memory, as float32.

    Raises:
        WeightsError: no update could be used, or the result is not finite.
        StepError: TFF failed.
    """
    federation = plan.federation
    algorithm = federation.algorithm
    assert isinstance(algorithm, Averaging)
    if caution := CAUTIONS.get(type(algorithm.rule)):
        log.warning("%s: %s", tag_of(algorithm.rule), caution)
    fetch_file(store, previous.weights, folder / "base")
    base = weights.load(folder / "base")
    start = {name: value.astype(np.float32) for name, value in base.items() if is_float(value.dtype)}
    given = _read(store, record_layout(store, previous), start, updates, folder)
    shares = [float(source_of(plan, update).weight) for update in updates if update.learner in given.gradients]
    made = make_aggregation(federation, [(str(w.dtype), w.shape) for w in start.values()])
    state = _resumed(store, previous, made.initialize(), folder)
    try:
        state, after, measured = made.next(state, list(start.values()), list(given.gradients.values()), shares)
    except Exception as error:
        raise StepError(f"TensorFlow Federated cannot combine the updates: {described(error)}") from error
    if measured.get("finalizer/update_non_finite"):
        raise WeightsError("the aggregate is not finite although every update is: lower the learning rates")
    floats = {name: value.astype(base[name].dtype) for name, value in zip(start, after, strict=True)}
    weights.check_finite(floats)
    return Combined(
        weights=(folder / "weights", weights.save(base | floats | given.counters, folder / "weights")),
        state={_SLOT: (folder / "state", weights.save(named_leaves(state), folder / "state"))},
        accepted=tuple(sorted(given.gradients)),
        refused=given.refused,
        measured=measured,
    )


class _Given(NamedTuple):
    """A round's updates: float32 gradients by learner, the largest counters, and refused learners with the reason."""

    gradients: dict[str, list[Array]]
    counters: dict[str, Array]
    refused: dict[str, str]


def _read(store: Store, layout: Layout, start: dict[str, Array], updates: list[Update], folder: Path) -> _Given:
    given = _Given({}, {}, {})
    for update in updates:
        try:
            fetch_weights(store, update.weights, layout, folder / "update", update.learner)
        except (WeightsError, CorruptError, NotFoundError) as error:
            given.refused[update.learner] = error.what
            continue
        arrays = weights.load(folder / "update")
        given.gradients[update.learner] = [w - arrays[name].astype(np.float32) for name, w in start.items()]
        for name in arrays.keys() - start.keys():
            given.counters[name] = largest([given.counters.get(name, arrays[name]), arrays[name]])
    if not given.gradients:
        reasons = "; ".join(f"{name}: {why}" for name, why in sorted(given.refused.items()))
        raise WeightsError(f"no update can be used: {reasons}")
    return given


def _resumed(store: Store, previous: Record, state: Any, folder: Path) -> Any:
    """Return the state after the previous round; the given state when there is none."""
    digest = previous.state.get(_SLOT)
    if digest is None:
        return state
    fetch_file(store, digest, folder / "before", kind="coordinator")
    return state_of(weights.load(folder / "before"), state, where=digest)


def make_aggregation(federation: Federation, specs: Specs) -> Aggregation:
    """Return the aggregation of a federation; it is compiled once in a process.

    Args:
        federation: with its rule, weighting and server optimizer. Sums with noise are divided by the learners that a
            round asks for.
        specs: specs of the floats.

    Raises:
        StepError: TFF refuses it.
    """
    try:
        return _compiled(encode(federation.algorithm), tuple(specs), federation.learners_asked)
    except Exception as error:
        raise StepError(f"TensorFlow Federated cannot make this aggregation: {described(error)}") from error


@functools.lru_cache(maxsize=2)
def _compiled(encoded: bytes, specs: Specs, expected: int) -> Aggregation:
    tff = federated()
    algorithm = decode(encoded, Averaging, where="algorithm")
    tensors = [tff.types.TensorType(np.dtype(dtype), shape) for dtype, shape in specs]
    kind = tff.types.StructWithPythonType(tensors, list)
    weighted = algorithm.weighting == "examples"
    factory = make_factory(algorithm.rule, weighted, expected, specs)
    aggregator = factory.create(kind, tff.types.TensorType(np.float32)) if weighted else factory.create(kind)
    others = tff.types.StructWithPythonType([], tuple)
    model = tff.types.StructWithPythonType(
        [("trainable", kind), ("non_trainable", others)], tff.learning.models.ModelWeights
    )
    finalizer = tff.learning.templates.build_apply_optimizer_finalizer(
        make_optimizer(algorithm.server_optimizer), model
    )

    def initialize() -> Any:
        return aggregator.initialize(), finalizer.initialize()

    def advance(
        state: Any, start: list[Array], updates: list[list[Array]], shares: list[float]
    ) -> tuple[Any, list[Array], dict[str, float]]:
        combined = aggregator.next(state[0], updates, *([shares] if weighted else []))
        current = tff.learning.models.ModelWeights(start, ())
        stepped = finalizer.next(state[1], current, combined.result)
        measured = flat_metrics({"aggregator": combined.measurements, "finalizer": stepped.measurements})
        return (combined.state, stepped.state), [np.asarray(w) for w in stepped.result.trainable], measured

    return Aggregation(initialize, advance)
