"""A pipeline with the component `vote`."""

from kfp import dsl

from fedpipe import components


@dsl.pipeline(name="vote-example")
def example(place: dict, learner: str, round: int, base: str):
    """Runs `vote` with its own defaults."""
    components.vote(place=place, learner=learner, round=round, base=base)
