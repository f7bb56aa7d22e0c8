"""Combines a round's updates by TensorFlow Federated and commits the round."""

from kfp import dsl

from fedpipe.components.container import container


@dsl.container_component
def aggregate_tff(
    model: dsl.Output[dsl.Model],
    weights: dsl.OutputPath(str),
    place: dict,
    round: int,
    base: str,
    updates: list = [],
):
    """Combines the valid updates of a round by TensorFlow Federated and commits the round.

    Args:
        place: Where the run is.
        round: Number of the round, from 1.
        base: Digest of the weights that the round began with.
        updates: What the learners' steps gave.
        weights: Digest of the next global weights.
        model: The global model of the round, with its metrics.
    """
    return container("aggregate_tff")
