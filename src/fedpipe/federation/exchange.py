"""The form in which learners send updates: weights or changes, and in how many bytes."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, field

from fedpipe.federation.names import Section


class Exchange(Section, frozen=True, kw_only=True):
    """Shortens the updates of learners (docs/aggregation.md); models for the learners stay as they are."""

    kind: Annotated[
        Literal["delta", "weights"],
        Meta(description="`delta`: the change from the global weights; `weights`: the weights themselves"),
    ] = field(default="delta", name="as")
    dtype: Annotated[
        Literal["float32", "bfloat16", "int8"],
        Meta(description="of floats: `int8` has a scale for 256 of them, and learners add what rounding took away to "
             "their next change"),
    ] = "float32"  # fmt: skip

    @property
    def in_words(self) -> str:
        """Return what is sent, as in `changes in int8`."""
        return f"{'changes' if self.changes else 'weights'} in {self.dtype}"

    @property
    def changes(self) -> bool:
        """Return whether updates are changes from the global weights."""
        return self.kind == "delta"

    @property
    def keeps_residual(self) -> bool:
        """Return whether learners keep what rounding took away."""
        return self.changes and self.dtype != "float32"
