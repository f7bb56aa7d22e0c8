"""Reads a request that gives a model for tables its columns by name, in any order, instead of the matrices."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy.typing as npt

from fedpipe.data.schema import Column
from fedpipe.errors import DataError
from fedpipe.registry.card import Card
from fedpipe.registry.columns import assemble, check_names, listing, names_columns, parse_column
from fedpipe.registry.prediction import TensorSpec, fitted
from fedpipe.serving.tensors import DTYPES, STRINGS, InputTensor, RequestError, Room, quote, read_tensor

Array = npt.NDArray[Any]
_WHERE = "the request"


def gives_columns(tensors: Sequence[InputTensor], inputs: Mapping[str, TensorSpec], card: Card) -> bool:
    """Returns whether a request names columns rather than the inputs of the model."""
    return names_columns(card.columns, [tensor.name for tensor in tensors], inputs)


def feed_of_columns(
    tensors: Sequence[InputTensor], binary: memoryview, inputs: Mapping[str, TensorSpec], card: Card, room: Room
) -> tuple[dict[str, Array], memoryview]:
    """Returns the inputs of the model, and the binary data that are left.

    Args:
        tensors: a tensor of shape [n] or [n, 1] for each column.
        binary: binary data of the request.
        inputs: the model's inputs by name.
        card: names and kinds of the columns.
        room: limits of all columns together, and memory.

    Raises:
        RequestError: a column is missing, is not in the model, or has values that do not fit.
    """
    by_name = {column.name: column for column in card.columns}
    try:
        names = [tensor.name for tensor in tensors]
        if twice := [name for name, count in Counter(names).items() if count > 1]:
            raise RequestError(400, f"column {quote(twice[0])} is given twice")
        if extra := check_names(card.columns, names):
            raise RequestError(400, f"the model has no column {quote(extra[0])}; it takes {listing(list(by_name))}")
        rows = _rows(tensors, room.values)
        room.reserve(8 * rows * len(tensors))
        objects = 0
        values: dict[str, Array] = {}
        for tensor in tensors:
            column = by_name[tensor.name]
            objects += 0 if _stays_array(tensor, column) else rows
            if objects > room.strings:
                what = f"the columns have {objects} values that are not numbers, but at most {room.strings} are allowed"
                raise RequestError(413, what)
            array, binary = _read(tensor, rows, binary, column, room)
            values[tensor.name] = array
        arrays = assemble(card.columns, values, list(inputs.values()))
        return {name: fitted(inputs[name], array, card) for name, array in arrays.items()}, binary
    except DataError as error:
        raise RequestError(400, str(error)) from error


def _rows(tensors: Sequence[InputTensor], most_values: int) -> int:
    """Returns the number of rows, the same in all columns."""
    rows = math.prod(tensors[0].shape)
    if rows * len(tensors) > most_values:
        raise RequestError(413, f"the columns have {rows * len(tensors)} values, but at most {most_values} are allowed")
    for tensor in tensors:
        if tensor.shape not in ([rows], [rows, 1]) or not rows:
            what = f"column {quote(tensor.name)} has shape {tensor.shape}, but a column is [n] or [n, 1]"
            raise RequestError(400, f"{what}, with the same n from 1 on in all of them")
    return rows


def _stays_array(tensor: InputTensor, column: Column) -> bool:
    """Returns whether the cells of a column never become Python objects."""
    return column.kind == "number" and tensor.datatype in DTYPES and DTYPES[tensor.datatype].kind in "iuf"


def _read(
    tensor: InputTensor, rows: int, binary: memoryview, column: Column, room: Room
) -> tuple[Array, memoryview]:  # fmt: skip
    name, dtype = quote(tensor.name), DTYPES.get(tensor.datatype)
    if dtype is None:
        raise RequestError(400, f"column {name} has datatype {quote(tensor.datatype)}; use FP64, INT64, BOOL or BYTES")
    if column.kind == "date" and tensor.datatype != STRINGS:
        raise RequestError(400, f"column {name} is a date: send it as {STRINGS}, for example 2024-01-31")
    array, binary = read_tensor(tensor, dtype, rows, binary, missing=True, room=room)
    cells = array.reshape(-1)
    return parse_column(column, cells if _stays_array(tensor, column) else cells.tolist(), _WHERE), binary
