"""Combines a round's updates and commits the round."""

from kfp import dsl

from fedpipe.components.container import container


@dsl.container_component
def aggregate(
    model: dsl.Output[dsl.Model],
    weights: dsl.OutputPath(str),
    place: dict,
    round: int,
    base: str,
    updates: list = [],
):
    """Combines the valid updates of a round into the next global weights and commits the round.

    Args:
        place: Location of the run.
        round: Number of the round, from 1.
        base: Digest of the weights at the start of the round.
        updates: Outputs `update` of the learners' steps.
        weights: Digest of the next global weights.
        model: The global model of the round, with its metrics.
    """
    return container("aggregate")
