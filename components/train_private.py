"""A learner's part of a round, with differential privacy."""

from kfp import dsl

from fedpipe.components.container import container


@dsl.container_component
def train_private(
    metrics: dsl.Output[dsl.Metrics],
    update: dsl.OutputPath(str),
    weights: dsl.OutputPath(str),
    place: dict,
    learner: str,
    round: int,
    base: str,
):
    """Trains one learner with DP-SGD and publishes its update; one whose budget is spent is dropped.

    Args:
        place: Where the run is.
        learner: Name of the learner.
        round: Number of the round, from 1.
        base: Digest of the global weights to begin with.
        update: Digest of the update's manifest, or `dropped`.
        weights: Digest of the update's weights; empty when it is dropped.
        metrics: Epsilon that is spent so far.
    """
    return container("train_private")
