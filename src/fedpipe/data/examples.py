"""Reads and checks examples: features and labels, from files and stores."""

from __future__ import annotations

import re
import tempfile
import zipfile
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt

from fedpipe.data.client_files import HDF5, SQLITE, read_keyed
from fedpipe.data.schema import Column
from fedpipe.data.sheets import unsupported
from fedpipe.data.tables import TABLES, check_named, keys_of, label_values, read_columns, read_npz, read_table
from fedpipe.data.trees import Tree, are_strings, joined, leaves, length_of, mapped, tree_of
from fedpipe.errors import DataError, NotFoundError, one_line
from fedpipe.federation.data import AUTO, SHEETS, Kind
from fedpipe.store import Store, is_uri, open_store, path_of
from fedpipe.store.userinfo import check_no_credentials

Array = npt.NDArray[Any]
_MOST_CLASSES = 1000
"""Most whole-number labels that count as classes; with more, they count as a quantity."""
_LOOK = 10.0
"""Seconds for a look at a dataset that is not read."""


@dataclass(frozen=True, eq=False)
class Examples:
    """Holds features and labels, each an array (examples, ...) or a dict of such arrays, and weights (examples,).

    A table as it was read has `columns`: its labels may be names of classes, until `data/settling.py` settles them.
    """

    x: Tree
    y: Tree
    weight: Array | None = None
    columns: tuple[Column, ...] = ()

    @property
    def count(self) -> int:
        """Returns the number of examples."""
        return length_of(self.y)

    def rows(self, index: Any) -> Examples:
        """Returns the examples with these indices, or of this slice."""
        weight = None if self.weight is None else self.weight[index]
        x, y = (mapped(lambda leaf: leaf[index], tree) for tree in (self.x, self.y))
        return Examples(x, y, weight, self.columns)


def examples_joined(parts: Sequence[Examples]) -> Examples:
    """Returns the examples of all parts, one after another; if some have weights, the others weigh 1."""
    weighted = any(part.weight is not None for part in parts)
    weights = [np.ones(part.count, np.float32) if part.weight is None else part.weight for part in parts]
    return Examples(
        joined([part.x for part in parts]), joined([part.y for part in parts]),
        np.concatenate(weights) if weighted else None, parts[0].columns,
    )  # fmt: skip


def first_labels(y: Tree) -> Array:
    """Returns the only labels, or the first of several outputs; schemes and counts use these."""
    return next(leaf for _, leaf in leaves(y))


FORMATS = (".npz", *SHEETS, *HDF5, *SQLITE)
"""Suffixes of the supported files."""


