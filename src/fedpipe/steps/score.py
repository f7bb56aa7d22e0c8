"""Test the final model on a learner's own test part; only sums leave it."""

from __future__ import annotations

import logging

from msgspec import Struct
from msgspec.structs import replace

from fedpipe.identity.statements import signed_by
from fedpipe.learners.cut_score import score_party
from fedpipe.learners.dropping import dropped_by
from fedpipe.learners.score import score_learner
from fedpipe.rounds.agreement import agreed_plan
from fedpipe.rounds.evaluation import Score, earlier_model, is_scored, own_score
from fedpipe.rounds.floors import released_here
from fedpipe.rounds.plan import Plan, RunPlace
from fedpipe.store import Store, keys
from fedpipe.store.objects import digest_of, encode

log = logging.getLogger("fedpipe")


class Inputs(Struct, frozen=True, kw_only=True):
    """The learner, and the weights to test."""

    place: RunPlace
    learner: str
    weights: str


class Outputs(Struct, frozen=True, kw_only=True):
    """Digest of the score, or `dropped`."""

    score: str


def find(inputs: Inputs) -> Outputs | None:
    """Return the score when it is already there, and that of an earlier model if it is needed."""
    store = inputs.place.open()
    plan = agreed_plan(store, inputs.place)
    if not is_scored(store, plan, inputs.learner, inputs.weights, earlier_model(store, plan)):
        return None
    score = own_score(store, inputs.learner, plan.run)
    return _outputs(score) if score else None


def run(inputs: Inputs) -> Outputs:
    """Test once; a learner that cannot is left out, with the reason."""
    return find(inputs) or _outputs(tested(inputs, 0.0))


def tested(inputs: Inputs, patience: float) -> Score:
    """Test the weights, and those of an earlier round if needed; publish the scores, or why there is none.

    In a session, where all parties of a cut network are asked at once, the label party waits for others.
    """
    store = inputs.place.open()
    plan = agreed_plan(store, inputs.place)
    if earlier := earlier_model(store, plan):
        _publish(store, inputs, _tested(store, plan, inputs.learner, earlier, patience), earlier=True)
    score = _tested(store, plan, inputs.learner, inputs.weights, patience)
    _publish(store, inputs, score)
    return score


def _tested(store: Store, plan: Plan, learner: str, weights: str, patience: float) -> Score:
    """Return the score of weights; without numbers if the learner cannot test them, with the reason."""
    try:
        if plan.federation.split:
            score = score_party(store, plan, learner, weights, patience)
        else:
            score = score_learner(store, plan, learner, weights)
    except (Exception, SystemExit) as error:
        dropped = dropped_by(plan, learner, error)
        if dropped is None:
            raise
        log.warning("%s is left out of the evaluation: %s", learner, dropped.why)
        score = Score(learner=learner, weights=weights, why=dropped.why[:500])
    return replace(score, settings=plan.measuring)


def give_up(inputs: Inputs, why: str) -> Outputs:
    """Leave the learner out of the evaluation, because its process ended."""
    score = Score(learner=inputs.learner, weights=inputs.weights, why=why)
    _publish(inputs.place.open(), inputs, score)
    return _outputs(score)


def _publish(store: Store, inputs: Inputs, score: Score, *, earlier: bool = False) -> None:
    made = signed_by(released_here(score), inputs.learner, place=f"{inputs.place.federation}/{inputs.place.run}")
    store.replace(keys.score(inputs.learner, inputs.place.run, earlier=earlier), encode(made))


def _outputs(score: Score) -> Outputs:
    return Outputs(score="dropped" if score.why else digest_of(encode(score)))
