"""Takes part in a session as a learner."""

from kfp import dsl

from fedpipe.components.container import container


@dsl.container_component
def learn(
    metrics: dsl.Output[dsl.Metrics],
    trained: dsl.OutputPath(int),
    voted: dsl.OutputPath(int),
    learner: str,
    place: dict = {},
    federation_name: str = "",
    first: int = 1,
    last: int = 0,
    job: str = "",
    store: str = "",
    run: str = "",
    framework: str = "",
):
    """Trains and votes on the coordinator's requests until the session ends.

    Args:
        place: Location of the run. A step without one starts early.
        learner: Name of the learner.
        first: First round of the session.
        last: Last round of the session; 0 stands for the last round of the run.
        job: Id of the pipeline job, to distinguish this session from earlier ones of the run.
        store: URI of the store, of a step that starts early and awaits the results of initialise.
        run: Name of the run, of such a step; derived from `job` if empty.
        federation_name: Name of the federation, of such a step.
        framework: Framework that such a step imports while it waits.
        trained: Number of trainings.
        voted: Number of votes.
        metrics: Its last training, and how often it trained and voted.
    """
    return container("learn")
