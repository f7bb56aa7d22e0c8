"""What a published model takes and gives: it travels in the ONNX file's own metadata, under the file's digest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from msgspec import Meta, Struct

from fedpipe.errors import CorruptError
from fedpipe.store.objects import decode, encode

CARD_KEY = "fedpipe.card"
"""The name of the entry in the ONNX file's metadata."""
MOST_CLASSES = 100_000

Text = Annotated[str, Meta(max_length=200)]


class Spread(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the values of the first input were spread over the central test set: all of them, of all features."""

    minimum: float
    maximum: float
    mean: float
    deviation: float


class Card(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a client has to know beyond names, shapes and dtypes, which the ONNX file tells itself.

    Args:
        classes: names of the columns of the first output; empty when the model is no classifier or they have no names.
        labels: how often each label occurs at the learners, in all; empty when it is not to be told.
        spread: of the first input; None when there was no central test set.
        finite: whether NaN and infinity are refused.
    """

    format: int = 1
    classes: Annotated[tuple[Text, ...], Meta(max_length=MOST_CLASSES)] = ()
    labels: Annotated[dict[Text, Annotated[int, Meta(ge=0)]], Meta(max_length=MOST_CLASSES)] = {}
    spread: Spread | None = None
    finite: bool = True


def write_card(signature: Card) -> str:
    """The text that stands in the ONNX file."""
    return encode(signature).decode()


def read_card(metadata: Mapping[str, str], *, where: str = "the model") -> Card:
    """The signature of a model with this metadata; the default one for a model that has none. Raises CorruptError."""
    text = metadata.get(CARD_KEY)
    if text is None:
        return Card()
    try:
        return decode(text.encode(), Card, where=f"{where}: {CARD_KEY}")
    except UnicodeEncodeError as error:
        raise CorruptError("not text", where=f"{where}: {CARD_KEY}") from error
