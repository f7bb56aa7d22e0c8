"""Describes a published model to its clients, in the metadata of its ONNX file, so that the file's digest covers it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from msgspec import Meta, Struct

from fedpipe.data.schema import MOST_COLUMNS, Column
from fedpipe.errors import CorruptError
from fedpipe.store.objects import decode, encode

CARD_KEY = "fedpipe.card"
"""The name of the entry in the ONNX file's metadata."""
MOST_CLASSES = 100_000
PUBLIC = ("classes", "spread", "finite", "columns", "label")
"""Fields of the card that a server shows to its clients."""

Text = Annotated[str, Meta(max_length=200)]


class Spread(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Summarises the values of the first input over the central test set, across all features."""

    minimum: float
    maximum: float
    mean: float
    deviation: float


class Card(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Describes a model beyond the names, shapes and dtypes that the ONNX file itself has.

    Args:
        classes: names of the columns of the first output; empty for a regression, or if the classes have no names.
        labels: total count of each label at the learners; empty if it is private.
        spread: spread of the first input; None without a central test set.
        finite: whether NaN and infinity are refused; NaN is allowed in columns that may have missing values.
        columns: columns of a table, in the order of the model's inputs; empty for other features.
        label: name of the label's column in a table; "" if it has no name.
    """

    format: int = 1
    classes: Annotated[tuple[Text, ...], Meta(max_length=MOST_CLASSES)] = ()
    labels: Annotated[dict[Text, Annotated[int, Meta(ge=0)]], Meta(max_length=MOST_CLASSES)] = {}
    spread: Spread | None = None
    finite: bool = True
    columns: Annotated[tuple[Column, ...], Meta(max_length=MOST_COLUMNS)] = ()
    label: Text = ""


def write_card(card: Card) -> str:
    """Returns the text for the ONNX file."""
    return encode(card).decode()


def read_card(metadata: Mapping[str, str], *, where: str = "the model") -> Card:
    """Returns the card in a model's metadata, or the default card for a model without one. Raises CorruptError."""
    text = metadata.get(CARD_KEY)
    if text is None:
        return Card()
    try:
        return decode(text.encode(), Card, where=f"{where}: {CARD_KEY}")
    except UnicodeEncodeError as error:
        raise CorruptError("the card is not text", where=f"{where}: {CARD_KEY}") from error
