"""Describes the columns of a table, as the learners' statistics settle them before the first round."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from msgspec import Meta, Struct

from fedpipe.federation.data import Kind as Kind

Style = Literal["", "decimal comma", "day first", "month first"]
"""How texts of a column write numbers or dates, apart from 1.5 and YYYY-MM-DD."""
NUMERIC: tuple[Kind, ...] = ("number", "boolean", "date")
"""The kinds that form the matrix `numbers`; a date counts days since 1970-01-01, NaN is a missing value."""
INPUTS: dict[Kind, str] = {**dict.fromkeys(NUMERIC, "numbers"), "category": "categories", "text": "texts"}
"""The input of the model that holds the columns of each kind, in the order of the schema."""
MOST_COLUMNS = 20_000
MOST_CLASSES = 10_000

LONGEST_NAME = 200
ColumnName = Annotated[str, Meta(min_length=1, max_length=LONGEST_NAME)]


class Column(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Describes a column of features.

    Args:
        name: its name in files.
        kind: its kind.
        missing: whether values may be missing: NaN in `numbers`, the empty string in the others.
        mean: of a numeric column over all learners; 0 if columns are not normalised.
        deviation: standard deviation of a numeric column; 1 if columns are not normalised.
        categories: the known values of a category, in order; others count as unknown.
        style: how the learners' files write its numbers or dates; empty if they differ.
    """

    name: ColumnName
    kind: Kind
    missing: bool = False
    mean: float = 0.0
    deviation: float = 1.0
    categories: tuple[Annotated[str, Meta(max_length=1000)], ...] = ()
    style: Style = ""


LabelKind = Literal["names", "whole", "quantity"]
"""Labels are names of classes, whole numbers (classes from 0, or a quantity), or numbers with fractions."""


class Schema(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Describes a table: its columns of features in order, the label's column and, for classes, their names.

    Args:
        columns: of the features, in the order of the data.
        label: the label's column.
        labels: the kind of its values.
        classes: names of the classes, in order; empty for a quantity, or if the classes have no names.
        mean: of labels that are numbers, over all learners; 0 if columns are not normalised.
        deviation: standard deviation of labels that are numbers; 1 if columns are not normalised.
        statistics: whether some learner disclosed statistics.
    """

    format: int = 1
    columns: Annotated[tuple[Column, ...], Meta(min_length=1, max_length=MOST_COLUMNS)]
    label: str = ""
    labels: LabelKind = "whole"
    classes: Annotated[tuple[Annotated[str, Meta(max_length=200)], ...], Meta(max_length=MOST_CLASSES)] = ()
    mean: float = 0.0
    deviation: float = 1.0
    statistics: bool = True


def columns_by_input(columns: Sequence[Column]) -> dict[str, tuple[Column, ...]]:
    """Returns the columns of each input of a model, by its name: `numbers`, `categories`, `texts`."""
    names = dict.fromkeys(INPUTS.values())
    found = {name: tuple(column for column in columns if INPUTS[column.kind] == name) for name in names}
    return {name: own for name, own in found.items() if own}
