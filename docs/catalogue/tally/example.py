"""A pipeline with the component `tally`."""

from kfp import dsl

from fedpipe import components


@dsl.pipeline(name="tally-example")
def example(place: dict, round: int, base: str):
    """Runs `tally` with its own defaults."""
    components.tally(place=place, round=round, base=base)
