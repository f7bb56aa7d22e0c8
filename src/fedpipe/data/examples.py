"""Reads and checks examples: features and labels, from files and stores."""

from __future__ import annotations

import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt

from fedpipe.data.client_files import HDF5, SQLITE, read_keyed
from fedpipe.data.trees import Tree, are_strings, joined, leaves, length_of, mapped, tree_of
from fedpipe.errors import DataError, NotFoundError
from fedpipe.store import is_uri, open_store, path_of
from fedpipe.store.userinfo import check_no_credentials

Array = npt.NDArray[Any]
_MOST_CLASSES = 1000
"""Most whole-number labels that count as classes; with more, they count as a quantity."""


@dataclass(frozen=True, eq=False)
class Examples:
    """Holds features and labels, each an array (examples, ...) or a dict of such arrays, and weights (examples,)."""

    x: Tree
    y: Tree
    weight: Array | None = None

    @property
    def count(self) -> int:
        """Returns the number of examples."""
        return length_of(self.y)

    def rows(self, index: Any) -> Examples:
        """Returns the examples with these indices, or of this slice."""
        weight = None if self.weight is None else self.weight[index]
        return Examples(mapped(lambda leaf: leaf[index], self.x), mapped(lambda leaf: leaf[index], self.y), weight)


def examples_joined(parts: Sequence[Examples]) -> Examples:
    """Returns the examples of all parts, one after another; if some have weights, the others weigh 1."""
    weighted = any(part.weight is not None for part in parts)
    weights = [np.ones(part.count, np.float32) if part.weight is None else part.weight for part in parts]
    return Examples(
        joined([part.x for part in parts]), joined([part.y for part in parts]),
        np.concatenate(weights) if weighted else None,
    )  # fmt: skip


def first_labels(y: Tree) -> Array:
    """Returns the only labels, or the first of several outputs; schemes and counts use these."""
    return next(leaf for _, leaf in leaves(y))


FORMATS = (".npz", ".parquet", *HDF5, *SQLITE)
"""Suffixes of the supported files."""


def read_examples(
    uri: str, *, features: str, labels: str, key: str = "", split: str = ""
) -> tuple[Examples, Array | None]:
    """Reads a dataset.

    Args:
        uri: a file of FORMATS: a path, `file://...` or `s3://bucket/key`.
        features: array of the features; in Parquet a list column, or all other number columns if there is none.
        labels: array or column of the labels.
        key: array or column of keys, if needed; `client` in HDF5 and SQLite.
        split: split of a SQLite file with several.

    Returns:
        The examples, and the keys or None.

    Raises:
        DataError: the file cannot be read, lacks an array, is empty, or its arrays do not fit together.
    """
    with tempfile.TemporaryDirectory() as folder:
        arrays = _read_arrays(_local_file(uri, Path(folder)), features, labels, key, split)
    return _check_arrays(arrays, uri, features, labels, key)


def _local_file(uri: str, folder: Path) -> Path:
    check_no_credentials(uri, "data")
    if not is_uri(uri) or uri.startswith("file://"):
        return path_of(uri)
    parts = urlsplit(uri)
    parent, _, name = parts.path.rpartition("/")
    store = open_store(parts._replace(path=parent).geturl())
    try:
        store.download(name, folder / name)
    except NotFoundError as error:
        raise DataError("there is no such dataset", where=uri, remedy="Check data.uri.") from error
    return folder / name


def _read_arrays(path: Path, features: str, labels: str, key: str, split: str) -> dict[str, Array]:
    try:
        if path.suffix == ".npz":
            with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
                return {name: file[name] for name in file.files if name in (features, labels, key)}
        if path.suffix == ".parquet":
            return _read_parquet(path, features, labels, key)
        if path.suffix in FORMATS:
            return read_keyed(path, (features, labels), split=split)
    except FileNotFoundError as error:
        raise DataError("there is no such dataset", where=str(path), remedy="Check data.uri.") from error
    except (OSError, ValueError, TypeError, KeyError, EOFError, zipfile.BadZipFile, MemoryError) as error:
        raise DataError(f"the dataset cannot be read: {str(error)[:300]}", where=str(path)) from error
    raise DataError(
        "the dataset has an unsupported format", where=str(path), remedy=f"Use one of {', '.join(FORMATS)}."
    )


