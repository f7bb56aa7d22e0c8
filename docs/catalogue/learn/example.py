"""A pipeline with the component `learn`."""

from kfp import dsl

from fedpipe import components


@dsl.pipeline(name="learn-example")
def example(learner: str):
    """Runs `learn` with its own defaults."""
    components.learn(learner=learner)
