"""Writes a federation to start from: federation.yaml, model.py, and data."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

from fedpipe.errors import InputError, MissingExtraError
from fedpipe.store.files import obstacle

_TEXTS = ("federation.yaml", "model.py", "DATA.md")
FILES = (*_TEXTS, "digits.npz")
SPLIT_FILES = (*_TEXTS, "alice.npz", "bob.npz")


class Algorithm(StrEnum):
    """The algorithms for which there is a federation to start from."""

    averaging = "averaging"
    collective = "collective"
    cut = "split"


class Framework(StrEnum):
    """The frameworks for which there is a model to start from."""

    keras = "keras"
    numpy = "numpy"


Chosen = TypeVar("Chosen", Algorithm, Framework)


def init(
    folder: str | Path, algorithm: Algorithm | str = "averaging", framework: Framework | str = "keras", *,
    tables: Sequence[str | Path] = (), label: str = "", learners: int = 0, by: str = "", force: bool = False,
) -> tuple[str, ...]:  # fmt: skip
    """Writes a working federation.yaml, model.py and data, or a federation for tables.

    Args:
        folder: created where it is missing.
        algorithm: how the learners train together.
        framework: the framework of model.py.
        tables: one table that is dealt out to learners, or one for each learner.
        label: the column of the tables to predict.
        learners: number of learners that one table is dealt out to.
        by: the column of one table whose values stay together.
        force: overwrites existing files.

    Returns:
        The names of the files.

    Raises:
        InputError: a file exists and `force` is not set, or the folder cannot be written.
        DataError: a table cannot be used.
        MissingExtraError: scikit-learn, which holds the digits, is not installed.

    >>> import fedpipe
    >>> fedpipe.init("another", framework="numpy")
    ('federation.yaml', 'model.py', 'DATA.md', 'digits.npz')
    """
    if not str(folder).strip():
        raise InputError("the folder's name is empty", remedy="Name a new or empty folder; `.` is the current one.")
    folder, algorithm, framework = Path(folder), _chosen(Algorithm, algorithm), _chosen(Framework, framework)
    if tables or label or learners or by:
        from fedpipe.commands.init_table import init_table  # imports this module

        check_table_options(tables, label, algorithm)
        return init_table(folder, tables, label, learners=learners, by=by, framework=framework, force=force).files
    is_split = algorithm == Algorithm.cut
    if is_split and framework != Framework.keras:
        raise InputError("split learning needs Keras", remedy="Leave the framework out.")
    files = SPLIT_FILES if is_split else FILES
    try:
        existing = next((name for name in files if (folder / name).exists()), None)
    except OSError as error:  # such as a name that is too long
        raise _unwritable(folder, error) from error
    if existing and not force:
        raise InputError(
            f"{existing} already exists", where=str(folder), remedy="Choose another folder, or use --force."
        )
    texts = _texts(algorithm, framework)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_digits = _write_cut_digits if is_split else _write_digits
        write_digits(folder)
        for name, text in texts.items():
            (folder / name).write_text(text)
    except OSError as error:
        raise _unwritable(folder, error) from error
    return files


def check_table_options(tables: Sequence[str | Path], label: str, algorithm: Algorithm) -> None:
    """Checks the options of a federation for tables. Raises InputError."""
    if not tables or not label:
        remedy = 'Use: fedpipe init DIR --from data.csv --label COLUMN, or fedpipe.init(..., tables=[...], label="...")'
        raise InputError("a table needs --from and --label", remedy=remedy)
    if algorithm != Algorithm.averaging:
        raise InputError("a table begins with averaging", remedy="Change `algorithm` in federation.yaml afterwards.")


def _chosen(kind: type[Chosen], name: str) -> Chosen:
    """Returns the choice of that name. Raises InputError."""
    try:
        return kind(name)
    except ValueError as error:
        remedy = f"Valid: {', '.join(kind)}."
        raise InputError(f"there is no {kind.__name__.lower()} {name!r}", remedy=remedy) from error


def _unwritable(folder: Path, error: OSError) -> InputError:
    """Return the error for a folder that cannot be written, with the file in its way when there is one."""
    what = obstacle(folder) or f"the folder cannot be written: {error.strerror}"
    return InputError(what, where=str(folder), remedy="Choose another folder, or check its permissions.")


def _texts(algorithm: Algorithm, framework: Framework) -> dict[str, str]:
    """Returns the text files by name; the framework is one word of federation.yaml, and a model.py of its own."""
    templates = resources.files("fedpipe") / "templates"
    if algorithm == Algorithm.cut:
        return {name: (templates / "split" / name).read_text() for name in _TEXTS}
    federation = templates / ("collective.yaml" if algorithm == Algorithm.collective else "federation.yaml")
    models = templates / "numpy" if framework == Framework.numpy else templates
    return {
        "federation.yaml": federation.read_text().replace("framework: keras", f"framework: {framework}"),
        "model.py": (models / "model.py").read_text(),
        "DATA.md": (templates / "DATA.md").read_text(),
    }


def write_texts(folder: Path, texts: dict[str, str], *, force: bool) -> None:
    """Writes text files into a folder, which is created where it is missing.

    Raises:
        InputError: a file exists and `force` is not set, or the folder cannot be written.
    """
    try:
        existing = next((name for name in texts if (folder / name).exists()), None)
        if existing and not force:
            raise InputError(
                f"{existing} already exists", where=str(folder), remedy="Choose another folder, or use --force."
            )
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            (folder / name).write_text(text)
    except OSError as error:
        raise _unwritable(folder, error) from error


def _digits() -> tuple[Any, Any]:
    import numpy as np

    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingExtraError("scikit-learn", "demo") from error
    digits = load_digits()
    return (digits.images / 16).astype(np.float32)[..., None], digits.target.astype(np.int64)


def _write_digits(folder: Path) -> None:
    import numpy as np

    x, y = _digits()
    np.savez_compressed(folder / "digits.npz", x=x, y=y)


def _write_cut_digits(folder: Path) -> None:
    """Writes images and labels of the same digits, each with their ids, for two parties."""
    import numpy as np

    x, y = _digits()
    ids = np.array([f"digit-{number:04d}" for number in range(len(y))])
    np.savez_compressed(folder / "alice.npz", x=x, id=ids)
    np.savez_compressed(folder / "bob.npz", y=y, id=ids)
