"""Test the final model on a learner's own test part; only sums leave it."""

from __future__ import annotations

import logging

from msgspec import Struct
from msgspec.structs import replace

from fedpipe.identity.statements import signed_by
from fedpipe.learners.dropping import dropped_by
from fedpipe.learners.score import score_learner
from fedpipe.rounds.agreement import agreed_plan
from fedpipe.rounds.evaluation import Score, own_score
from fedpipe.rounds.plan import RunPlace
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
    """Return the score when it is already there."""
    store = inputs.place.open()
    score = own_score(store, inputs.learner, inputs.place.run)
    if score is None or score.why or score.weights != inputs.weights:
        return None
    return _outputs(score) if score.settings == agreed_plan(store, inputs.place).measuring else None


def run(inputs: Inputs) -> Outputs:
    """Test once; a learner that cannot is left out, with the reason."""
    if found := find(inputs):
        return found
    store = inputs.place.open()
    plan = agreed_plan(store, inputs.place)
    try:
        score = score_learner(store, plan, inputs.learner, inputs.weights)
    except (Exception, SystemExit) as error:
        dropped = dropped_by(plan, inputs.learner, error)
        if dropped is None:
            raise
        log.warning("%s is left out of the evaluation: %s", inputs.learner, dropped.why)
        score = Score(learner=inputs.learner, weights=inputs.weights, why=dropped.why[:500])
    score = replace(score, settings=plan.measuring)
    _publish(store, inputs, score)
    return _outputs(score)


def give_up(inputs: Inputs, why: str) -> Outputs:
    """Leave the learner out of the evaluation, because its process ended."""
    score = Score(learner=inputs.learner, weights=inputs.weights, why=why)
    _publish(inputs.place.open(), inputs, score)
    return _outputs(score)


def _publish(store: Store, inputs: Inputs, score: Score) -> None:
    made = signed_by(score, inputs.learner, place=f"{inputs.place.federation}/{inputs.place.run}")
    store.replace(keys.score(inputs.learner, inputs.place.run), encode(made))


def _outputs(score: Score) -> Outputs:
    return Outputs(score="dropped" if score.why else digest_of(encode(score)))
