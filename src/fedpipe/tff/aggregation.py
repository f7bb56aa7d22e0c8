"""Applies TFF's aggregation processes and server optimizers to updates from the store.

    g_k    <- w - w_k                          each learner's update, as a gradient in float32
    g, a'  <- aggregator.next(a, g_k, n_k)     the rule: zeroing, clipping, noise, compression, sums of integers
    w', s' <- optimizer.next(s, w, g)          the server's step

All floats are aggregated this way, including BatchNorm's statistics. Counters take the largest value, as everywhere.
The states a and s are an object in the store, so that any machine can compute a round.
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fedpipe import weights
from fedpipe.aggregation import Combined
from fedpipe.aggregation.arithmetic import is_float, largest
from fedpipe.aggregation.norms import capped, outliers, square_of
from fedpipe.aggregation.passes import is_bounded, most_after
from fedpipe.errors import CorruptError, NotFoundError, StepError, WeightsError
from fedpipe.federation.algorithms import AdaptiveNoise, Averaging, FixedNoise, Secure, SecureNoise, TreeNoise
from fedpipe.federation.federation import Federation
from fedpipe.federation.names import tag_of
from fedpipe.learners.user_code import described
from fedpipe.rounds.closing import bounds_of, source_of
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
_ZERO = np.zeros(())
_STATE_NAME = "tff"
"""The name of the state in the record."""

CAUTIONS: dict[type, str] = {
    Secure: "the sums are computed in the clear: this step sees every update (docs/aggregation.md)",
    SecureNoise: "noise and sums are computed in this step, which sees every update first (docs/aggregation.md)",
    FixedNoise: "the noise is added in this step, which sees every update first (docs/aggregation.md)",
    AdaptiveNoise: "the noise is added in this step, which sees every update first (docs/aggregation.md)",
    TreeNoise: "the noise is added in this step, which sees every update first (docs/aggregation.md)",
}
"""Maps rules to the limits of their protection by TFF's runtime, for the step's log."""


class Aggregation(NamedTuple):
    """Holds a rule and a server optimizer, compiled for a layout.

    `initialize()` returns both states; `next(state, start, updates, weights)` returns the next states, the next
    floats, and measurements.
    """

    initialize: Callable[[], Any]
    next: Callable[[Any, list[Array], list[list[Array]], list[float]], tuple[Any, list[Array], dict[str, float]]]


def combine(store: Store, plan: Plan, previous: Record, updates: list[Update], folder: Path) -> Combined:
    """Combines updates with TFF; an invalid update is refused, and does not affect the result.

    Args:
        store: the federation's folder of the store.
        plan: the run's plan, with a rule of `engine: tff`.
        previous: the previous record, with the state to continue from.
        updates: updates of the round.
        folder: folder for the files of the result. All updates are held in memory, as float32.

    Raises:
        WeightsError: no update is valid, or the result is not finite.
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
    given = _read(store, record_layout(store, previous), base, start, updates, folder)
    _refuse_outliers(given, bounds_of(plan).norm, start, {u.learner: source_of(plan, u).steps for u in updates})
    aggregation = make_aggregation(federation, [(str(w.dtype), w.shape) for w in start.values()])
    before = _load_state(store, previous, aggregation.initialize(), folder)
    while True:
        shares = [float(source_of(plan, update).weight) for update in updates if update.learner in given.gradients]
        shares = capped(shares, bounds_of(plan).share)
        try:
            state, after, measured = aggregation.next(
                before, list(start.values()), list(given.gradients.values()), shares
            )
        except Exception as error:
            raise StepError(f"TensorFlow Federated cannot combine the updates: {described(error)}") from error
        floats = {name: value.astype(base[name].dtype) for name, value in zip(start, after, strict=True)}
        if not measured.get("finalizer/update_non_finite") and all(np.isfinite(v).all() for v in floats.values()):
            break
        _refuse_largest(given)
    held = list(given.counters.values())
    counters = {name: largest([each[name] for each in held]) for name in held[0]}
    return Combined(
        weights=(folder / "weights", weights.save(base | floats | counters, folder / "weights")),
        state={_STATE_NAME: (folder / "state", weights.save(named_leaves(state), folder / "state"))},
        accepted=tuple(sorted(given.gradients)),
        refused=given.refused,
        measured=measured,
    )


