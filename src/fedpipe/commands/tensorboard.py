"""Copies a run's event files from the store, and shows them in TensorBoard."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from fedpipe.commands.opened import StoreGiven, find_run, open_federation
from fedpipe.errors import InputError, NotFoundError
from fedpipe.federation.sources import Source
from fedpipe.frameworks import find_python
from fedpipe.rounds.plan import read_plan
from fedpipe.store import Store, keys

_LARGEST = 64 * 2**20
"""Bytes of an event file; learners write them, so larger ones are not copied."""
_SECONDS = 5.0
"""Seconds between two looks for new files, while TensorBoard runs."""


class Events(NamedTuple):
    """An event file: its key in the store, and its path in TensorBoard's folder."""

    key: str
    path: Path


def tensorboard(
    source: Source, run: str, *, store: StoreGiven = None, host: str = "localhost", port: int = 6006
) -> int:
    """Shows a run's event files in TensorBoard until it ends.

    Args:
        source: the federation file, or its content.
        run: the run's name.
        store: a store to use instead of the federation's.
        host: the address to listen on.
        port: the port; 0 for a free one.

    Returns:
        TensorBoard's exit code.

    Raises:
        NotFoundError: there is no such run, or it has no event files.
        InputError: TensorBoard is not installed.
    """
    opened, _ = open_federation(source, store)
    with tempfile.TemporaryDirectory() as folder:
        return show(opened, run, Path(folder), host=host, port=port)


def copy_events(source: Source, run: str, folder: str | Path, *, store: StoreGiven = None) -> int:
    """Copies a run's event files to a folder; returns their number.

    Raises:
        NotFoundError: there is no such run.
        InputError: the folder cannot be written.
    """
    return fetch_events(open_federation(source, store)[0], run, Path(folder))


def find_events(store: Store, run: str) -> Iterator[Events]:
    """Finds the event files of a run: `simulation`, or a folder for each learner and round.

    Raises:
        NotFoundError: there is no such run.
    """
    record = find_run(store, run)
    run = record.run
    names = [learner.name for learner in read_plan(store, record.plan).federation.learners]
    for owner in ("", *names):
        for key in store.keys(keys.run_folder(run, owner), limit=keys.MOST_LEFT):
            if found := keys.parse_events(key, run, owner):
                number, name = found
                folder = Path(owner) / f"round-{number}" if owner else Path("simulation")
                yield Events(key, folder / name)


def fetch_events(store: Store, run: str, folder: Path) -> int:
    """Copies the event files that are new or have grown; returns the number of all files.

    Raises:
        NotFoundError: there is no such run.
        InputError: the folder cannot be written.
    """
    count = 0
    for key, path in find_events(store, run):
        size, there = store.size(key), folder / path
        if size is None or size > _LARGEST:
            continue
        count += 1
        if there.is_file() and there.stat().st_size == size:
            continue
        try:
            there.parent.mkdir(parents=True, exist_ok=True)
            store.download(key, there)
        except OSError as error:
            raise InputError(f"cannot be written: {error.strerror}", where=str(there)) from error
    return count


def find_tensorboard() -> Path:
    """Finds the program on the path, or in the tff environment. Raises InputError."""
    found = shutil.which("tensorboard")
    path = Path(found) if found else find_python("tff").parent / "tensorboard"
    if not path.is_file():
        raise InputError("TensorBoard is not installed", remedy="Run `pip install tensorboard` or `make setup-tff`.")
    return path


def show(store: Store, run: str, folder: Path, *, host: str, port: int) -> int:
    """Runs TensorBoard until it ends, and copies new files while the run is in progress.

    Returns:
        TensorBoard's exit code.

    Raises:
        NotFoundError: there is no such run, or it has no event files.
        InputError: TensorBoard is not installed.
    """
    program = find_tensorboard()
    if not fetch_events(store, run, folder):
        raise NotFoundError(
            f"run {run!r} has no event files", where=store.uri, remedy="Set training.tensorboard to true."
        )
    command = [str(program), "--logdir", str(folder), "--host", host, "--port", str(port), "--reload_interval", "5"]
    with subprocess.Popen(command) as process:  # noqa: S603  (the user's own TensorBoard)
        try:
            while True:
                try:
                    return process.wait(_SECONDS)
                except subprocess.TimeoutExpired:
                    fetch_events(store, run, folder)
        finally:
            process.terminate()
