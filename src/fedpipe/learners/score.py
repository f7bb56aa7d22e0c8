"""Evaluate the final model: each learner's sums, and the metrics of all together."""

from __future__ import annotations

import collections
import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np

from fedpipe.data.disclosure import schema_of
from fedpipe.data.trees import Tree, leaves
from fedpipe.errors import CorruptError
from fedpipe.learners.assembly import plan_model
from fedpipe.learners.downloads import fetched
from fedpipe.learners.framework import Arrays, Model
from fedpipe.learners.parts import Part, batches_of, label_shape_of, size_of
from fedpipe.learners.personal import find_personal
from fedpipe.learners.reading import central_test, learner_parts
from fedpipe.learners.tallying import Counter, counter_of
from fedpipe.rounds.evaluation import (
    EMPTY_TEST,
    MOST_OUTPUTS,
    Evaluation,
    Measured,
    Score,
    add_all_tallies,
    measure_all,
    mistake_in_score,
)  # fmt: skip
from fedpipe.rounds.floors import check_floors
from fedpipe.rounds.manifests import LARGEST, Tested, bounded
from fedpipe.rounds.plan import Plan
from fedpipe.rounds.tallies import MOST_PICTURED, ClassTally, Head, Matrix, Tally, size_of_tally
from fedpipe.store import Store
from fedpipe.store.objects import encode
from fedpipe.weights import Array

log = logging.getLogger("fedpipe")


def score_learner(store: Store, plan: Plan, name: str, digest: str) -> Score:
    """Test weights on a learner's test part.

    Args:
        store: the federation's store.
        plan: the run's plan.
        name: the learner.
        digest: of the weights.

    Raises:
        DataError, ModelError, CorruptError, DroppedError: the reason why the weights cannot be tested.
    """
    check_floors(plan, name)
    model = plan_model(store, plan)
    part = learner_parts(store, plan, name, model.module).get("test")
    if part is None or not size_of(part):
        return Score(learner=name, weights=digest, why=EMPTY_TEST)
    arrays = fetch_global(store, digest)
    score = score_part(model, plan, arrays, name, digest, part)
    personal = _personal_test(store, plan, model, name, arrays, part)
    return msgspec.structs.replace(score, personal=personal) if personal and not score.why else score


def _personal_test(store: Store, plan: Plan, model: Model, name: str, arrays: Arrays, part: Part) -> Tested | None:
    """Test a learner's personal model; None when it has none."""
    try:
        own = find_personal(store, plan, model, name)
    except CorruptError as error:  # the shared model can be tested without it
        log.warning("%s does not test its personal model: %s", name, error.what)
        return None
    if own is None:
        return None
    personal, whole = own
    measured = personal.evaluate(arrays if whole is None else whole, part, plan.federation.training)
    return Tested(examples=size_of(part), metrics=bounded(measured.metrics))


def score_part(model: Model, plan: Plan, arrays: Arrays, name: str, digest: str, part: Part) -> Score:
    """Test weights on a part of a learner's examples.

    Args:
        model: the built model.
        plan: the run's plan.
        arrays: the weights.
        name: the learner; empty for the central test set.
        digest: of the global weights.
        part: the examples.
    """
    training = plan.federation.training
    measured = model.evaluate(arrays, part, training)
    if not abs(loss := measured.metrics["loss"]) <= LARGEST:
        return Score(learner=name, weights=digest, why=f"the loss of the model is {loss} there")
    if not all(np.isfinite(state).all() for state in measured.states):
        return Score(learner=name, weights=digest, why="a metric of the model is not finite there")
    tallies, uncounted = _tallied(model, arrays, part, training.batch_size)
    return Score(
        learner=name,
        weights=digest,
        examples=size_of(part),
        metrics=bounded(measured.metrics),
        states=measured.states,
        tallies=tallies,
        uncounted=uncounted,
        label_shape=label_shape_of(part),
    )


def fetch_global(store: Store, digest: str) -> Arrays:
    """Fetch global weights from the store, verified."""
    with tempfile.TemporaryDirectory() as folder:
        return fetched(store, digest, Path(folder) / "weights")


