"""Wires federated averaging, one step per learner and round.

Algorithm (McMahan et al. 2017, "FederatedAveraging"), unrolled:

    shard the data; initialise w_0
    for each round t = 1, 2, ...:
        for each learner k in parallel:  w_t^k <- train(k, w_{t-1})
        w_t <- aggregate(w_t^1, ..., w_t^K)
        if learners vote:  w_t <- w_{t-1} unless enough of them approve of w_t
    each learner scores w_T on its own test part; evaluate; export
"""

from typing import Any

from fedpipe.federation.algorithms import Averaging
from fedpipe.federation.federation import Federation
from fedpipe.federation.names import tag_of
from fedpipe.pipelines.frame import component, decide, framed, score_start, train
from fedpipe.pipelines.placement import place_coordinator


def federated_averaging(federation: Federation, federation_json: str, code: str) -> Any:
    """Builds the pipeline of a federation.

    Args:
        federation: The federation, for its learners, rounds and placements.
        federation_json: The federation as JSON for the steps.
        code: The text of model.py.
    """
    rounds, learners = federation.training.rounds, federation.learners

    def learn(place: Any, weights: Any, _: dict[str, Any]) -> Any:
        start = score_start(federation, place, weights) if federation.vote else []
        for number in range(1, rounds + 1):
            updates = []
            for learner in learners:
                trained = train(federation, learner, place, number, weights, "train")
                updates.append(trained.outputs["update"])
            combined = component(federation, "aggregate")(place=place, round=number, base=weights, updates=updates)
            place_coordinator(combined, federation, f"{number} aggregate")
            candidate = combined.outputs["weights"]
            weights = decide(federation, place, number, weights, candidate, "", start) if federation.vote else candidate
        return weights

    assert isinstance(federation.algorithm, Averaging)
    voted = ", each put to the vote" if federation.vote else ""
    rule = tag_of(federation.algorithm.rule)
    described = f"Federated averaging: {len(learners)} learners, {rounds} rounds, {rule}{voted}."
    return framed(federation, federation_json, code, described, learn)