def read_examples(
    uri: str, *, features: str | Mapping[str, Kind], labels: str, key: str = "", split: str = "",
    ignore: Collection[str] = (), narrowed: bool = False,
) -> tuple[Examples, Array | None]:  # fmt: skip
    """Reads a dataset.

    Args:
        uri: a file of FORMATS: a path, `file://...` or `s3://bucket/key`.
        features: of a table `auto`, or the kinds of columns by name. Otherwise the array of the features; in CSV and
            Parquet a list column, or all other number columns if it is empty or `x`.
        labels: array or column of the labels.
        key: array or column of keys, if needed; `client` in HDF5 and SQLite.
        split: split of a SQLite file with several.
        ignore: columns that `auto` leaves out.
        narrowed: whether some of these may be missing, because the owner has removed them.

    Returns:
        The examples, and the keys or None.

    Raises:
        DataError: the file cannot be read, lacks an array, is empty, or its arrays do not fit together.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = local_file(uri, Path(folder))
        if features == AUTO or not isinstance(features, str):
            if path.suffix.lower() not in (*TABLES, *HDF5, *SQLITE):
                raise unsupported(path, TABLES)
            if path.suffix.lower() not in TABLES:
                what = "the format has no columns with kinds"
                remedy = f"Use one of {', '.join(TABLES)}, or set data.features to an array."
                raise DataError(what, where=uri, remedy=remedy)
            table = read_table(path, features, labels, key=key, ignore=ignore, narrowed=narrowed)
            return Examples(table.x, table.y, columns=table.columns), table.keys
        arrays = _read_arrays(path, features, labels, key, split)
    return _check_arrays(arrays, uri, features, labels, key)


def local_file(uri: str, folder: Path) -> Path:
    """Returns the path of a dataset, downloaded to a folder if it is in a store. Raises DataError and StoreError."""
    check_no_credentials(uri, "data")
    if not is_uri(uri) or uri.startswith("file://"):
        return path_of(uri)
    store, name = _located(uri)
    try:
        store.download(name, folder / name)
    except NotFoundError as error:
        raise _missing(uri) from error
    return folder / name


def size_of_dataset(uri: str) -> int:
    """Returns the bytes of a dataset in a store. Raises DataError when there is none, and StoreError."""
    store, name = _located(uri, deadline=_LOOK)
    size = store.size(name)
    if size is None:
        raise _missing(uri)
    return size


def _located(uri: str, deadline: float | None = None) -> tuple[Store, str]:
    """Returns the store that has a dataset, and its key there."""
    check_no_credentials(uri, "data")
    parts = urlsplit(uri)
    parent, _, name = parts.path.rpartition("/")
    if not name:
        raise DataError("the URI names no file", where=uri, remedy="Write s3://bucket/key.npz.")
    return open_store(parts._replace(path=parent).geturl(), deadline=deadline), name


def _missing(uri: str) -> DataError:
    return DataError("there is no such dataset", where=uri, remedy="Check the URI. To upload it, run: fedpipe put FILE")


def _read_arrays(path: Path, features: str, labels: str, key: str, split: str) -> dict[str, Array]:
    try:
        if path.suffix == ".npz":
            return read_npz(path, (features, labels, key))
        if path.suffix.lower() in SHEETS:
            return _read_columns(path, features, labels, key)
        if path.suffix in FORMATS:
            return read_keyed(path, (features, labels), split=split)
    except FileNotFoundError as error:
        raise DataError("there is no such dataset", where=str(path), remedy="Check data.uri.") from error
    except (OSError, ValueError, TypeError, KeyError, EOFError, zipfile.BadZipFile, MemoryError) as error:
        what = f"the dataset cannot be read, because {one_line(error)}"
        raise DataError(what, where=str(path), remedy="Check how it was written.") from error
    raise unsupported(path, FORMATS)


def _read_columns(path: Path, features: str, labels: str, key: str) -> dict[str, Array]:
    """Returns the columns of a sheet as arrays: a list column, or all other columns as one matrix of numbers."""
    sheet = read_columns(path, known=(labels,))
    check_named(sheet, [labels], "data.labels")
    columns = {labels: label_values(sheet, labels)}
    if key:
        check_named(sheet, [key], "data.shards.column")
        columns[key] = keys_of(sheet, key)
    if features in sheet.names:
        return {**columns, features: stacked(sheet.cells(features), features, str(path))}
    if features not in ("", DEFAULT_FEATURES):
        check_named(sheet, [features], "data.features")
    others = [name for name in sheet.names if name not in (labels, key)]
    if not others:
        raise DataError("there is no column of features", where=str(path), remedy="Check data.labels.")
    numbers = np.stack([complete(sheet.parse(name, "number"), name, str(path)) for name in others], axis=1)
    return {**columns, features: numbers}


DEFAULT_FEATURES = "x"


def stacked(cells: Sequence[Any], name: str, where: str) -> Array:
    """Returns a column of lists as one array."""
    if (row := next((row for row, cell in enumerate(cells) if _size(cell) != _size(cells[0])), None)) is not None:
        remedy = "Give every row a list of the same length."
        raise DataError(f"{name!r} has lists of different lengths, first in row {row + 1}", where=where, remedy=remedy)
    stacked = np.array(cells)
    if stacked.dtype.kind not in "biuf":
        what = f"{name!r} does not hold numbers only"
        raise DataError(what, where=where, remedy="Set data.features to auto, or to the kinds of columns by name.")
    return stacked


def _size(cell: Any) -> int:
    return len(cell) if isinstance(cell, list) else -1


_FILLED_IN = "Set data.features to auto: the model then fills missing values in. Or remove the row."


def complete(values: Array, name: str, where: str, remedy: str = _FILLED_IN) -> Array:
    """Checks that no value is missing. Raises DataError."""
    if (missing := np.flatnonzero(np.isnan(values))).size:
        raise DataError(
            f"the column {name!r} has a missing value in row {missing[0] + 1}",
            where=where,
            remedy=remedy,
        )
    return values


def _check_arrays(
    arrays: Mapping[str, Array], uri: str, features: str, labels: str, key: str
) -> tuple[Examples, Array | None]:
    for name, option in ((features, "data.features"), (labels, "data.labels"), (key, "data.shards.column")):
        if name and name not in arrays:
            raise DataError(
                f"there is no array {name!r}",
                where=uri,
                remedy=f"Set {option} to one of the file's arrays or columns.",
            )
    x, y = tree_of(arrays[features], "features", uri), tree_of(arrays[labels], "labels", uri)
    check_examples(x, y, uri)
    keys = arrays[key] if key else None
    if keys is not None and keys.shape != (length_of(y),):
        remedy = "Give each example one key."
        raise DataError(f"{key!r} does not have one key per example", where=uri, remedy=remedy)
    return Examples(x, y), keys


def check_examples(x: Tree, y: Tree, where: str, weight: Array | None = None) -> None:
    """Checks that features, labels and weights fit together: finite numbers or strings, of one length, not empty.

    NaN is allowed in a matrix named `numbers`, where it means a missing value.

    Raises:
        DataError: the first flaw, with its row.
    """
    for what, tree in (("features", x), ("labels", y)):
        for name, array in leaves(tree):
            check_values(array, f"{what} {name!r}" if name else what, where, missing=name == "numbers")
            if len(array) != length_of(y):
                raise DataError(
                    f"there are {len(array)} {what} {f'in {name!r} ' if name else ''}but {length_of(y)} labels",
                    where=where,
                    remedy="Give each example one label.",
                )
    if not length_of(y):
        raise DataError("the dataset is empty", where=where, remedy="Check how the file was written.")
    if weight is not None:
        if weight.shape != (length_of(y),) or weight.dtype.kind not in "biuf":
            raise DataError("the sample weights are not one number per example", where=where)
        if not np.isfinite(weight).all() or (weight < 0).any():
            raise DataError("the sample weights are not all finite and at least 0", where=where)


def check_values(array: Array, what: str, where: str, *, missing: bool) -> None:
    """Checks that an array holds finite numbers or strings. Raises DataError."""
    if array.ndim == 0 or (array.dtype.kind not in "biuf" and not are_strings(array)):
        remedy = "Convert them, or leave out other columns."
        raise DataError(f"the {what} are neither numbers nor text (dtype {array.dtype})", where=where, remedy=remedy)
    if array.dtype.kind == "f" and array.dtype.itemsize > 8:
        remedy = "Convert them to float32, for example with .astype('float32')."
        raise DataError(f"the {what} have dtype {array.dtype}, which no model takes", where=where, remedy=remedy)
    if array.dtype.kind == "f" and not missing and not np.isfinite(array).all():
        row = int(np.argwhere(~np.isfinite(array))[0][0])
        raise DataError(
            f"the {what} contain NaN or infinity, first in row {row + 1}",
            where=where,
            remedy="Remove or replace such values before.",
        )
    if array.dtype == np.float64 and array.size and not missing and max(array.max(), -array.min()) > _LARGEST:
        row = int(np.argwhere(np.abs(array) > _LARGEST)[0][0])
        raise DataError(
            f"the {what} are too large for a model, first in row {row + 1}",
            where=where,
            remedy="Scale them, for example to thousands.",
        )


_LARGEST = np.finfo(np.float32).max
"""The largest number that a model takes."""


def classes_of(y: Array) -> Array:
    """Returns one class per example, (examples,); a vector label counts as the class of its largest entry."""
    flat = y.reshape(len(y), -1)
    return flat[:, 0] if flat.shape[1] == 1 else np.argmax(flat, axis=1)


def in_order(labels: Iterable[str]) -> list[str]:
    """Returns labels without duplicates in order: whole numbers by their value, then names.

    >>> in_order(["10", "9", "9", "none"])
    ['9', '10', 'none']
    """
    return sorted(set(labels), key=lambda text: (0, int(text), "") if _DIGITS.fullmatch(text) else (1, 0, text))


_DIGITS = re.compile(r"-?[0-9]{1,18}")


def label_counts(y: Array) -> dict[str, int]:
    """Counts how often each class occurs; empty if the labels are not classes.

    >>> label_counts(np.array([1, 0, 1]))
    {'0': 1, '1': 2}
    """
    classes = classes_of(y)
    if classes.dtype == object:
        names = Counter(classes.tolist())
        return dict(sorted(names.items())) if len(names) <= _MOST_CLASSES else {}
    if not np.array_equal(classes, np.floor(classes)):
        return {}
    values, counts = np.unique(classes.astype(np.int64), return_counts=True)
    return {str(v): int(c) for v, c in zip(values, counts, strict=True)} if len(values) <= _MOST_CLASSES else {}
