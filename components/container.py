"""Builds the containers of all components."""

import contextlib
import functools
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

from kfp import dsl

from fedpipe.federation.environments import ENVIRONMENTS
from fedpipe.version import __version__

REGISTRY = "fedpipe"
_CHOSEN: ContextVar[str] = ContextVar("environment", default="")


def image(environment: str) -> str:
    """Returns the image of an environment, which compilation replaces by `images` of the federation file."""
    return f"{REGISTRY}/{environment}:{__version__}"


def container(step: str) -> dsl.ContainerSpec:
    """Returns the container of `fedpipe step NAME '{{$}}'`; KFP's backend identifies a component by its command."""
    return dsl.ContainerSpec(
        image=image(_CHOSEN.get() or ENVIRONMENTS[step]),
        command=["fedpipe", "step", step],
        args=[dsl.PIPELINE_TASK_EXECUTOR_INPUT_PLACEHOLDER],
    )


@functools.cache
def in_environment(component: Any, environment: str) -> Any:
    """Returns a component that runs in another environment, such as `train` in `tff` for private training.

    Args:
        component: one of `fedpipe.components`.
        environment: the name of a folder of `images/`.
    """
    if f"/{environment}:" in component.component_spec.implementation.container.image:
        return component
    with _chosen(environment):
        return dsl.container_component(component.pipeline_func)


@contextlib.contextmanager
def _chosen(environment: str) -> Iterator[None]:
    token = _CHOSEN.set(environment)
    try:
        yield
    finally:
        _CHOSEN.reset(token)
