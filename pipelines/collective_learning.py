"""Wires collective learning, one step per learner and round.

Algorithm (Fetch.ai's colearn), unrolled:

    shard the data; initialise w_0; each learner scores w_0
    for each round t = 1, 2, ...:
        the proposer p = (t - 1) mod K:  v_t <- train(p, w_{t-1})
        for each learner k in parallel:  yes if v_t is strictly better than w_{t-1} on k's vote part
        tally:  w_t <- v_t if enough approve, else w_{t-1}
    each learner scores w_T on its own test part; evaluate; export
"""

from typing import Any

from fedpipe.federation.federation import Federation
from fedpipe.pipelines.frame import decide, framed, score_start, train
from fedpipe.rounds.voting import proposer_of


def collective_learning(federation: Federation, federation_json: str, code: str) -> Any:
    """Builds the pipeline of a federation.

    Args:
        federation: The federation, for its learners, rounds and placements.
        federation_json: The federation as JSON for the steps.
        code: The text of model.py.
    """
    rounds, vote = federation.training.rounds, federation.vote
    assert vote is not None

    def learn(place: Any, weights: Any, _: dict[str, Any]) -> Any:
        start = score_start(federation, place, weights)
        for number in range(1, rounds + 1):
            proposer = federation.learner(proposer_of(federation.proposers, number))
            proposed = train(federation, proposer, place, number, weights, "propose")
            weights = decide(federation, place, number, weights, proposed.outputs["weights"], proposer.name, start)
        return weights

    described = f"Collective learning: {len(federation.learners)} learners, {rounds} rounds, {vote.rule}."
    return framed(federation, federation_json, code, described, learn)
