"""A pipeline with the component `score`."""

from kfp import dsl

from fedpipe import components


@dsl.pipeline(name="score-example")
def example(place: dict, learner: str, weights: str):
    """Runs `score` with its own defaults."""
    components.score(place=place, learner=learner, weights=weights)
