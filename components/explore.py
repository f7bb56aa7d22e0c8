"""Explores the learners' data."""

from kfp import dsl

from fedpipe.components.container import container


@dsl.container_component
def explore(page: dsl.Output[dsl.HTML], table: dsl.Output[dsl.Markdown], place: dict, shards: dict, federation: str):
    """Shows labels, pictures and features of each learner's shard, and how much learners differ.

    Args:
        place: Location of the run.
        shards: Digests of the shards.
        federation: The federation file as JSON text.
        page: The page with pictures.
        table: The table of the page.
    """
    return container("explore")
