"""A pipeline with the component `evaluate`."""

from kfp import dsl

from fedpipe import components


@dsl.pipeline(name="evaluate-example")
def example(place: dict, weights: str):
    """Runs `evaluate` with its own defaults."""
    components.evaluate(place=place, weights=weights)
