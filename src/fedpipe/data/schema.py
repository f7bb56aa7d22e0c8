"""Describes the columns of a table, as the learners' statistics settle them before the first round."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

Kind = Literal["number", "boolean", "date", "category", "text"]
NUMERIC: tuple[Kind, ...] = ("number", "boolean", "date")
"""The kinds that form the matrix `numbers`; a date counts days since 1970-01-01, NaN is a missing value."""
INPUTS: dict[Kind, str] = {**dict.fromkeys(NUMERIC, "numbers"), "category": "categories", "text": "texts"}
"""The input of the model that holds the columns of each kind, in the order of the schema."""
MOST_COLUMNS = 20_000

ColumnName = Annotated[str, Meta(min_length=1, max_length=200)]


class Column(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Describes a column of features.

    Args:
        name: its name in files.
        kind: its kind.
        missing: whether values may be missing: NaN in `numbers`, the empty string in the others.
        mean: of a numeric column over all learners; 0 if columns are not normalised.
        deviation: standard deviation of a numeric column; 1 if columns are not normalised.
        categories: the known values of a category, in order; others count as unknown.
    """

    name: ColumnName
    kind: Kind
    missing: bool = False
    mean: float = 0.0
    deviation: float = 1.0
    categories: tuple[Annotated[str, Meta(max_length=1000)], ...] = ()


class Schema(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Describes a table: its columns of features in order, the label's column and, for classes, their names."""

    format: int = 1
    columns: Annotated[tuple[Column, ...], Meta(min_length=1, max_length=MOST_COLUMNS)]
    label: str = ""
    classes: tuple[Annotated[str, Meta(max_length=200)], ...] = ()
