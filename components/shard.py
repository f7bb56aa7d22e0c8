"""Deals the dataset out to the learners."""

from kfp import dsl

from fedpipe.components.container import container


@dsl.container_component
def shard(
    place: dsl.OutputPath(dict),
    shards: dsl.OutputPath(dict),
    federation: str,
    store: str,
    run: str,
    data: str = "",
    job: str = "",
):
    """Deals the dataset out to the learners, and returns the location of the run.

    Args:
        federation: The federation file as JSON text.
        store: URI of the store.
        run: Name of the run; derived from `job` if empty.
        data: URI of the dataset; the federation's if empty.
        job: Id of the KFP job.
        place: Location of the run, which every later step takes.
        shards: Digests of the shards and of the central test set.
    """
    return container("shard")
