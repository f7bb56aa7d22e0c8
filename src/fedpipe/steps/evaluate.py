"""Evaluate the final model, centrally and over the learners' measurements."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Struct

from fedpipe.identity.enrolment import read_enrolled
from fedpipe.identity.statements import check_signed
from fedpipe.learners.party import label_model
from fedpipe.learners.score import evaluate
from fedpipe.rounds.agreement import agreed_plan
from fedpipe.rounds.choosing import Candidate, best_earlier, prefers_earlier, value_of
from fedpipe.rounds.claims import Claims
from fedpipe.rounds.evaluation import Choice, Evaluation, Score, read_scores, tests_in
from fedpipe.rounds.history import history
from fedpipe.rounds.measures import main_metrics
from fedpipe.rounds.plan import Plan, RunPlace
from fedpipe.steps.contract import Confusion, Html, MetricsArtifact
from fedpipe.steps.shown import MOST_CLASSES, page_of_confusion
from fedpipe.store import keys
from fedpipe.store.objects import encode
from fedpipe.store.objects import find as find_object


class Inputs(Struct, frozen=True, kw_only=True):
    """The weights, and the results of the learners' score steps."""

    place: RunPlace
    weights: str
    scores: list[Any] = []


class Outputs(Struct, frozen=True, kw_only=True):
    """Metrics as numbers, the digest of the weights to publish, and the confusion matrix.

    The matrix is for the UI's comparison if it has few classes, and a page.
    """

    evaluation: dict[str, Any]
    chosen: str
    metrics: MetricsArtifact
    confusion: Confusion
    matrix: Html


def find(inputs: Inputs) -> Outputs | None:
    """Return the evaluation when it is already there."""
    store = inputs.place.open()
    evaluation = find_object(store, keys.evaluation(inputs.place.run), Evaluation)
    if evaluation is None or (evaluation.last or evaluation.weights) != inputs.weights:
        return None
    return _outputs(evaluation) if evaluation.settings == agreed_plan(store, inputs.place).measuring else None


def run(inputs: Inputs) -> Outputs:
    """Evaluate once; a repeated step finds the evaluation."""
    if found := find(inputs):
        return found
    store = inputs.place.open()
    plan = agreed_plan(store, inputs.place)
    cut = plan.federation.split
    names = [cut.label_party] if cut else [learner.name for learner in plan.federation.learners]
    enrolled = read_enrolled(store)
    claims, named = Claims.of(plan, enrolled), f"{plan.federation.name}/{plan.run}"

    def check(score: Score) -> None:
        check_signed(score, enrolled, place=named)
        claims.check(score.learner, "test", score.examples)

    scores = read_scores(store, plan.run, names, check)
    model = label_model(store, plan) if cut else None
    evaluation = evaluate(store, plan, inputs.weights, scores, model)
    records = history(store, plan.run)
    if earlier := best_earlier(records, plan.federation):
        scores = read_scores(store, plan.run, names, check, earlier=True)
        number = max(record.round for record in records if record.accepted)
        evaluation = choose(plan, number, evaluation, earlier, evaluate(store, plan, earlier.weights, scores, model))
    evaluation = msgspec.structs.replace(evaluation, settings=plan.measuring)
    store.replace(keys.evaluation(plan.run), encode(evaluation))
    return _outputs(evaluation)


def choose(plan: Plan, number: int, last: Evaluation, earlier: Candidate, evaluation: Evaluation) -> Evaluation:
    """Return the evaluation of the chosen model: the last one, or the best of the rounds before.

    Args:
        plan: the run's plan.
        number: the round of the last model.
        last: evaluation of the last model.
        earlier: the best model of the rounds before.
        evaluation: its evaluation.
    """
    export = plan.federation.exported
    assert export is not None
    tests, others = tests_in(last), tests_in(evaluation)
    both = tests.keys() & others.keys()
    values = {
        earlier.round: value_of({name: others[name] for name in both}, export),
        number: value_of({name: tests[name] for name in both}, export),
    }
    chosen = evaluation if prefers_earlier(tests, others, export) else last
    choice = Choice(
        metric=export.compared, over=export.over, round=earlier.round if chosen is evaluation else number,
        values={str(each): value for each, value in values.items() if value is not None},
        last=last.learners,
    )  # fmt: skip
    return msgspec.structs.replace(chosen, last=last.weights, choice=choice)


def _outputs(evaluation: Evaluation) -> Outputs:
    found = msgspec.to_builtins(msgspec.structs.replace(evaluation, confusion=(), tallies={}))
    return Outputs(
        chosen=evaluation.weights,
        evaluation={name: value for name, value in found.items() if value is not None},  # KFP's structs have no null
        metrics=MetricsArtifact(metadata=flat_metrics(evaluation)),
        confusion=Confusion(metadata=_confusion_metadata(evaluation)),
        matrix=page_of_confusion(evaluation),
    )


def flat_metrics(evaluation: Evaluation) -> dict[str, float]:
    """Return metrics such as `central_accuracy` and `federated_loss`, as the UI shows them."""
    measured = {"central": evaluation.central, "federated": evaluation.federated}
    shown = {kind: main_metrics(m.metrics, m.measures) for kind, m in measured.items() if m}
    return {f"{kind}_{k}": v for kind, numbers in shown.items() for k, v in numbers.items()}


def _confusion_metadata(evaluation: Evaluation) -> dict[str, Any]:
    if not evaluation.confusion or len(evaluation.confusion) > MOST_CLASSES:
        return {}
    return {
        "confusionMatrix": {
            "annotationSpecs": [{"displayName": name} for name in evaluation.classes],
            "rows": [{"row": list(row)} for row in evaluation.confusion],
        }
    }
