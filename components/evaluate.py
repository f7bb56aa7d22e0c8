"""Evaluates the final model."""

from kfp import dsl

from fedpipe.components.container import container


@dsl.container_component
def evaluate(
    metrics: dsl.Output[dsl.Metrics],
    confusion: dsl.Output[dsl.ClassificationMetrics],
    evaluation: dsl.OutputPath(dict),
    place: dict,
    weights: str,
    scores: list = [],
):
    """Evaluates the final model on the central test set and over what the learners measured.

    Args:
        place: Where the run is.
        weights: Digest of the weights.
        scores: What the learners' score steps gave.
        evaluation: All numbers.
        metrics: The main numbers.
        confusion: The confusion matrix.
    """
    return container("evaluate")
