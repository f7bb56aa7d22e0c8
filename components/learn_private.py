"""A learner's part of a session, with differential privacy."""

from kfp import dsl

from fedpipe.components.container import container


@dsl.container_component
def learn_private(
    metrics: dsl.Output[dsl.Metrics],
    trained: dsl.OutputPath(int),
    voted: dsl.OutputPath(int),
    place: dict,
    learner: str,
    first: int = 1,
    last: int = 0,
    job: str = "",
):
    """Trains privately (DP-SGD) and votes whenever the coordinator asks, until the session has ended.

    Args:
        place: Where the run is.
        learner: Name of the learner.
        first: First round of the session.
        last: Last round of the session; 0 is the run's.
        job: The pipeline job, which tells this session from an earlier one of the run.
        trained: How often the learner trained.
        voted: How often it voted.
        metrics: The same.
    """
    return container("learn_private")
