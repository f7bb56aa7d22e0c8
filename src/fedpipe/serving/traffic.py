"""Defines the traffic of a model: which versions answer its requests. Stored with compare-and-swap."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

from fedpipe.errors import CorruptError, NotFoundError
from fedpipe.store import Store, keys
from fedpipe.store.objects import decode

Version = Annotated[int, Meta(ge=1, le=2**53)]
KEPT_DECISIONS = 100
"""Decisions that the traffic of a model records."""


class Split(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Splits the requests for a model between its versions.

    Args:
        kind: `latest`, the newest version that loads; `pinned`, `version`; `canary`, `canary` for a share of the
            requests and `version` for the others.
        version: the pinned version, or the one that keeps the requests that the canary does not get.
        canary: the version on trial.
        share: share of the requests that go to the canary.
    """

    kind: Literal["latest", "pinned", "canary"] = "latest"
    version: Version | None = None
    canary: Version | None = None
    share: Annotated[float, Meta(ge=0, le=1)] = 0.0

    def __post_init__(self) -> None:
        required = {"latest": (False, False), "pinned": (True, False), "canary": (True, True)}[self.kind]
        if (self.version is not None, self.canary is not None) != required:
            raise ValueError(f"the versions do not fit a split of kind {self.kind!r}")

    def __str__(self) -> str:
        if self.kind == "canary":
            return f"version {self.canary} for {self.share:.1%} of the requests, version {self.version} for the others"
        return f"version {self.version}" if self.kind == "pinned" else "the latest version"


class Decision(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Records a split, and when it was decided, in seconds since 1970."""

    split: Split
    time: float


class Traffic(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Holds the current split of a model and its last hundred decisions, the newest last."""

    format: int = 1
    split: Split = Split()
    decisions: tuple[Decision, ...] = ()


def read_traffic(models: Store, name: str) -> tuple[Traffic, str]:
    """Returns a model's traffic and its version in the store; the default and "" if none is stored.

    Args:
        models: the folder that holds the model.
        name: the model.

    Raises:
        CorruptError: the stored traffic is invalid.
    """
    key = keys.traffic(name)
    try:
        blob = models.read(key)
    except NotFoundError:
        return Traffic(), ""
    try:
        return decode(blob.data, Traffic, where=f"{models.uri}/{key}"), blob.version
    except ValueError as error:  # msgspec passes on some errors of __post_init__
        raise CorruptError(str(error), where=f"{models.uri}/{key}") from error