def _tallied(model: Model, arrays: Arrays, part: Part, batch: int) -> tuple[dict[str, Tally], dict[str, str]]:
    """Count the predictions of each output, or return why they cannot be counted."""
    counters: dict[str, Counter] = {}
    reasons: dict[str, str] = {}
    predict = model.predictor(arrays)
    heads = model.heads[:MOST_OUTPUTS]
    if len(model.heads) > MOST_OUTPUTS:
        log.warning("only the first %d of %d outputs have measures", MOST_OUTPUTS, len(model.heads))
    for head in heads:
        try:
            counters[head.name] = counter_of(head)
        except ValueError as error:
            reasons[head.name] = str(error)
    for examples in batches_of(part, batch):
        outputs = predict(examples.x)
        for position, (head, output) in enumerate(zip(heads, outputs, strict=False)):
            if head.name in reasons:
                continue
            try:
                counters[head.name].add(output, _labels_of(examples.y, head.name, position))
            except ValueError as error:
                reasons[head.name] = str(error)[:300]
    found = {name: tally for name, counter in counters.items() if name not in reasons and (tally := counter.tally())}
    return found, reasons


def _labels_of(y: Tree, name: str, position: int) -> Array:
    """Return the labels of an output: by its name, by its position, or the only ones. Raises ValueError."""
    named = dict(leaves(y))
    for key in (name, str(position)):
        if key in named:
            return named[key]
    if len(named) == 1:
        return next(iter(named.values()))
    raise ValueError("it has no labels")


def evaluate(
    store: Store, plan: Plan, digest: str, scores: Sequence[Score], measured_by: Model | None = None
) -> Evaluation:
    """Evaluate the final model.

    Federated metrics come from the learners' metric states and tallies: sums first, then divided. A score that
    cannot be right leaves out its learner, and nobody else.

    Args:
        store: the federation's store.
        plan: the run's plan.
        digest: of the weights.
        scores: the learners' scores of these weights.
        measured_by: the model that was scored; by default the plan's.
    """
    model = plan_model(store, plan) if measured_by is None else measured_by
    found: dict[str, Measured] = {}
    tallies: dict[str, dict[str, Tally]] = {}
    uncounted: dict[str, dict[str, str]] = {}
    left_out: dict[str, str] = {}
    if plan.test is not None:
        examples = central_test(store, plan)
        assert examples is not None
        score = score_part(model, plan, fetch_global(store, digest), "", digest, examples)
        if score.why:
            left_out["central test set"] = score.why
        else:
            found["central"] = measured_of(score)
            tallies["central"], uncounted["central"] = score.tallies, score.uncounted
    valid, refused = _checked(model, digest, scores)
    while valid:
        together = _together(model, valid)
        if together is not None:
            found["federated"], tallies["federated"] = together
            break
        culprit = _culprit(model, valid)
        refused[culprit.learner] = "the score cannot be added to those of others"
        valid.remove(culprit)
    uncounted |= {score.learner: score.uncounted for score in valid}
    first = next((head for head in model.heads[:1]), None)
    schema, exported = schema_of(store, plan), plan.federation.exported
    names = (exported.classes if exported else (), schema.classes if schema else ())
    matrices = [_confusion(each.get(first.name)) for each in tallies.values()] if first else []
    return Evaluation(
        weights=digest,
        central=found.get("central"),
        federated=found.get("federated"),
        learners={score.learner: measured_of(score) for score in valid},
        personal={
            score.learner: Measured(examples=score.personal.examples, metrics=dict(score.personal.metrics))
            for score in valid
            if score.personal and _is_alike(score, score.personal)
        },
        left_out=left_out | refused,
        confusion=next(filter(None, matrices), ()),
        classes=class_names(first, *names) if first else (),
        tallies=tallies,
        uncounted={name: reasons for name, reasons in uncounted.items() if reasons},
    )


def _is_alike(score: Score, personal: Tested) -> bool:
    """Return whether a learner's two models are measured on the same examples, by the same metrics."""
    return personal.examples == score.examples and personal.metrics.keys() == score.metrics.keys()


