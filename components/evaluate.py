"""Evaluates the final model."""

from kfp import dsl

from fedpipe.components.container import container


@dsl.container_component
def evaluate(
    metrics: dsl.Output[dsl.Metrics],
    confusion: dsl.Output[dsl.ClassificationMetrics],
    matrix: dsl.Output[dsl.HTML],
    evaluation: dsl.OutputPath(dict),
    chosen: dsl.OutputPath(str),
    place: dict,
    weights: str,
    scores: list = [],
):
    """Evaluates the final model on the central test set, and by the learners' scores.

    Args:
        place: Location of the run.
        weights: Digest of the weights.
        scores: Outputs `score` of the learners' score steps.
        evaluation: All results.
        chosen: Digest of the weights to publish: those of the last round, or of the best one.
        metrics: The main results.
        confusion: The confusion matrix, of at most six classes: the UI would cut off a larger one.
        matrix: The confusion matrix as a page.
    """
    return container("evaluate")
