"""Evaluations: sums that can be added over learners, and the metrics made of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated

from msgspec import Meta, Struct
from msgspec.structs import replace

from fedpipe.errors import DroppedError
from fedpipe.identity.signing import Signature
from fedpipe.rounds.choosing import best_earlier
from fedpipe.rounds.history import history
from fedpipe.rounds.manifests import Metrics, Tested
from fedpipe.rounds.measures import measure
from fedpipe.rounds.plan import Plan
from fedpipe.rounds.received import Source, cleaned, receive, usable
from fedpipe.rounds.tallies import Head, Matrix, Tally, add_tallies, mistake_in
from fedpipe.store import SMALL, Store, keys

NO_LABELS = "it holds no labels"
"""Why a party of a cut network that has features only has no score."""
EMPTY_TEST = "the test part is empty"
"""Why a learner without a test part does not count."""
MOST_OUTPUTS = 8
"""Most outputs of a model that are counted, so that a score stays small."""
_MOST_VALUES = 1_700_000
"""Most values of a score: MOST_OUTPUTS outputs with as many bins as their rankings may have."""
_MOST_LABELS = 10_000_000
"""Most numbers in a label."""

State = Annotated[float, Meta(ge=-1e30, le=1e30)]
"""A variable of a metric; bounded, so that sums over learners fit into float32."""
OutputName = Annotated[str, Meta(max_length=200)]
Reason = Annotated[str, Meta(max_length=500)]
Tallies = Annotated[dict[OutputName, Tally], Meta(max_length=MOST_OUTPUTS)]
LabelSize = Annotated[tuple[Annotated[int, Meta(ge=0)], ...], Meta(max_length=32)]
Reasons = Annotated[dict[OutputName, Reason], Meta(max_length=MOST_OUTPUTS)]


class Score(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A learner's test of a model.

    `states` holds the variables of each Keras metric (a mean's total and count, a curve's bins). They add up over
    learners, so that the federated metric is exact even where a mean of means would be wrong. `tallies` add up too: one
    for each output of the model, by name; `uncounted` has the reason for an output without one. `label_shape` is the
    shape of one label, or of each of several by name. `why` is the reason when nothing was measured. `settings` is the
    digest of the settings of the measurement. `personal` is the test of the learner's personal model, if it has one.
    """

    learner: OutputName
    weights: Annotated[str, Meta(max_length=100)]
    examples: Annotated[int, Meta(ge=0, le=2**53)] = 0
    metrics: Metrics = {}
    states: Annotated[tuple[tuple[State, ...], ...], Meta(max_length=1000)] = ()
    tallies: Tallies = {}
    uncounted: Reasons = {}
    label_shape: LabelSize | dict[OutputName, LabelSize] = ()
    why: Reason = ""
    personal: Tested | None = None
    settings: Annotated[str, Meta(max_length=100)] = ""
    signature: Signature | None = None


class Measured(Struct, frozen=True, kw_only=True):
    """Loss and compiled metrics of a model over so many examples, and the measures that fedpipe makes of tallies."""

    examples: int
    metrics: dict[str, float]
    measures: dict[str, float] = {}


class Choice(Struct, frozen=True, kw_only=True):
    """The choice between the last model of a run and the best of its earlier rounds.

    `round` is that of the chosen model. `values` are the metric's by round, as the learners that tested both have it.
    `last` are the learners' tests of the last model.
    """

    metric: str
    over: str
    round: int
    values: dict[str, float] = {}
    last: dict[str, Measured] = {}


class Evaluation(Struct, frozen=True, kw_only=True):
    """The final model: on the central test set, and over the learners' test parts; and the digest of the settings.

    `last` is the digest of the last model, if `choice` was made between it and an earlier one.
    `tallies` are those of `central` and `federated`, by output. `uncounted` has reasons by learner, or `central`, and
    output. `personal` are the learners' own models.
    `classes` are the names of the first output's classes, `confusion` is its confusion matrix.
    """

    weights: str
    central: Measured | None = None
    federated: Measured | None = None
    learners: dict[str, Measured] = {}
    personal: dict[str, Measured] = {}
    left_out: dict[str, str] = {}
    confusion: Matrix = ()
    classes: tuple[str, ...] = ()
    settings: str = ""
    tallies: dict[str, dict[str, Tally]] = {}
    uncounted: dict[str, dict[str, str]] = {}
    last: str = ""
    choice: Choice | None = None


