"""A pipeline with the component `coordinate`."""

from kfp import dsl

from fedpipe import components


@dsl.pipeline(name="coordinate-example")
def example():
    """Runs `coordinate` with its own defaults."""
    components.coordinate()
