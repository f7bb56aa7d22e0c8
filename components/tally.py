"""Counts the ballots of a round and commits it."""

from kfp import dsl

from fedpipe.components.container import container


@dsl.container_component
def tally(
    model: dsl.Output[dsl.Model],
    weights: dsl.OutputPath(str),
    place: dict,
    round: int,
    base: str,
    ballots: list = [],
):
    """Counts the ballots: the candidate becomes the shared model, or nothing changes; commits the round.

    Args:
        place: Where the run is.
        round: Number of the round, from 1.
        base: Digest of the weights that the round began with.
        ballots: What the learners' vote steps gave.
        weights: Digest of the global weights after the vote.
        model: The global model of the round, and how the vote ended.
    """
    return container("tally")
