"""Evaluate the final model, centrally and over the learners' measurements."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Struct

from fedpipe.identity.enrolment import read_enrolled
from fedpipe.identity.statements import check_signed
from fedpipe.learners.score import evaluate
from fedpipe.rounds.agreement import agreed_plan
from fedpipe.rounds.claims import Claims
from fedpipe.rounds.evaluation import Evaluation, Score, read_scores
from fedpipe.rounds.measures import main_metrics
from fedpipe.rounds.plan import RunPlace
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
    """Metrics as numbers, and the confusion matrix: for the UI's comparison if it has few classes, and as a page."""

    evaluation: dict[str, Any]
    metrics: MetricsArtifact
    confusion: Confusion
    matrix: Html


def find(inputs: Inputs) -> Outputs | None:
    """Return the evaluation when it is already there."""
    store = inputs.place.open()
    evaluation = find_object(store, keys.evaluation(inputs.place.run), Evaluation)
    if evaluation is None or evaluation.weights != inputs.weights:
        return None
    return _outputs(evaluation) if evaluation.settings == agreed_plan(store, inputs.place).measuring else None


def run(inputs: Inputs) -> Outputs:
    """Evaluate once; a repeated step finds the evaluation."""
    if found := find(inputs):
        return found
    store = inputs.place.open()
    plan = agreed_plan(store, inputs.place)
    names = [learner.name for learner in plan.federation.learners]
    enrolled = read_enrolled(store)
    claims, named = Claims(plan.sizes, enrolled), f"{plan.federation.name}/{plan.run}"

    def check(score: Score) -> None:
        check_signed(score, enrolled, place=named)
        claims.check(score.learner, "test", score.examples)

    evaluation = evaluate(store, plan, inputs.weights, read_scores(store, plan.run, names, check))
    evaluation = msgspec.structs.replace(evaluation, settings=plan.measuring)
    store.replace(keys.evaluation(plan.run), encode(evaluation))
    return _outputs(evaluation)


def _outputs(evaluation: Evaluation) -> Outputs:
    return Outputs(
        evaluation=msgspec.to_builtins(msgspec.structs.replace(evaluation, confusion=(), tallies={})),
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