def tests_in(evaluation: Evaluation) -> dict[str, Tested]:
    """Return each learner's test of the model."""
    return {
        name: Tested(examples=measured.examples, metrics=measured.metrics)
        for name, measured in evaluation.learners.items()
    }


def find_score(store: Store, learner: str, run: str, *, earlier: bool = False) -> Score | None:
    """Return a learner's score, of the last model or of an earlier one, or None. Raises DroppedError."""
    return receive(_source(store, learner, run, earlier=earlier), Score, learner=learner)


def own_score(store: Store, learner: str, run: str, *, earlier: bool = False) -> Score | None:
    """Return this learner's score; None also if it cannot be used, so that it is measured again."""
    return usable(_source(store, learner, run, earlier=earlier), Score, learner=learner)


def _source(store: Store, learner: str, run: str, *, earlier: bool) -> Source:
    return Source(store, run, keys.score(learner, run, earlier=earlier), "score", SMALL, _MOST_VALUES)


def earlier_model(store: Store, plan: Plan) -> str:
    """Return the digest of the best earlier model, with which the last one is compared; empty if there is none."""
    exported = plan.federation.exported
    if exported is None or exported.choose != "best":
        return ""
    found = best_earlier(history(store, plan.run), plan.federation)
    return found.weights if found else ""


def is_scored(store: Store, plan: Plan, learner: str, weights: str, earlier: str = "") -> bool:
    """Return whether a learner has tested weights with the plan's settings, and those of an earlier round if any."""
    wanted = [(weights, own_score(store, learner, plan.run))]
    if earlier:
        wanted.append((earlier, own_score(store, learner, plan.run, earlier=True)))
    return all(s and _lasts(s, plan) and (s.weights, s.settings) == (digest, plan.measuring) for digest, s in wanted)


def _lasts(score: Score, plan: Plan) -> bool:
    """Return whether another test would give the same: it succeeded, or the learner's shard has nothing to test."""
    return not score.why or (score.why == EMPTY_TEST and not plan.federation.learner(score.learner).brings_data)


def read_scores(
    store: Store, run: str, learners: Sequence[str], check: Callable[[Score], None] = lambda _: None, *,
    earlier: bool = False,
) -> list[Score]:  # fmt: skip
    """Return the scores of all learners; none when learners tested nothing, as in a simulation.

    `check` raises DroppedError for one that does not count. `earlier` scores are of the best earlier model.
    """
    scores: dict[str, Score | None] = {}
    for learner in learners:
        try:
            found = find_score(store, learner, run, earlier=earlier)
            if found:
                check(found)
            scores[learner] = found and _cleaned(found)
        except DroppedError as error:
            scores[learner] = Score(learner=learner, weights="", why=error.what[:500])
    if not any(scores.values()):
        return []
    return [score or Score(learner=name, weights="", why="no score") for name, score in scores.items()]


def _cleaned(score: Score) -> Score:
    """Return a score whose texts can be shown."""
    uncounted = {cleaned(name): cleaned(why) for name, why in score.uncounted.items()}
    return replace(score, why=cleaned(score.why), uncounted=uncounted)


def mistake_in_score(score: Score, heads: Sequence[Head]) -> str:
    """Return why another party's score cannot be right; empty if it may be.

    Args:
        score: of the right weights.
        heads: the outputs of the model.
    """
    if not score.examples:
        return "the score has no examples"
    shapes = list(score.label_shape.values()) if isinstance(score.label_shape, dict) else [score.label_shape]
    if sum(map(math.prod, shapes)) > _MOST_LABELS or max(map(len, shapes), default=0) > 32 or len(shapes) > 1000:
        return "the labels of the score are too large"
    by_name = {head.name: head for head in heads}
    for name, tally in score.tallies.items():
        if name not in by_name:
            return "the score is of an unknown output"
        if mistake := mistake_in(tally, by_name[name], score.examples):
            return f"the score contradicts itself: {mistake}"
    return ""


def add_all_tallies(parts: Sequence[Mapping[str, Tally]]) -> dict[str, Tally]:
    """Return the tallies of all examples together, for the outputs that each part has counted."""
    names = [name for name in (parts[0] if parts else ()) if all(name in part for part in parts)]
    sums = {name: add_tallies([part[name] for part in parts]) for name in names}
    return {name: total for name, total in sums.items() if total is not None}


def measure_all(tallies: Mapping[str, Tally]) -> dict[str, float]:
    """Return the measures of all outputs; with several outputs, their names come first, as in Keras."""
    return {
        f"{name}_{key}" if name else key: value
        for name, tally in tallies.items()
        for key, value in measure(tally).items()
    }
