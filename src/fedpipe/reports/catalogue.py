"""Lists the runs of a federation: those that have ended from one object, however many there are.

    catalogue    a line for each ended run; moves by compare-and-swap, and is only a copy: it may be removed

The report, the last step of a run, adds its line. A listing adds the lines that it had to read itself, if it may write.
A run that begins again removes its line. Runs without a line are read from their own objects.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from msgspec import Struct
from msgspec.structs import replace

from fedpipe.errors import CorruptError, FedpipeError, NotFoundError
from fedpipe.rounds.history import read_head, read_record
from fedpipe.rounds.manifests import Record
from fedpipe.rounds.plan import read_plan
from fedpipe.sessions.board import poll_board
from fedpipe.store import Store, keys
from fedpipe.store.objects import decode, encode, find

_READERS = 16
_TRIES = 20
_RUNNING, _UNREADABLE = "running", "unreadable"
_FEW = 20
"""Most runs whose folders are listed one by one."""


class RunLine(NamedTuple):
    """Summarises a run in one line.

    `rounds` counts committed rounds. `planned` is None if the plan cannot be read. `metrics` are those of the last
    accepted round. `state` is `running`, `ended`, `unreadable`, or why the session ended early. `age` is in seconds
    since the last commit. `at_head` is whether this run made HEAD.
    """

    name: str
    rounds: int
    planned: int | None
    state: str
    metrics: dict[str, float]
    age: float
    at_head: bool


class _Line(Struct, frozen=True, kw_only=True):
    """The line of an ended run; `committed` is the time of its last commit, in seconds since 1970."""

    rounds: int
    planned: int | None
    state: str
    metrics: dict[str, float]
    committed: float


class _Catalogue(Struct, frozen=True, kw_only=True):
    """The lines of ended runs, by their names."""

    format: int = 1
    runs: dict[str, _Line] = {}


_Change = Callable[[dict[str, _Line]], dict[str, _Line]]


def list_runs(store: Store) -> list[RunLine]:
    """Lists all runs that have started, the latest first; one that cannot be read says so in its state."""
    at_head = _run_at_head(store)
    names = store.below(keys.RUNS).folders()
    known = _read(store)[0].runs
    found = _lines(store, [name for name in names if name not in known])
    ended = {name: line for name, line in found.items() if not line.state.startswith((_RUNNING, _UNREADABLE))}
    if ended or known.keys() - set(names):
        with contextlib.suppress(FedpipeError):  # a reader that may not write
            _change(store, lambda runs: {n: line for n, line in {**ended, **runs}.items() if n in names})
    now, all_lines = time.time(), {**found, **{name: line for name, line in known.items() if name in names}}
    lines = [
        RunLine(name, one.rounds, one.planned, one.state, one.metrics, max(0.0, now - one.committed), name == at_head)
        for name, one in all_lines.items()
    ]
    return sorted(lines, key=lambda line: (line.age, line.name))


def _run_at_head(store: Store) -> str:
    try:
        head = read_head(store)
    except CorruptError:
        return ""
    return head[0].run if head else ""


def add_line(store: Store, run: str) -> None:
    """Adds the line of a run that has ended, or replaces it. Raises StoreError."""
    if lines := _lines(store, [run]):
        _change(store, lambda runs: {**runs, **lines})


def drop_line(store: Store, run: str) -> None:
    """Removes the line of a run that begins again. Raises StoreError."""
    if run in _read(store)[0].runs:
        _change(store, lambda runs: {name: line for name, line in runs.items() if name != run})


def _read(store: Store) -> tuple[_Catalogue, str | None]:
    """Returns the catalogue and its version; an empty one where it is missing or malformed, as it is only a copy."""
    try:
        blob = store.read(keys.CATALOGUE)
    except NotFoundError:
        return _Catalogue(), None
    try:
        return decode(blob.data, _Catalogue, where=keys.CATALOGUE), blob.version
    except CorruptError:
        return _Catalogue(), blob.version


def _change(store: Store, change: _Change) -> None:
    for _ in range(_TRIES):
        current, version = _read(store)
        data = encode(replace(current, runs=change(current.runs)))
        if store.create(keys.CATALOGUE, data) if version is None else store.swap(keys.CATALOGUE, data, version):
            return


def _lines(store: Store, names: Sequence[str]) -> dict[str, _Line]:
    """Reads runs from their own objects; those that have not begun are left out.

    Few are listed one by one, many by one listing of all runs.
    """
    folders = [keys.run_folder(name) for name in names] if len(names) <= _FEW else [f"{keys.RUNS}/"]
    entries = {entry.key: entry for folder in folders for entry in store.entries(folder)}
    if not entries:
        return {}
    latest = max(entries.values(), key=lambda entry: entry.written)
    ago = latest.written + (store.age(latest.key) or 0.0) - time.time()  # the clock of the store minus this one
    begun = {name: _last_round(name, entries) for name in names if keys.record(name, 0) in entries}

    def line(name: str) -> _Line:
        record, state = None, ""
        try:
            record = read_record(store, name, begun[name])
            state = _state(store, name, entries)
        except CorruptError:
            state = f"{_UNREADABLE}: see fedpipe repair"
        return _Line(
            rounds=begun[name],
            planned=_planned_rounds(store, record) if record else None,
            state=state,
            metrics=_accepted_metrics(store, record) if record else {},
            committed=entries[keys.record(name, begun[name])].written - ago,
        )

    with ThreadPoolExecutor(_READERS) as readers:
        return dict(zip(begun, readers.map(line, begun), strict=True))


def _accepted_metrics(store: Store, record: Record) -> dict[str, float]:
    """Returns the metrics of the run's last accepted round: those of a rejected proposal are not its model's."""
    found: Record | None = record
    while found is not None and not found.accepted and found.round:
        found = read_record(store, found.run, found.round - 1)
    return found.metrics if found else {}


def _last_round(name: str, found: Mapping[str, object]) -> int:
    last = 0
    while keys.record(name, last + 1) in found:
        last += 1
    return last


def _planned_rounds(store: Store, record: Record) -> int | None:
    try:
        return read_plan(store, record.plan).federation.training.rounds
    except (CorruptError, NotFoundError):  # a plan of another version of fedpipe
        return None


def _state(store: Store, name: str, found: Mapping[str, object]) -> str:
    board = poll_board(store, name) if keys.board(name) in found else None
    if board and board[0].ending not in ("", "done"):
        return str(board[0].ending).replace("_", " ")
    if keys.summary(name) not in found and keys.pruned(name) not in found:
        return _RUNNING
    note = find(store, keys.onnx(name), dict) if keys.onnx(name) in found else None
    return "ended, not published" if note and "rejected" in note else "ended"
