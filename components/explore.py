"""Shows what the learners hold."""

from kfp import dsl

from fedpipe.components.container import container


@dsl.container_component
def explore(page: dsl.Output[dsl.HTML], table: dsl.Output[dsl.Markdown], place: dict, shards: dict, federation: str):
    """Shows labels, pictures and features of each learner's shard, and how much learners differ.

    Args:
        place: Where the run is.
        shards: Digests of the shards.
        federation: The federation file as JSON text.
        page: The page with pictures.
        table: Its table.
    """
    return container("explore")
