"""Assembles the inputs of a model for tables from named columns: for files here, and for requests to the server."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fedpipe.data.cells import parse_cells, place_of
from fedpipe.data.schema import INPUTS, NUMERIC, Column
from fedpipe.errors import DataError
from fedpipe.registry.prediction import TensorSpec
from fedpipe.suggestion import closest

Array = npt.NDArray[Any]
_SHOWN = 8


def check_names(columns: Sequence[Column], names: Collection[str], where: str | None = None) -> list[str]:
    """Compares the columns of a table with those of a model.

    Args:
        columns: the model's columns.
        names: names in the table, in any order.
        where: the table, for messages.

    Returns:
        The names that the model does not take.

    Raises:
        DataError: a column is missing; the message suggests a name that is close.
    """
    wanted = [column.name for column in columns]
    extra = [name for name in names if name not in set(wanted)]
    missing = [name for name in wanted if name not in set(names)]
    if missing:
        noun = f"the column {missing[0]!r} is" if len(missing) == 1 else f"{len(missing)} columns are"
        listed = "" if len(missing) == 1 else f": {listing(missing)}"
        raise DataError(f"{noun} missing{listed}", where=where, remedy=_remedy(missing, extra, wanted))
    return extra


def names_columns(columns: Sequence[Column], names: Collection[str], inputs: Collection[str]) -> bool:
    """Returns whether names are those of columns, not of the model's inputs: a column may have the name of an input."""
    wanted, given = {column.name for column in columns}, set(names)
    if not wanted:
        return False
    return given.isdisjoint(inputs) or wanted <= given or not given.isdisjoint(wanted - set(inputs))


def _remedy(missing: list[str], extra: list[str], wanted: list[str]) -> str:
    for name in missing:
        if close := closest(name, extra):
            return f"Rename {close!r} to {name!r}: names must be those of the training."
    if len(missing) == len(wanted) > 1 and extra:
        return f"Check the header, whose names are {listing(extra)}, and the separator."
    return (
        f"Add it: the model takes {listing(wanted)}."
        if len(missing) == 1
        else f"Add them: the model takes {listing(wanted)}."
    )


def listing(names: Sequence[str]) -> str:
    """Returns names for a message, shortened."""
    text = ", ".join(repr(name) for name in names[:_SHOWN])
    return f"{text} and {len(names) - _SHOWN} more" if len(names) > _SHOWN else text


def parse_column(column: Column, cells: Iterable[Any], where: str, lines: Sequence[int] | None = None) -> Array:
    """Parses the cells of a column for a model.

    Args:
        column: the model's column.
        cells: texts or values.
        where: the table, for messages.
        lines: the line of each cell in its file, for messages.

    Raises:
        DataError: a cell is not of the column's kind, or is missing where none was missing in training.
    """
    values = parse_cells(
        column.kind, cells, where=where, column=column.name, lines=lines, fixed=True, style=column.style
    )
    bad = np.isnan(values) if column.kind in NUMERIC else values == ""
    if not column.missing and bad.any():
        raise DataError(
            "the cell is empty, but no value of this column was missing in the training",
            where=place_of(where, column.name, int(np.argmax(bad)), lines),
            remedy="Fill the cell, or remove the row.",
        )
    return values


def unknown_values(column: Column, values: Array, where: str) -> str:
    """Returns a remark if a category has values that the model does not know; empty if it knows all."""
    if column.kind != "category" or not column.categories:
        return ""
    known = {*column.categories, ""}
    unknown = [value for value in values.tolist() if value not in known]
    if not unknown:
        return ""
    count = f"{len(unknown)} of {len(values)} values of {column.name!r} in {where}"
    return f"the model does not know {count}, such as {unknown[0]!r}; it knows {listing(column.categories)}"


def features_by_name(
    columns: Sequence[Column], table: Mapping[str, Any], inputs: Sequence[TensorSpec]
) -> dict[str, Array]:
    """Returns the model's inputs for columns by name, such as a dict of lists or a DataFrame. Raises DataError."""
    where = "the features"
    if extra := check_names(columns, list(table), where):
        raise DataError(f"the model does not take {listing(extra)}", where=where, remedy="Leave other columns out.")
    cells = {column.name: np.asarray(table[column.name]) for column in columns}
    if len({array.shape for array in cells.values()}) > 1 or next(iter(cells.values())).ndim != 1:
        shapes = ", ".join(f"{name!r} {array.shape}" for name, array in list(cells.items())[:_SHOWN])
        raise DataError(f"the columns differ in shape: {shapes}", where=where, remedy="Give each one value per row.")
    values = {column.name: parse_column(column, _cells(table[column.name]), where) for column in columns}
    return assemble(columns, values, inputs)


def _cells(column: Any) -> Any:
    array = np.asarray(column)
    return array if array.dtype.kind in "iuf" else list(array if array.dtype.kind in "MO" else column)


def assemble(columns: Iterable[Column], values: Mapping[str, Array], inputs: Sequence[TensorSpec]) -> dict[str, Array]:
    """Returns the model's inputs.

    Args:
        columns: the model's columns.
        values: parsed values by column.
        inputs: the model's inputs: `numbers`, `categories` and `texts`, or only one of any name.

    Raises:
        DataError: the card does not fit the model.
    """
    matrices: dict[str, list[Array]] = {}
    for column in columns:
        matrices.setdefault(INPUTS[column.kind], []).append(values[column.name])
    arrays = {name: np.stack(parts, axis=1) for name, parts in matrices.items()}
    if len(arrays) == len(inputs) == 1:
        return {inputs[0].name: next(iter(arrays.values()))}
    if arrays.keys() != {spec.name for spec in inputs}:
        what = (
            f"the model takes {listing([spec.name for spec in inputs])}, but its columns form {listing(list(arrays))}"
        )
        raise DataError(what, remedy="Export the model again.")
    return {spec.name: arrays[spec.name] for spec in inputs}


def columns_in(columns: Iterable[Column], feed: Mapping[str, Array]) -> Iterator[tuple[Column, Array]]:
    """Yields the columns of a table with their values in the inputs of a model, the reverse of `assemble`."""
    places: dict[str, int] = {}
    for column in columns:
        name = INPUTS[column.kind]
        place = places.get(name, 0)
        places[name] = place + 1
        matrix = feed.get(name, next(iter(feed.values())))
        if matrix.ndim == 2 and place < matrix.shape[1]:
            yield column, matrix[:, place]
