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
    place: dict = {},
    federation_name: str = "",
    first: int = 1,
    last: int = 0,
    job: str = "",
    store: str = "",
    run: str = "",
    framework: str = "",
):
    """Requests updates in each round, combines them, counts votes and commits the round.

    Args:
        place: Location of the run. A step without one starts early.
        first: First round of the session.
        last: Last round of the session; 0 stands for the last round of the run.
        job: Id of the pipeline job, to distinguish this session from earlier ones of the run.
        store: URI of the store, of a step that starts early and awaits the results of initialise.
        run: Name of the run, of such a step; derived from `job` if empty.
        federation_name: Name of the federation, of such a step.
        framework: Framework that such a step imports while it waits.
        weights: Digest of the global weights after the session.
        rounds: Number of committed rounds of the run.
        model: The global model after the session, with the metrics of its last round.
        metrics: Its training, rounds, learners, examples and privacy, to compare runs.
        page: The curves of the run so far, and the commands that follow it.
    """
    return container("coordinate")
