"""Casts a learner's ballot."""

from kfp import dsl

from fedpipe.components.container import container


@dsl.container_component
def vote(
    metrics: dsl.Output[dsl.Metrics],
    ballot: dsl.OutputPath(str),
    place: dict,
    learner: str,
    round: int,
    base: str,
    candidate: str = "",
    owner: str = "",
):
    """Scores a candidate on one learner's vote part and casts its ballot; a learner that cannot vote is absent.

    Args:
        place: Location of the run.
        learner: Name of the learner.
        round: Number of the round; in round 0, the base is scored.
        base: Digest of the global weights at the start of the round.
        candidate: Digest of the weights to vote on; empty without a proposal.
        owner: The learner that proposed them; empty for aggregated weights.
        ballot: `yes`, `no`, `absent` or `none`.
        metrics: Scores of the candidate.
    """
    return container("vote")
