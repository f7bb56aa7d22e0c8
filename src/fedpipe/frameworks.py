"""Import heavy frameworks when they are first used, and find the Pythons of other environments."""

from __future__ import annotations

import contextlib
import functools
import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fedpipe.errors import InputError, MissingExtraError


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


@functools.cache
def frameworks() -> tuple[Any, Any]:
    """Import TensorFlow and Keras, without their log lines. Raises MissingExtraError."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    with uncollected():
        try:
            import tensorflow
        except ImportError as error:
            raise MissingExtraError("TensorFlow", "keras") from error
        import keras

    return tensorflow, keras


def find_python(environment: str) -> Path:
    """Return the Python of another environment: from `FEDPIPE_TFF_PYTHON`, or in `.venv-tff` next to this one.

    Raises:
        InputError: there is none.
    """
    named = os.environ.get(f"FEDPIPE_{environment.upper()}_PYTHON", "")
    path = Path(named) if named else Path(sys.prefix).parent / f".venv-{environment}" / "bin" / "python"
    if path.is_file():
        return path
    raise InputError(
        f"the {environment} environment is not set up: there is no {path}",
        remedy=f"Run `make setup-{environment}`, or set FEDPIPE_{environment.upper()}_PYTHON to a Python that has "
        f"fedpipe[{environment}].",
    )