def _read_parquet(path: Path, features: str, labels: str, key: str) -> dict[str, Array]:
    from pyarrow import ArrowException, parquet  # takes 0.2 s, which .npz does not need

    try:
        table = parquet.read_table(path)
    except ArrowException as error:
        raise ValueError(str(error)) from error
    columns = {name: table.column(name).to_numpy() for name in (labels, key) if name in table.column_names}
    if features in table.column_names:
        columns[features] = np.stack(table.column(features).to_pylist()) if len(table) else np.empty((0, 1))
    else:
        others = [n for n in table.column_names if n not in (labels, key)]
        columns[features] = (
            np.stack([table.column(n).to_numpy() for n in others], axis=1) if others else np.empty((0, 0))
        )
    return columns


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
        raise DataError(f"{key!r} does not have one key per example", where=uri)
    return Examples(x, y), keys


def check_examples(x: Tree, y: Tree, where: str, weight: Array | None = None) -> None:
    """Checks that features, labels and weights fit together: finite numbers or strings, of one length, not empty.

    NaN is allowed in a matrix named `numbers`, where it means a missing value.

    Raises:
        DataError: the first flaw, with its row.
    """
    for what, tree in (("features", x), ("labels", y)):
        for name, array in leaves(tree):
            if what == "labels" and array.dtype == object:
                raise DataError("the labels are text, not numbers", where=where, remedy="Number the classes from 0.")
            _check_values(array, f"{what} {name!r}" if name else what, where, missing=name == "numbers")
            if len(array) != length_of(y):
                raise DataError(
                    f"there are {len(array)} {what} {f'in {name!r} ' if name else ''}but {length_of(y)} labels",
                    where=where,
                )
    if not length_of(y):
        raise DataError("the dataset is empty", where=where)
    if weight is not None:
        if weight.shape != (length_of(y),) or weight.dtype.kind not in "biuf":
            raise DataError("the sample weights are not one number per example", where=where)
        if not np.isfinite(weight).all() or (weight < 0).any():
            raise DataError("the sample weights are not all finite and at least 0", where=where)


def _check_values(array: Array, what: str, where: str, *, missing: bool) -> None:
    if array.ndim == 0 or (array.dtype.kind not in "biuf" and not are_strings(array)):
        raise DataError(f"the {what} are neither numbers nor text (dtype {array.dtype})", where=where)
    if array.dtype.kind == "f" and not missing and not np.isfinite(array).all():
        row = int(np.argwhere(~np.isfinite(array))[0][0])
        raise DataError(
            f"the {what} contain NaN or infinity, first in row {row + 1}",
            where=where,
            remedy="Remove or replace such values before.",
        )


def classes_of(y: Array) -> Array:
    """Returns one class per example, (examples,); a vector label counts as the class of its largest entry."""
    flat = y.reshape(len(y), -1)
    return flat[:, 0] if flat.shape[1] == 1 else np.argmax(flat, axis=1)


def label_counts(y: Array) -> dict[str, int]:
    """Counts how often each class occurs; empty if the labels are not classes.

    >>> label_counts(np.array([1, 0, 1]))
    {'0': 1, '1': 2}
    """
    classes = classes_of(y)
    if not np.array_equal(classes, np.floor(classes)):
        return {}
    values, counts = np.unique(classes.astype(np.int64), return_counts=True)
    return {str(v): int(c) for v, c in zip(values, counts, strict=True)} if len(values) <= _MOST_CLASSES else {}
