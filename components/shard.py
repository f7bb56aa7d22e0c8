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
    """Deals the dataset out to the learners and says where the run is.

    Args:
        federation: The federation file as JSON text.
        store: URI of the store.
        run: Name of the run; when empty, it is made from `job`.
        data: URI of the dataset; when empty, the federation's.
        job: The KFP job's id.
        place: Where the run is: what every later step takes.
        shards: Digests of the shards and of the central test set.
    """
    return container("shard")
