"""Writes a federation to start from: federation.yaml, model.py, and data."""

from __future__ import annotations

from enum import StrEnum
from importlib import resources
from pathlib import Path

from fedpipe.errors import InputError, MissingExtraError

FILES = ("federation.yaml", "model.py", "DATA.md", "digits.npz")


class Algorithm(StrEnum):
    """The algorithms for which there is a federation to start from."""

    averaging = "averaging"
    collective = "collective"


def init(folder: str | Path, algorithm: Algorithm = Algorithm.averaging, *, force: bool = False) -> tuple[str, ...]:
    """Writes a working federation.yaml, model.py and data.

    Args:
        folder: created where it is missing.
        algorithm: how the learners train together.
        force: overwrites existing files.

    Returns:
        The names of the files.

    Raises:
        InputError: a file exists and `force` is not set, or the folder cannot be written.
        MissingExtraError: scikit-learn, which holds the digits, is not installed.
    """
    folder = Path(folder)
    existing = next((name for name in FILES if (folder / name).exists()), None)
    if existing and not force:
        raise InputError(
            f"{existing} already exists", where=str(folder), remedy="Choose another folder, or use --force."
        )
    templates = resources.files("fedpipe") / "templates"
    sources = {"federation.yaml": "collective.yaml"} if algorithm == Algorithm.collective else {}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _write_digits(folder / "digits.npz")
        for name in FILES[:-1]:
            (folder / name).write_text((templates / sources.get(name, name)).read_text())
    except OSError as error:
        raise InputError(f"cannot be written: {error.strerror}", where=str(folder)) from error
    return FILES


def _write_digits(path: Path) -> None:
    import numpy as np

    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingExtraError("scikit-learn", "demo") from error
    digits = load_digits()
    np.savez_compressed(path, x=(digits.images / 16).astype(np.float32)[..., None], y=digits.target.astype(np.int64))
