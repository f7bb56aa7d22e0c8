"""Reads datasets keyed by client, in the formats of TensorFlow Federated: HDF5, and SQLite of `tf.train.Example`.

    HDF5     examples/<client>/<column>: an array with one row per example
    SQLite   table examples: split_name, client_id, serialized_example_proto

Reading does not need TensorFlow. In SQLite's examples, a column is a flat list of numbers without a shape.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import sqlite3
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import numpy.typing as npt

from fedpipe.errors import DataError, one_line

Array = npt.NDArray[Any]
Clients = dict[str, dict[str, Array]]
"""Maps a client to its columns, and a column to its values, (examples, ...)."""

HDF5, SQLITE = (".h5", ".hdf5"), (".sqlite", ".sqlite3")
_EXAMPLES_OF_SPLIT = """
SELECT client_id, serialized_example_proto FROM examples WHERE split_name = ? ORDER BY client_id, rowid
"""
CLIENT = "client"
"""The name of the column of keys that `read_keyed` adds."""


def read_keyed(path: Path, columns: tuple[str, ...], *, split: str = "") -> dict[str, Array]:
    """Reads all examples of a file, client after client.

    Args:
        path: an HDF5 or SQLite file.
        columns: the columns to read; those that the file lacks are left out.
        split: split of a SQLite file; may be empty if there is only one.

    Returns:
        The columns, and the key of each example in column `client`.

    Raises:
        DataError: the file has another format, or the columns of clients do not fit together.
    """
    clients = read_clients(path, split=split, columns=columns)
    names = [name for name in columns if all(name in own for own in clients.values())]
    shapes_by_name = {name: {own[name].shape[1:] for own in clients.values()} for name in names}
    for name, shapes in shapes_by_name.items():
        if len(shapes) > 1:
            raise DataError(f"the clients' {name!r} have different shapes: {sorted(shapes)}", where=str(path))
    arrays = {name: np.concatenate([own[name] for own in clients.values()]) for name in names}
    counts = [len(own[names[0]]) if names else 0 for own in clients.values()]
    return {**arrays, CLIENT: np.repeat(np.array(list(clients)), counts)}


def read_clients(path: Path, *, split: str = "", columns: tuple[str, ...] = (), most: int | None = None) -> Clients:
    """Reads the clients of a file by their keys, in order.

    Args:
        path: an HDF5 or SQLite file.
        split: split of a SQLite file; may be empty if there is only one.
        columns: the columns to read; empty: all.
        most: the largest number of clients to read.

    Raises:
        DataError: the file has another format, or no clients.
    """
    clients = _read_sqlite(path, split, columns, most) if path.suffix in SQLITE else _read_hdf5(path, columns, most)
    if not clients:
        raise DataError("the file has no clients", where=str(path))
    return clients


def _read_hdf5(path: Path, columns: tuple[str, ...], most: int | None) -> Clients:
    import h5py

    clients: Clients = {}
    try:
        with h5py.File(path) as file:
            groups = file["examples"]
            for key in itertools.islice(sorted(groups), most):
                group = groups[key]
                clients[key] = {name: _read_column(group, name) for name in columns or sorted(group) if name in group}
    except FileNotFoundError:
        raise
    except (OSError, KeyError, TypeError, AttributeError, ValueError, RuntimeError) as error:
        raise DataError(
            f"the file is not an HDF5 file of federated data: {one_line(error)}",
            where=str(path),
            remedy="Store clients as examples/<client>/<column>, like TensorFlow Federated.",
        ) from error
    return clients


def _read_column(group: Any, name: str) -> Array:
    """Reads a dataset's values, and refuses links to other files."""
    import h5py

    dataset = group[name]
    if not isinstance(group.get(name, getlink=True), h5py.HardLink) or dataset.is_virtual or dataset.external:
        raise ValueError(f"{name!r} is a link")
    return np.asarray(dataset[()])


