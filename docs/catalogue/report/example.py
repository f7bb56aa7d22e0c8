"""A pipeline with the component `report`."""

from kfp import dsl

from fedpipe import components


@dsl.pipeline(name="report-example")
def example(place: dict):
    """Runs `report` with its own defaults."""
    components.report(place=place)
