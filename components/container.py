"""Builds the containers of all components."""

from kfp import dsl

from fedpipe.steps import STEPS
from fedpipe.version import __version__

REGISTRY = "fedpipe"


def image(environment: str) -> str:
    """Returns the image of an environment, which compilation replaces by `images` of the federation file."""
    return f"{REGISTRY}/{environment}:{__version__}"


def container(step: str) -> dsl.ContainerSpec:
    """Returns the container of `fedpipe step NAME '{{$}}'`; KFP's backend identifies a component by its command."""
    return dsl.ContainerSpec(
        image=image(STEPS[step]),
        command=["fedpipe", "step", step],
        args=[dsl.PIPELINE_TASK_EXECUTOR_INPUT_PLACEHOLDER],
    )
