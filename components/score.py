"""Tests the final model on a learner's own data."""

from kfp import dsl

from fedpipe.components.container import container


@dsl.container_component
def score(score: dsl.OutputPath(str), place: dict, learner: str, weights: str):
    """Tests the final model on a learner's test part; only sums leave the learner.

    Args:
        place: Location of the run.
        learner: Name of the learner.
        weights: Digest of the weights to test.
        score: Digest of the score, or `dropped`.
    """
    return container("score")
