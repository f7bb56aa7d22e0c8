"""What the containers of all components share."""

from kfp import dsl

from fedpipe.steps import STEPS
from fedpipe.version import __version__

REGISTRY = "fedpipe"


def image(environment: str) -> str:
    """The image of an environment; `images` of the federation file replaces it when a pipeline is compiled."""
    return f"{REGISTRY}/{environment}:{__version__}"


def container(step: str) -> dsl.ContainerSpec:
    """`fedpipe step NAME '{{$}}'`: the backend tells components apart by this command, so each has its own."""
    return dsl.ContainerSpec(
        image=image(STEPS[step]),
        command=["fedpipe", "step", step],
        args=[dsl.PIPELINE_TASK_EXECUTOR_INPUT_PLACEHOLDER],
    )
