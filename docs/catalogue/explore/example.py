"""A pipeline with the component `explore`."""

from kfp import dsl

from fedpipe import components


@dsl.pipeline(name="explore-example")
def example(place: dict, shards: dict, federation: str):
    """Runs `explore` with its own defaults."""
    components.explore(place=place, shards=shards, federation=federation)
