"""Rehearses the rounds on one machine."""

from kfp import dsl

from fedpipe.components.container import container


@dsl.container_component
def simulate(
    model: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
    page: dsl.Output[dsl.HTML],
    weights: dsl.OutputPath(str),
    rounds: dsl.OutputPath(int),
    place: dict,
    base: str,
    process: str = "",
    tff_model: str = "",
):
    """Rehearses the federation's rounds on one machine, with TensorFlow Federated.

    Args:
        place: Location of the run.
        base: Digest of the weights at the start of the first round.
        process: Text of the file of `simulation.process`.
        tff_model: Text of the file of `simulation.model`.
        weights: Digest of the weights after the last round.
        rounds: Number of committed rounds of the run.
        model: The global model after the last round, with its metrics.
        metrics: Its training, rounds, learners, examples and privacy, to compare runs.
        page: The curves of the run so far, and the commands that follow it.
    """
    return container("simulate")
