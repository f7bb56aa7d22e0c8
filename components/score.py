"""A learner tests the final model on its own data."""

from kfp import dsl

from fedpipe.components.container import container


@dsl.container_component
def score(score: dsl.OutputPath(str), place: dict, learner: str, weights: str):
    """Tests the final model on a learner's test part; only sums leave.

    Args:
        place: Where the run is.
        learner: Name of the learner.
        weights: Digest of the weights to test.
        score: Digest of the score, or `dropped`.
    """
    return container("score")
