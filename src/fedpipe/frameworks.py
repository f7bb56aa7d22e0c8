"""Import heavy frameworks when they are first used, and find the Pythons and cores that there are."""

from __future__ import annotations

import contextlib
import functools
import gc
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fedpipe.errors import InputError, MissingExtraError, one_line
from fedpipe.version import __version__


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Pause garbage collection, which takes a tenth of the frameworks' import time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextlib.contextmanager
def hidden(package: str) -> Iterator[None]:
    """Hide a package that others import only if it is installed; one that is imported already stays."""
    if package in sys.modules:
        yield
        return
    sys.modules[package] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[package]


@functools.cache
def frameworks() -> tuple[Any, Any]:
    """Import TensorFlow and Keras, without their log lines. Raises MissingExtraError.

    Keras has wrappers of its models for scikit-learn, whose import takes a quarter of the time and which no federation
    uses. For them, it is not installed.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    with uncollected(), hidden("sklearn"):
        try:
            import tensorflow
        except ImportError as error:
            raise MissingExtraError("TensorFlow", "keras") from error
        import keras
    gc.freeze()  # a collection of their objects takes 0.3 s, and copies the memory that forked processes share
    return tensorflow, keras


def find_python(environment: str) -> Path:
    """Return the Python of another environment: from `FEDPIPE_TFF_PYTHON`, or in `.venv-tff` next to this one.

    A custom learner's is found by `FEDPIPE_CUSTOM_PYTHON` or in `.venv-custom`; without either, it is this Python.

    Raises:
        InputError: there is none, or it has no fedpipe of this version.
    """
    variable = f"FEDPIPE_{environment.upper()}_PYTHON"
    named, custom = os.environ.get(variable, ""), environment == "custom"
    path = Path(named) if named else Path(sys.prefix).parent / f".venv-{environment}" / "bin" / "python"
    if custom and not named and not path.is_file():
        return Path(sys.executable)
    if not path.is_file():
        setup = "" if custom else f"Run `make setup-{environment}`, or s"
        raise InputError(
            f"the {environment} environment is not set up: there is no {path}",
            remedy=f"{setup or 'S'}et {variable} to a Python that has fedpipe"
            + (" and your packages." if custom else f"[{environment}]."),
        )
    if custom:
        _check_version(path)
    return path


@functools.cache
def _check_version(python: Path) -> None:
    """Check that another Python has fedpipe in this version. Raises InputError."""
    command = [str(python), "-c", "from fedpipe.version import __version__; print(__version__)"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)  # noqa: S603
        found, flaw = done.stdout.strip(), one_line(done.stderr.strip().rpartition("\n")[2])
    except (OSError, subprocess.TimeoutExpired) as error:
        found, flaw = "", one_line(error)
    if found != __version__:
        what = f"has fedpipe {found}, not {__version__}" if found else f"cannot run fedpipe, because {flaw}"
        raise InputError(f"{python} {what}", remedy=f"Install fedpipe {__version__} there, next to your packages.")


def cores() -> int:
    """Return the number of cores that this process may use, by its affinity and its container's limit.

    Source: the Linux kernel's documentation, cgroup-v2, interface file `cpu.max`.
    """
    allowed = len(os.sched_getaffinity(0))
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return allowed if quota == "max" else max(1, min(allowed, round(int(quota) / int(period))))
    except (OSError, ValueError):
        return allowed
