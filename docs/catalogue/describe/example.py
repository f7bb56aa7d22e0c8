"""A pipeline with the component `describe`."""

from kfp import dsl

from fedpipe import components


@dsl.pipeline(name="describe-example")
def example(place: dict, shards: dict, federation: str, code: str):
    """Runs `describe` with its own defaults."""
    components.describe(place=place, shards=shards, federation=federation, code=code)
