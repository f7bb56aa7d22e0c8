"""A pipeline with the component `aggregate`."""

from kfp import dsl

from fedpipe import components


@dsl.pipeline(name="aggregate-example")
def example(place: dict, round: int, base: str):
    """Runs `aggregate` with its own defaults."""
    components.aggregate(place=place, round=round, base=base)
