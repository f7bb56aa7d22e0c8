"""A learner tests the final model on its own test part; only sums leave."""

from __future__ import annotations

import logging

from msgspec import Struct

from fedpipe.errors import CorruptError, DataError, ModelError
from fedpipe.evaluation import Score, score_key
from fedpipe.objects import digest_of, encode
from fedpipe.plan import Place, read_plan

log = logging.getLogger("fedpipe")


class Inputs(Struct, frozen=True, kw_only=True):
    """Who tests which weights."""

    place: Place
    learner: str
    weights: str


class Outputs(Struct, frozen=True, kw_only=True):
    """Digest of the score, or `dropped`."""

    score: str


def run(inputs: Inputs) -> Outputs:
    """Tests once; a learner that cannot is left out, with the reason."""
    store = inputs.place.open()
    plan = read_plan(store, inputs.place.plan)
    from fedpipe.evaluation import find_score
    from fedpipe.keras_evaluation import score_learner

    score = find_score(store, inputs.learner, plan.run)
    if score is None or score.weights != inputs.weights:
        try:
            score = score_learner(store, plan, inputs.learner, inputs.weights)
        except (DataError, ModelError, CorruptError) as error:
            log.warning("%s is left out of the evaluation: %s", inputs.learner, error)
            score = Score(learner=inputs.learner, weights=inputs.weights, why=error.what)
        store.replace(score_key(inputs.learner, plan.run), encode(score))
    return Outputs(score="dropped" if score.why else digest_of(encode(score)))
