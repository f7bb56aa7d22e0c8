"""A pipeline with the component `initialise`."""

from kfp import dsl

from fedpipe import components


@dsl.pipeline(name="initialise-example")
def example(federation: str, code: str):
    """Runs `initialise` with its own defaults."""
    components.initialise(federation=federation, code=code)
