"""A pipeline with the component `simulate`."""

from kfp import dsl

from fedpipe import components


@dsl.pipeline(name="simulate-example")
def example(place: dict, base: str):
    """Runs `simulate` with its own defaults."""
    components.simulate(place=place, base=base)
