"""Publishes the final model as ONNX."""

from kfp import dsl

from fedpipe.components.container import container


@dsl.container_component
def export(model: dsl.Output[dsl.Model], onnx: dsl.OutputPath(dict), place: dict, weights: str):
    """Convert weights to ONNX, compare the answers with the trained model's, and publish the next version.

    Args:
        place: Where the run is.
        weights: Digest of the weights.
        onnx: Version, key, digest and the largest difference.
        model: The published model.
    """
    return container("export")
