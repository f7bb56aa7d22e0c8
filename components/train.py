"""Trains a learner in a round."""

from kfp import dsl

from fedpipe.components.container import container


@dsl.container_component
def train(
    metrics: dsl.Output[dsl.Metrics],
    update: dsl.OutputPath(str),
    weights: dsl.OutputPath(str),
    place: dict,
    learner: str,
    round: int,
    base: str,
):
    """Trains one learner from the global weights and publishes its update; a learner that cannot train is dropped.

    Args:
        place: Location of the run.
        learner: Name of the learner.
        round: Number of the round, from 1.
        base: Digest of the global weights at the start of the round.
        update: Digest of the update's manifest, or `dropped`.
        weights: Digest of the update's weights; empty if the learner is dropped.
        metrics: Metrics of the training.
    """
    return container("train")
