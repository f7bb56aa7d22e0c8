"""A pipeline with the component `shard`."""

from kfp import dsl

from fedpipe import components


@dsl.pipeline(name="shard-example")
def example(federation: str, store: str, run: str):
    """Runs `shard` with its own defaults."""
    components.shard(federation=federation, store=store, run=run)
