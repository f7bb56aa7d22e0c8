"""Rehearses the rounds on one machine."""

from kfp import dsl

from fedpipe.components.container import container


@dsl.container_component
def simulate(
    model: dsl.Output[dsl.Model],
    weights: dsl.OutputPath(str),
    rounds: dsl.OutputPath(int),
    place: dict,
    base: str,
    process: str = "",
    tff_model: str = "",
):
    """Rehearses the federation's rounds on one machine, with TensorFlow Federated.

    Args:
        place: Where the run is.
        base: Digest of the weights with which the rounds begin.
        process: Text of the file of `simulation.process`.
        tff_model: Text of the file of `simulation.model`.
        weights: Digest of the weights after the last round.
        rounds: How many rounds of the run are committed.
        model: The global model after the last round, with its metrics.
    """
    return container("simulate")
