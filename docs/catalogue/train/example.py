"""A pipeline with the component `train`."""

from kfp import dsl

from fedpipe import components


@dsl.pipeline(name="train-example")
def example(place: dict, learner: str, round: int, base: str):
    """Runs `train` with its own defaults."""
    components.train(place=place, learner=learner, round=round, base=base)