class _Updates(NamedTuple):
    """Holds a round's updates: float32 gradients and counters by learner, and reasons of refused updates."""

    gradients: dict[str, list[Array]]
    counters: dict[str, dict[str, Array]]
    refused: dict[str, str]


def _read(
    store: Store,
    layout: Layout,
    base: Mapping[str, Array],
    start: dict[str, Array],
    updates: list[Update],
    folder: Path,
) -> _Updates:
    given = _Updates({}, {}, {})
    for update in updates:
        try:
            fetch_weights(store, update.weights, layout, folder / "update", update.learner, run=update.run)
        except (WeightsError, CorruptError, NotFoundError) as error:
            given.refused[update.learner] = error.what
            continue
        arrays = weights.load(folder / "update")
        with np.errstate(over="ignore"):
            gradient = [w - arrays[name].astype(np.float32) for name, w in start.items()]
        if not all(np.isfinite(part).all() for part in gradient):
            given.refused[update.learner] = "the weights are too large for float32"
            continue
        counters = {name: arrays[name] for name in arrays.keys() - start.keys()}
        if any(is_bounded(v.dtype) and (v > most_after(base[name])).any() for name, v in counters.items()):
            given.refused[update.learner] = "a counter of the weights has leapt"
            continue
        given.gradients[update.learner], given.counters[update.learner] = gradient, counters
    if not given.gradients:
        reasons = "; ".join(f"{name}: {why}" for name, why in sorted(given.refused.items()))
        raise WeightsError(f"no update can be used: {reasons}")
    return given


def _refuse_outliers(given: _Updates, limit: float, start: Mapping[str, Array], steps: Mapping[str, int]) -> None:
    """Refuses the updates whose change is far larger than that of the others."""
    norms = {name: _norm(found) for name, found in given.gradients.items()}
    for name, why in outliers(norms, limit, within=_norm(start.values()), steps=steps).items():
        del given.gradients[name], given.counters[name]
        given.refused[name] = why


def _norm(arrays: Iterable[Array]) -> float:
    return math.sqrt(sum(square_of(array, _ZERO) for array in arrays))


def _refuse_largest(given: _Updates) -> None:
    """Refuses the updates because of which the aggregate is not finite: those with the largest values.

    Raises:
        WeightsError: no other update is left.
    """
    sizes = {
        name: max((float(np.abs(part).max()) for part in gradient if part.size), default=0.0)
        for name, gradient in given.gradients.items()
    }
    culprits = [name for name, size in sizes.items() if size >= max(sizes.values()) / 2]
    if len(culprits) == len(sizes):
        raise WeightsError("the aggregate is not finite, although every update is", remedy="Lower the learning rates.")
    for name in culprits:
        del given.gradients[name], given.counters[name]
        given.refused[name] = "the weights are so large that the aggregate is not finite"


def _load_state(store: Store, previous: Record, initial: Any, folder: Path) -> Any:
    """Returns the state after the previous round, or the initial state without one."""
    digest = previous.state.get(_STATE_NAME)
    if digest is None:
        return initial
    fetch_file(store, digest, folder / "before", kind="coordinator")
    return state_of(weights.load(folder / "before"), initial, where=digest)


def make_aggregation(federation: Federation, specs: Specs) -> Aggregation:
    """Compiles the aggregation of a federation, once in a process.

    Args:
        federation: the federation, with its rule, weighting and server optimizer. Sums with noise are divided by the
            number of learners that a round requests.
        specs: dtypes and shapes of the floats.

    Raises:
        StepError: TFF refuses it.
    """
    try:
        return _compile(encode(federation.algorithm), tuple(specs), federation.learners_asked)
    except Exception as error:
        raise StepError(f"TensorFlow Federated cannot compile this aggregation: {described(error)}") from error


@functools.lru_cache(maxsize=2)
def _compile(encoded: bytes, specs: Specs, expected: int) -> Aggregation:
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