def _read_sqlite(path: Path, split: str, columns: tuple[str, ...], most: int | None) -> Clients:
    if not path.exists():
        raise FileNotFoundError(path)
    rows: dict[str, list[bytes]] = {}
    try:
        with contextlib.closing(sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True)) as database:
            chosen = _choose_split(database, path, split)
            for client, data in database.execute(_EXAMPLES_OF_SPLIT, (chosen,)):
                if most is not None and client not in rows and len(rows) == most:
                    break
                rows.setdefault(str(client), []).append(data)
    except sqlite3.Error as error:
        raise DataError(
            f"the file is not a SQLite file of federated data: {error}",
            where=str(path),
            remedy="Store clients in a table `examples`, like TensorFlow Federated.",
        ) from error
    return {client: _columns(client, data, columns, path) for client, data in rows.items()}


def _choose_split(database: sqlite3.Connection, path: Path, split: str) -> str:
    splits = [str(row[0]) for row in database.execute("SELECT DISTINCT split_name FROM examples ORDER BY split_name")]
    if split in splits or (not split and len(splits) == 1):
        return split or splits[0]
    raise DataError(
        f"there is no split {split!r}" if split else f"the file has {len(splits)} splits",
        where=str(path),
        remedy=f"Set data.split to one of them: {', '.join(splits)}.",
    )


def _columns(client: str, examples: list[bytes], columns: tuple[str, ...], path: Path) -> dict[str, Array]:
    from google.protobuf.message import DecodeError

    try:
        parsed = [_parse_example(data) for data in examples]
        names = columns or tuple(sorted(parsed[0]))
        return {name: _stack([example[name] for example in parsed]) for name in names if name in parsed[0]}
    except (ValueError, KeyError, TypeError, DecodeError) as error:
        raise DataError(f"the examples of client {client!r} cannot be read: {error}", where=str(path)) from error


def _stack(values: list[Array]) -> Array:
    stacked = np.stack(values)
    return stacked[:, 0] if stacked.shape[1:] == (1,) else stacked


def _parse_example(data: bytes) -> Mapping[str, Array]:
    example = _example_type()()
    example.ParseFromString(data)
    return dict(_features(example.features.feature))


def _features(features: Any) -> Iterator[tuple[str, Array]]:
    for name in features:
        kind = features[name].WhichOneof("kind")
        if kind == "float_list":
            yield name, np.array(features[name].float_list.value, np.float32)
        elif kind == "int64_list":
            yield name, np.array(features[name].int64_list.value, np.int64)


@functools.cache
def _example_type() -> Any:
    """Builds the message class `tf.train.Example` without TensorFlow."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format

    file = text_format.Parse(_EXAMPLE, descriptor_pb2.FileDescriptorProto())
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("fedpipe.Example"))


_EXAMPLE = """
name: "fedpipe/example.proto" package: "fedpipe" syntax: "proto3"
message_type { name: "BytesList" field { name: "value" number: 1 label: LABEL_REPEATED type: TYPE_BYTES } }
message_type { name: "FloatList" field { name: "value" number: 1 label: LABEL_REPEATED type: TYPE_FLOAT } }
message_type { name: "Int64List" field { name: "value" number: 1 label: LABEL_REPEATED type: TYPE_INT64 } }
message_type {
  name: "Feature" oneof_decl { name: "kind" }
  field { name: "bytes_list" number: 1 type: TYPE_MESSAGE type_name: ".fedpipe.BytesList" oneof_index: 0 }
  field { name: "float_list" number: 2 type: TYPE_MESSAGE type_name: ".fedpipe.FloatList" oneof_index: 0 }
  field { name: "int64_list" number: 3 type: TYPE_MESSAGE type_name: ".fedpipe.Int64List" oneof_index: 0 }
}
message_type {
  name: "Features"
  field {
    name: "feature" number: 1 label: LABEL_REPEATED type: TYPE_MESSAGE type_name: ".fedpipe.Features.FeatureEntry"
  }
  nested_type {
    name: "FeatureEntry" options { map_entry: true }
    field { name: "key" number: 1 type: TYPE_STRING }
    field { name: "value" number: 2 type: TYPE_MESSAGE type_name: ".fedpipe.Feature" }
  }
}
message_type { name: "Example" field { name: "features" number: 1 type: TYPE_MESSAGE type_name: ".fedpipe.Features" } }
"""
"""Source: tensorflow/core/example/feature.proto and example.proto."""
