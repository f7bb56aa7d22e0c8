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
    """Counts the ballots, makes an accepted candidate the shared model, and commits the round.

    Args:
        place: Location of the run.
        round: Number of the round, from 1.
        base: Digest of the weights at the start of the round.
        ballots: Outputs `ballot` of the learners' vote steps.
        weights: Digest of the global weights after the vote.
        model: The global model of the round, with the result of the vote.
    """
    return container("tally")
