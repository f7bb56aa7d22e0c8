"""Coordinates a session."""

from kfp import dsl

from fedpipe.components.container import container


@dsl.container_component
def coordinate(
    model: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
    page: dsl.Output[dsl.HTML],
    weights: dsl.OutputPath(str),
    rounds: dsl.OutputPath(int),
    place: dict,
    first: int = 1,
    last: int = 0,
    job: str = "",
):
    """Requests updates in each round, combines them, counts votes and commits the round.

    Args:
        place: Location of the run.
        first: First round of the session.
        last: Last round of the session; 0 stands for the last round of the run.
        job: Id of the pipeline job, to distinguish this session from earlier ones of the run.
        weights: Digest of the global weights after the session.
        rounds: Number of committed rounds of the run.
        model: The global model after the session, with the metrics of its last round.
        metrics: Its training, rounds, learners, examples and privacy, to compare runs.
        page: The curves of the run so far, and the commands that follow it.
    """
    return container("coordinate")
