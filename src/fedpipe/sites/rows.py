"""Narrows a site's data to the columns and rows that its policy allows, before the process that trains can see them.

The narrowed copy has the format and the name of the original, so that a plan reads it as it would read the whole. A
process of its own makes it, so that the agent never holds data.
"""

from __future__ import annotations

import csv
import subprocess
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Struct

from fedpipe.codec import from_json
from fedpipe.data.sheets import Sheet
from fedpipe.data.tables import TABLES, missing_column, read_arrays, read_columns, sheet_of
from fedpipe.errors import DataError, Failure, FedpipeError, WorkerDiedError, one_line
from fedpipe.sites.policy import Condition, Policy
from fedpipe.steps.work import keyless
from fedpipe.store import is_uri, path_of
from fedpipe.store.objects import canonical

Array = npt.NDArray[Any]


class Narrowed(NamedTuple):
    """Data that a plan may see: their path or URI, and the number of rows; None if they are not counted."""

    path: str
    rows: int | None


class Done(Struct, frozen=True):
    """The output of the process that narrows the data: their narrowed copy, or an error."""

    path: str = ""
    rows: int | None = None
    failure: Failure | None = None


def prepared(policy: Policy, folder: Path) -> Narrowed:
    """Narrow a site's data in a process of its own, unless the policy allows all of them.

    Args:
        policy: of the site.
        folder: an empty folder, which the process that trains can read.

    Raises:
        DataError: a column is missing or has another kind, or there are too few rows.
        WorkerDiedError: the process ended, for lack of memory.
    """
    if not (policy.columns or policy.rows or policy.least_examples):
        return Narrowed(policy.data, None)
    command = [sys.executable, "-m", "fedpipe.sites.rows", str(folder)]
    done = subprocess.run(  # noqa: S603  (our own module)
        command, input=canonical(policy), capture_output=True, env=keyless(), check=False
    )  # fmt: skip
    try:
        made = from_json(done.stdout, Done)
    except msgspec.MsgspecError as error:
        last = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise WorkerDiedError(
            f"the process that narrows the data ended{f': {last[:200]}' if last else ''}",
            remedy="Check for lack of memory.",
        ) from error
    if made.failure is not None:
        raise made.failure.error()
    return Narrowed(made.path, made.rows)


def main() -> None:
    """Narrow the data of the policy on standard input, to the folder that is the only argument."""
    policy = from_json(sys.stdin.buffer.read(), Policy)
    try:
        made = narrowed(policy, Path(sys.argv[1]))
        done = Done(path=made.path, rows=made.rows)
    except FedpipeError as error:
        done = Done(failure=Failure.of(error))
    except OSError as error:
        what = f"the data cannot be narrowed, because {error.strerror or one_line(error)}"
        done = Done(failure=Failure("DataError", what, policy.data, "Make room on the disk."))
    sys.stdout.buffer.write(canonical(done))


def narrowed(policy: Policy, folder: Path) -> Narrowed:
    """Write the allowed part of a site's data to a folder, or return the data themselves if all are allowed.

    Args:
        policy: of the site; it names a file of this machine.
        folder: an empty folder, which the process that trains can read.

    Raises:
        DataError: a column is missing or has another kind, or there are too few rows.
    """
    path = Path(path_of(policy.data) if policy.data.startswith("file://") else policy.data)
    if (is_uri(policy.data) and not policy.data.startswith("file://")) or path.suffix.lower() not in TABLES:
        if policy.columns or policy.rows or policy.least_examples:
            what = f"columns, rows and least_examples need a file of this machine, one of {', '.join(TABLES)}"
            raise DataError(what, where=str(path), remedy="Convert the data, or remove these keys of the policy.")
        return Narrowed(policy.data, None)
    arrays = read_arrays(path) if path.suffix.lower() == ".npz" else {}
    flat = {name: values for name, values in arrays.items() if values.ndim == 1}
    sheet = sheet_of(flat, str(path)) if arrays else read_columns(path, known=tuple(policy.columns))
    _check_columns(policy, sheet, {*sheet.names, *arrays}, path)
    kept = _kept_rows(policy.rows, sheet)
    count = int(kept.sum())
    if count < policy.least_examples:
        remedy = "Add data, or lower policy.least_examples."
        what = f"there are {count} rows that the policy allows, and it needs {policy.least_examples}"
        raise DataError(what, where=str(path), remedy=remedy)
    if not policy.columns and not policy.rows:
        return Narrowed(policy.data, count)
    target = folder / path.name
    if arrays:
        allowed: dict[str, Any] = {k: values[kept] for k, values in arrays.items() if _is_allowed(policy, k)}
        np.savez(target, **allowed)
    elif path.suffix.lower() == ".parquet":
        _write_parquet(path, target, policy, kept)
    else:
        _write_csv(target, sheet, policy, kept)
    return Narrowed(str(target), count)


def _check_columns(policy: Policy, sheet: Sheet, names: Collection[str], path: Path) -> None:
    """Check that all columns of the policy exist and have its kinds. Raises DataError."""
    for name in (*policy.columns, *policy.rows):
        if name not in names:
            raise missing_column(name, sorted(names), str(path), "the policy")
    for name, kind in policy.columns.items():
        if name in sheet.names:
            sheet.parse(name, kind)  # raises the error with column, row and kind


def _kept_rows(conditions: Mapping[str, Condition], sheet: Sheet) -> Array:
    kept = np.ones(sheet.rows, dtype=bool)
    for name, condition in conditions.items():
        if condition.at_least is not None or condition.at_most is not None:
            values = sheet.parse(name, "number").astype(np.float64)
            low, high = condition.at_least, condition.at_most
            kept &= ~np.isnan(values)
            kept &= values >= (-np.inf if low is None else low)
            kept &= values <= (np.inf if high is None else high)
        if condition.one_of:
            kept &= np.isin(sheet.parse(name, "category").astype(str), condition.one_of)
    return kept


def _write_csv(target: Path, sheet: Sheet, policy: Policy, kept: Array) -> None:
    names = [name for name in sheet.names if _is_allowed(policy, name)]
    columns = [sheet.cells(name) for name in names]
    with target.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter="\t" if target.suffix.lower() == ".tsv" else ",")
        writer.writerow(names)
        writer.writerows([column[row] for column in columns] for row in np.flatnonzero(kept).tolist())


def _write_parquet(path: Path, target: Path, policy: Policy, kept: Array) -> None:
    import pyarrow
    from pyarrow import parquet

    with path.open("rb") as file:
        table = parquet.ParquetFile(file).read(use_threads=False)
    table = table.select([name for name in table.column_names if _is_allowed(policy, name)])
    parquet.write_table(table.filter(pyarrow.array(kept)), target)


def _is_allowed(policy: Policy, name: str) -> bool:
    return not policy.columns or name in policy.columns


if __name__ == "__main__":
    main()
