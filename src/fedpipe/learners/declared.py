"""Reads what a learner of any framework declares of itself: its metrics, its tasks, its inputs."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np

from fedpipe.data.ports import TEXT
from fedpipe.errors import ModelError, one_line
from fedpipe.rounds.plan import Port
from fedpipe.rounds.tallies import Task

_FILE = "model.py"


def metric_names(given: Any) -> tuple[str, ...]:
    """Return the names of the metrics that a learner measures. Raises ModelError."""
    names = ("loss",) if given is None else tuple(given) if isinstance(given, list | tuple) else (given,)
    if not all(isinstance(name, str) for name in names) or "loss" not in names or len(set(names)) != len(names):
        raise ModelError(
            f"`metrics` is {given!r}, not the names that evaluate() returns", where=_FILE,
            remedy='Write metrics = ("loss", "accuracy"), with `loss` among them.',
        )  # fmt: skip
    return names


def tasks_of(given: Any) -> list[Task]:
    """Return the task of each output that a learner names. Raises ModelError."""
    tasks = [] if given is None else list(given) if isinstance(given, list | tuple) else [given]
    for task in tasks:
        if task not in get_args(Task):
            raise ModelError(
                f"unknown task {task!r}", where=_FILE,
                remedy=f"Valid: {', '.join(name for name in get_args(Task) if name)}.",
            )  # fmt: skip
    return tasks


def ports_of(given: Any) -> tuple[Port, ...]:
    """Return the inputs that a learner names. Raises ModelError."""
    if given is None:
        return ()
    try:
        ports = tuple(Port(str(name), str(dtype), tuple(shape)) for name, dtype, shape in given)
        for port in ports:
            if port.dtype != TEXT:
                np.dtype(port.dtype)
            if not port.shape or any(size is not None and not isinstance(size, int) for size in port.shape):
                raise ValueError(f"{port.shape} is not a shape")
    except (TypeError, ValueError) as error:
        raise ModelError(
            f"`inputs` cannot be read, because {one_line(error, 200)}", where=_FILE,
            remedy='Write inputs = [("features", "float32", (None, 64))]: name, dtype, and shape with examples first.',
        ) from error  # fmt: skip
    return tuple(port._replace(shape=(None, *port.shape[1:])) for port in ports)
