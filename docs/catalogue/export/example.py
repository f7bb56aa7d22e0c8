"""A pipeline with the component `export`."""

from kfp import dsl

from fedpipe import components


@dsl.pipeline(name="export-example")
def example(place: dict, weights: str):
    """Runs `export` with its own defaults."""
    components.export(place=place, weights=weights)
