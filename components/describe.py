"""Describes the tables of learners before the first round."""

from kfp import dsl

from fedpipe.components.container import container


@dsl.container_component
def describe(
    report: dsl.OutputPath(str),
    place: dict,
    shards: dict,
    federation: str,
    code: str,
    learner: str = "",
):
    """Publishes the statistics of a learner's table, without rows.

    Args:
        place: Location of the run.
        shards: Output `shards` of the shard step.
        federation: The federation file as JSON text.
        code: The text of model.py.
        learner: Name of the learner; empty for all, in a simulation.
        report: Digest of the statistics, or `head` if those of HEAD's run are used.
    """
    return container("describe")
