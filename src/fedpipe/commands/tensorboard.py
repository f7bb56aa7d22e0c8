"""Copies a run's event files from the store, and shows them in TensorBoard."""

from __future__ import annotations

import contextlib
import logging
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

from fedpipe.commands.opened import StoreGiven, find_run, open_federation
from fedpipe.errors import DroppedError, InputError, NotFoundError
from fedpipe.federation.sources import Source
from fedpipe.frameworks import find_python
from fedpipe.rounds.plan import read_plan
from fedpipe.rounds.received import Source as Received
from fedpipe.rounds.received import cleaned, guarded
from fedpipe.store import Store, keys

_LARGEST = 64 * 2**20
"""Bytes of an event file; learners write them, so larger ones are not copied."""
_MOST = 2**30
"""Bytes of all event files of a learner in a run."""
_PIECE = 2**20
log = logging.getLogger("fedpipe")
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

    One that cannot be read is left out, as learners write them; so are those beyond _MOST bytes of a learner.

    Raises:
        NotFoundError: there is no such run.
        InputError: the folder cannot be written.
    """
    count, sizes = 0, Counter[str]()
    for key, path in find_events(store, run):
        there, owner = folder / path, path.parts[0]
        source, most = Received(store, run, key, "event file"), min(_LARGEST, _MOST - sizes[owner])
        try:
            size = guarded(source, partial(store.size, key))
            if size is None or size > most:
                raise DroppedError(f"it has {size} bytes, and {most} are copied" if size else "it was removed")
            is_there = there.is_file() and there.stat().st_size == size
            if not is_there and guarded(source, partial(_copy, store, key, there, most)) is None:
                raise DroppedError("it was removed")
        except DroppedError as error:
            log.warning("the event file %s is left out: %s", key, cleaned(error.what))
            continue
        except OSError as error:
            raise InputError(f"cannot be written: {error.strerror}", where=str(there)) from error
        count += 1
        sizes[owner] += size
    return count


def _copy(store: Store, key: str, there: Path, most: int) -> Path:
    """Copies an object that its writer may replace meanwhile. Raises DroppedError if it has become too large."""
    there.parent.mkdir(parents=True, exist_ok=True)
    temporary = there.with_name(f".{there.name}.part")
    with contextlib.closing(store.open(key)) as reader:
        if reader.size > most:
            raise DroppedError(f"it has {reader.size} bytes, and {most} are copied")
        left = reader.size
        with temporary.open("wb") as file:
            while left and (piece := reader.read(min(_PIECE, left))):
                file.write(piece)
                left -= len(piece)
    return temporary.replace(there)


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
