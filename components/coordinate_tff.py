"""The coordinator of a session whose rounds TensorFlow Federated aggregates."""

from kfp import dsl

from fedpipe.components.container import container


@dsl.container_component
def coordinate_tff(
    model: dsl.Output[dsl.Model],
    weights: dsl.OutputPath(str),
    rounds: dsl.OutputPath(int),
    place: dict,
    first: int = 1,
    last: int = 0,
    job: str = "",
):
    """Asks the learners round after round, has TFF combine what they offer, counts their votes and commits each round.

    Args:
        place: Where the run is.
        first: First round of the session.
        last: Last round of the session; 0 is the run's.
        job: The pipeline job, which tells this session from an earlier one of the run.
        weights: Digest of the global weights after the session.
        rounds: How many rounds of the run are committed.
        model: The global model after the session, with the metrics of its last round.
    """
    return container("coordinate_tff")