def class_names(head: Head, *known: tuple[str, ...]) -> tuple[str, ...]:
    """Return the names of an output's classes, or their numbers; empty for a regression.

    Args:
        head: the output.
        known: names from several origins; the first with a name for each class counts.
    """
    for names in known:
        if len(names) == head.classes:
            return names
    return tuple(str(k) for k in range(head.classes)) if head.classes <= MOST_PICTURED else ()


def _confusion(tally: Tally | None) -> Matrix:
    return tally.confusion if isinstance(tally, ClassTally) else ()


def _checked(model: Model, digest: str, scores: Sequence[Score]) -> tuple[list[Score], dict[str, str]]:
    """Return the scores that can be added up, and why others cannot."""
    valid, refused = [], {}
    fitting = [score for score in scores if not score.why and score.weights == digest]
    shapes = collections.Counter(repr(score.label_shape) for score in fitting)
    usual = {shape for shape, count in shapes.items() if count == max(shapes.values())}
    for score in sorted(scores, key=lambda score: score.learner):
        why = score.why or ("the score belongs to other weights" if score.weights != digest else "")
        why = why or mistake_in_score(score, model.heads)
        why = why or ("" if repr(score.label_shape) in usual else "the labels of the score are unlike those of most")
        if not why:
            try:  # metrics follow from the states, which have the form that the model gives them
                metrics = model.metrics_of(_arrays(score.states), score.label_shape)
            except Exception as error:
                log.debug("the states of %s: %s", score.learner, error)
                why = "the score does not fit the model's metrics"
            else:
                why = "" if abs(metrics["loss"]) <= LARGEST else "its loss is not finite, or too large"
                score = msgspec.structs.replace(score, metrics=bounded(metrics))
        if why:
            refused[score.learner] = why
        else:
            valid.append(score)
    return valid, refused


def _arrays(states: Sequence[Sequence[float]]) -> list[Array]:
    return [np.asarray(state, np.float64) for state in states]


def measured_of(score: Score) -> Measured:
    """Return the metrics of a score."""
    measures = bounded(measure_all(score.tallies))
    return Measured(examples=score.examples, metrics=dict(score.metrics), measures=measures)


def _together(model: Model, scores: Sequence[Score]) -> tuple[Measured, dict[str, Tally]] | None:
    """Return the metrics and tallies of all learners together; None if the scores cannot be added up."""
    if not scores:
        return None
    try:
        tallies = add_all_tallies([score.tallies for score in scores])
        states = [np.sum(state, axis=0) for state in zip(*(s.states for s in scores), strict=True)]
        metrics = bounded(model.metrics_of(states, scores[0].label_shape))
        found = Measured(
            examples=sum(s.examples for s in scores), metrics=metrics, measures=bounded(measure_all(tallies))
        )
        encode(Evaluation(weights="", federated=found, tallies={"federated": tallies}))
    except Exception as error:  # each of them can be right, and some other sum of theirs is possible
        log.debug("the scores of %s together: %s", ", ".join(s.learner for s in scores), error)
        return None
    return (found, tallies) if "loss" in metrics else None


def _culprit(model: Model, scores: Sequence[Score]) -> Score:
    """Return the score that keeps others from being added up: the one without which they can be.

    The first suspect has signs unlike those of others, or the largest numbers. It is the culprit if several are.
    """
    suspects = _suspects(scores)
    for suspect in suspects[:_MOST_SUSPECTS]:
        if _together(model, [score for score in scores if score is not suspect]) is not None:
            return suspect
    return suspects[0]


_MOST_SUSPECTS = 20


def _suspects(scores: Sequence[Score]) -> list[Score]:
    def numbers(score: Score) -> Array:
        return np.array([score.examples, *(number for state in score.states for number in state)], np.float64)

    signs = {score.learner: np.sign(numbers(score)) for score in scores}

    def odd(score: Score) -> tuple[int, float]:
        own, size = signs[score.learner], signs[score.learner].size
        others = np.sum(
            [other for name, other in signs.items() if name != score.learner and other.size == size], axis=0
        )
        sizes = [np.abs(numbers(score)).max(), *map(size_of_tally, score.tallies.values())]
        return int(np.sum(own * others < 0)), float(max(sizes))

    return sorted(scores, key=odd, reverse=True)
